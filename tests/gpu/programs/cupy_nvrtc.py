"""CuPy: a RawKernel compiled by NVRTC, elementwise kernels it generates, reductions, streams, pinned copies."""

from __future__ import annotations

import sys
import tempfile

from common import Digest, begin, finish

SOURCE = r"""
extern "C" __global__ void hypotenuse(const float *a, const float *b, float *c, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        c[i] = sqrtf(a[i] * a[i] + b[i] * b[i]);
}
"""


def main() -> int:
    begin()
    import os

    with tempfile.TemporaryDirectory() as cache:
        os.environ["CUPY_CACHE_DIR"] = cache
        import cupy
        import numpy

        rng = numpy.random.default_rng(21)
        a, b = rng.random(100_003, dtype=numpy.float32), rng.random(100_003, dtype=numpy.float32)
        x, y = cupy.asarray(a), cupy.asarray(b)
        z = cupy.empty_like(x)
        kernel = cupy.RawKernel(SOURCE, "hypotenuse")
        kernel(((x.size + 255) // 256,), (256,), (x, y, z, numpy.int32(x.size)))
        numpy.testing.assert_allclose(cupy.asnumpy(z), numpy.hypot(a, b), rtol=1e-6)
        digest = Digest()
        digest.add("raw", cupy.asnumpy(z).tobytes())
        digest.add("elementwise", cupy.asnumpy(cupy.sin(x) * y + 1).tobytes())
        digest.add("sum", repr(float(x.sum())).encode())
        digest.add("sort", cupy.asnumpy(cupy.sort(y)).tobytes())
        digest.add("matmul", cupy.asnumpy(x[:10_000].reshape(100, 100) @ y[:10_000].reshape(100, 100)).tobytes())
        with cupy.cuda.Stream(non_blocking=True) as stream:
            twice = x * 2
            stream.synchronize()
        digest.add("stream", cupy.asnumpy(twice).tobytes())
        module = cupy.RawModule(
            code='extern "C" { __constant__ int table[4]; __global__ void put(int *o) '
            "{ o[threadIdx.x] = table[threadIdx.x] * 2; } }"
        )
        pointer = module.get_global("table")
        constants = cupy.ndarray((4,), dtype=cupy.int32, memptr=pointer)
        constants[...] = cupy.asarray([1, 20, 300, 4000], dtype=cupy.int32)
        out = cupy.zeros(4, dtype=cupy.int32)
        module.get_function("put")((1,), (4,), (out,))
        if out.get().tolist() != [2, 40, 600, 8000]:
            raise RuntimeError(f"a kernel that reads a module's constant gave {out.get().tolist()}")
        finish(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
