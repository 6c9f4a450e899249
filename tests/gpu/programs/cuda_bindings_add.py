"""cuda-bindings, NVIDIA's own Python view of the driver API: a module, a launch, copies, an error by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from common import Digest, begin, finish


def main() -> int:
    begin()
    import numpy
    from cuda.bindings import driver

    def must(answer: tuple[Any, ...]) -> Any:
        if answer[0] != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"the driver answered {answer[0]}")
        return answer[1] if len(answer) == 2 else answer[1:]

    must(driver.cuInit(0))
    device = must(driver.cuDeviceGet(0))
    name = must(driver.cuDeviceGetName(100, device))
    context = must(driver.cuDevicePrimaryCtxRetain(device))
    must(driver.cuCtxSetCurrent(context))
    module = must(driver.cuModuleLoadData(Path(os.environ["KERNELS_PTX"]).read_bytes() + b"\0"))
    add = must(driver.cuModuleGetFunction(module, b"vector_add"))
    count = 100_000
    rng = numpy.random.default_rng(17)
    a, b = rng.random(count, dtype=numpy.float32), rng.random(count, dtype=numpy.float32)
    c = numpy.zeros_like(a)
    pointers = [must(driver.cuMemAlloc(a.nbytes)) for _ in range(3)]
    stream = must(driver.cuStreamCreate(0))
    for pointer, source in zip(pointers, (a, b), strict=False):
        must(driver.cuMemcpyHtoDAsync(pointer, source.ctypes.data, a.nbytes, stream))
    values = [numpy.array([int(pointer)], dtype=numpy.uint64) for pointer in pointers]
    values.append(numpy.array([count], dtype=numpy.int32))
    arguments = numpy.array([value.ctypes.data for value in values], dtype=numpy.uint64)
    must(driver.cuLaunchKernel(add, 391, 1, 1, 256, 1, 1, 0, stream, arguments.ctypes.data, 0))
    must(driver.cuMemcpyDtoHAsync(c.ctypes.data, pointers[2], c.nbytes, stream))
    must(driver.cuStreamSynchronize(stream))
    if not numpy.array_equal(c, a + b):
        raise RuntimeError(f"{int((c != a + b).sum())} of {count} sums differ from numpy's")
    missing = driver.cuModuleGetFunction(module, b"no_such_kernel")[0]
    digest = Digest()
    digest.add("name", bytes(name).split(b"\0")[0])
    digest.add("sum", c.tobytes())
    digest.add("missing", str(missing).encode())
    for pointer in pointers:
        must(driver.cuMemFree(pointer))
    finish(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
