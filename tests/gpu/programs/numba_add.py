"""numba-cuda: a kernel compiled from Python, device arrays, shared memory, a stream."""

from __future__ import annotations

import sys

from common import Digest, begin, finish


def main() -> int:
    begin()
    import numpy

    if not hasattr(numpy, "row_stack"):
        numpy.row_stack = numpy.vstack  # gone from NumPy 2.5; numba-cuda 0.30 names it when it is imported
    from numba import cuda, float32

    @cuda.jit  # type: ignore[untyped-decorator,unused-ignore]
    def add(a, b, c):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i < c.size:
            c[i] = a[i] + b[i]

    @cuda.jit  # type: ignore[untyped-decorator,unused-ignore]
    def reverse(a, c):  # type: ignore[no-untyped-def]
        tile = cuda.shared.array(256, float32)
        t = cuda.threadIdx.x
        i = cuda.grid(1)
        tile[t] = a[i]
        cuda.syncthreads()
        c[i] = tile[255 - t]

    rng = numpy.random.default_rng(4)
    a, b = rng.random(65_536, dtype=numpy.float32), rng.random(65_536, dtype=numpy.float32)
    c = cuda.device_array_like(a)
    add[256, 256](cuda.to_device(a), cuda.to_device(b), c)
    sums = c.copy_to_host()
    if not numpy.array_equal(sums, a + b):
        raise RuntimeError("the sum differs from numpy's")
    stream = cuda.stream()
    there = cuda.to_device(a, stream=stream)
    back = cuda.device_array_like(a, stream=stream)
    reverse[256, 256, stream](there, back)
    tiles = back.copy_to_host(stream=stream)
    stream.synchronize()
    if not numpy.array_equal(tiles.reshape(256, 256), a.reshape(256, 256)[:, ::-1]):
        raise RuntimeError("the reversed tiles differ from numpy's")
    digest = Digest()
    digest.add("sum", sums.tobytes())
    digest.add("tiles", tiles.tobytes())
    finish(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
