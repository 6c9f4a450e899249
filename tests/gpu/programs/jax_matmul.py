"""JAX: a jitted product with a nonlinearity, and its gradient."""

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

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(w), jnp.asarray(x))
    digest = Digest()
    digest.add("value", numpy.asarray(value).tobytes())
    digest.add("gradient", numpy.asarray(gradient).tobytes())
    finish(digest, device=str(jax.devices()[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
