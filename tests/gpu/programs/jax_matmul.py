"""JAX: a jitted product with a nonlinearity and its gradient, in steps that use what the last one gave."""

from __future__ import annotations

import os
import sys

from common import Digest, begin, finish


def main() -> int:
    begin()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_PLATFORMS"] = "cuda"
    os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    import jax
    import jax.numpy as jnp
    import numpy

    rng = numpy.random.default_rng(8)
    w, x = rng.random((512, 256), dtype=numpy.float32), rng.random((64, 512), dtype=numpy.float32)

    def loss(weights: jax.Array, inputs: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(inputs @ weights * 0.01) ** 2)

    step = jax.jit(jax.value_and_grad(loss))
    digest = Digest()
    for _ in range(40):  # what JAX reads back ends with a host function, which may see no bytes that are on their way
        value, gradient = step(jnp.asarray(w), jnp.asarray(x))
        digest.add("value", numpy.asarray(value).tobytes())
        digest.add("gradient", numpy.asarray(gradient).tobytes())
        w = w + numpy.float32(0.5) * numpy.asarray(gradient)
    finish(digest, device=str(jax.devices()[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
