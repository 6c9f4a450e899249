"""A CUDA driver-API program, as a user would write it: it knows nothing of Tensor Fusion but the statistics call.

Runs as a process of its own, with the client files on its library path, and prints one JSON object. It is a client
program and no part of the product's path, which is why it may use ctypes.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ELEMENTS = 1 << 20
BANDWIDTH_BYTES = 64 << 20
BANDWIDTH_REPEATS = 4
LAUNCHES = 2000
BLOCK = 256


class CudaError(Exception):
    """A driver call that failed, as a sentence."""


class Cuda:
    """The driver API: `cuda.cuMemAlloc_v2(...)` raises CudaError unless the call succeeds."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"libcuda.so.1 cannot be loaded: {error}") from error

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int

        def call(*arguments: object) -> None:
            result = function(*arguments)
            if result != 0:
                text = ctypes.c_char_p()
                self._library.cuGetErrorString(result, ctypes.byref(text))
                raise CudaError(f"{name} returned {result}: {(text.value or b'unknown error').decode()}")

        return call


def device_names(cuda: Cuda) -> list[str]:
    cuda.cuInit(0)
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for ordinal in range(count.value):
        device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDeviceGetName(text, len(text), device)
        names.append(text.value.decode())
    return names


def loaded_libraries() -> list[str]:
    """The files that stand behind libcuda in this process."""
    with open("/proc/self/maps") as file:  # noqa: PTH123 - like any user's program
        paths = {line.split(maxsplit=5)[5].strip() for line in file if line.count("/")}
    return sorted(path for path in paths if path.rpartition("/")[2].startswith(("libcuda.so", "libteleport.so")))


def statistics() -> dict[str, Any]:
    """What the client library counted so far."""
    try:
        # Loaded already, by the first call of libcuda.so.1: this finds the same instance.
        library = ctypes.CDLL("libteleport.so.1")
    except OSError as error:
        raise CudaError(f"this is no client of Tensor Fusion: {error}") from error
    library.tp_stats_json.restype = ctypes.c_size_t
    library.tp_stats_json.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    size = 1 << 16
    while True:
        buffer = ctypes.create_string_buffer(size)
        needed: int = library.tp_stats_json(buffer, size)
        if needed < size:
            found: dict[str, Any] = json.loads(buffer.value)
            return found
        size = needed + 1


class Program:
    """One context on device 0, and the kernels of the PTX file."""

    def __init__(self, cuda: Cuda, ptx: bytes) -> None:
        self.cuda = cuda
        device = ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), 0)
        context = ctypes.c_void_p()
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        cuda.cuCtxSetCurrent(context)
        self._module = ctypes.c_void_p()
        cuda.cuModuleLoadData(ctypes.byref(self._module), ctypes.c_char_p(ptx))
        self.stream = ctypes.c_void_p()
        cuda.cuStreamCreate(ctypes.byref(self.stream), 0)

    def kernel(self, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self.cuda.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
        return function

    def launch(self, kernel: ctypes.c_void_p, elements: int, arguments: Sequence[Any]) -> None:
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        blocks = (elements + BLOCK - 1) // BLOCK
        self.cuda.cuLaunchKernel(kernel, blocks, 1, 1, BLOCK, 1, 1, 0, self.stream, pointers, None)

    def allocate(self, size: int) -> ctypes.c_uint64:
        pointer = ctypes.c_uint64()
        self.cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def upload(self, target: ctypes.c_uint64, data: array.array[Any]) -> None:
        source = (ctypes.c_char * (len(data) * data.itemsize)).from_buffer(data)
        self.cuda.cuMemcpyHtoDAsync_v2(target, source, ctypes.c_size_t(len(source)), self.stream)

    def download(self, source: ctypes.c_uint64, size: int) -> bytes:
        target = ctypes.create_string_buffer(size)
        self.cuda.cuMemcpyDtoHAsync_v2(target, source, ctypes.c_size_t(size), self.stream)
        self.cuda.cuStreamSynchronize(self.stream)
        return target.raw

    def check_results(self) -> dict[str, bool]:
        """Run each kernel once and compare every byte with what Python computes."""
        size = ELEMENTS * 4
        whole = ELEMENTS // 1024
        # Small whole numbers, exact in single precision, so that results can be compared bit for bit.
        first = array.array("f", range(1024)) * whole
        second = array.array("f", (3 * value for value in range(1024))) * whole
        total = array.array("f", (4 * value for value in range(1024))) * whole
        scaled = array.array("f", (2 * value + 3 * value for value in range(1024))) * whole
        a, b, c = (self.allocate(size) for _ in range(3))
        count, wide = ctypes.c_int(ELEMENTS), ctypes.c_size_t(ELEMENTS)
        self.upload(a, first)
        self.upload(b, second)
        results = {}
        self.launch(self.kernel("vector_add"), ELEMENTS, [a, b, c, count])
        results["vector_add"] = self.download(c, size) == total.tobytes()
        self.launch(self.kernel("saxpy"), ELEMENTS, [count, ctypes.c_float(2.0), a, b])
        results["saxpy"] = self.download(b, size) == scaled.tobytes()
        self.launch(self.kernel("fill_u32"), ELEMENTS, [c, ctypes.c_uint32(0xC0FFEE), wide])
        results["fill_u32"] = self.download(c, size) == array.array("I", [0xC0FFEE]).tobytes() * ELEMENTS
        self.launch(self.kernel("iota_u32"), ELEMENTS, [c, wide])
        results["iota_u32"] = self.download(c, size) == array.array("I", range(ELEMENTS)).tobytes()
        for pointer in (a, b, c):
            self.cuda.cuMemFree_v2(pointer)
        return results

    def bandwidth(self) -> dict[str, float]:
        """GB/s of copies from and to pinned memory, the best of several; verified both ways."""
        host, back = ctypes.c_void_p(), ctypes.c_void_p()
        size = ctypes.c_size_t(BANDWIDTH_BYTES)
        self.cuda.cuMemAllocHost_v2(ctypes.byref(host), size)
        self.cuda.cuMemAllocHost_v2(ctypes.byref(back), size)
        ctypes.memmove(host, os.urandom(BANDWIDTH_BYTES), BANDWIDTH_BYTES)
        device = self.allocate(BANDWIDTH_BYTES)
        up = [self._timed("cuMemcpyHtoDAsync_v2", device, host, size) for _ in range(BANDWIDTH_REPEATS)]
        down = [self._timed("cuMemcpyDtoHAsync_v2", back, device, size) for _ in range(BANDWIDTH_REPEATS)]
        if ctypes.string_at(host, BANDWIDTH_BYTES) != ctypes.string_at(back, BANDWIDTH_BYTES):
            raise CudaError("64 MiB did not come back as they went")
        self.cuda.cuMemFree_v2(device)
        self.cuda.cuMemFreeHost(host)
        self.cuda.cuMemFreeHost(back)
        return {"h2d_gb_per_s": BANDWIDTH_BYTES / min(up) / 1e9, "d2h_gb_per_s": BANDWIDTH_BYTES / min(down) / 1e9}

    def _timed(self, copy: str, target: object, source: object, size: ctypes.c_size_t) -> float:
        started = time.perf_counter()
        getattr(self.cuda, copy)(target, source, size, self.stream)
        self.cuda.cuStreamSynchronize(self.stream)
        return time.perf_counter() - started

    def launches(self) -> dict[str, float]:
        """Launches per second, from the first to the end of the last, and the round trips they took."""
        target, count = self.allocate(4096), ctypes.c_size_t(1024)
        kernel = self.kernel("fill_u32")
        before = statistics()["round_trips"]
        started = time.perf_counter()
        for value in range(LAUNCHES):
            self.launch(kernel, 1024, [target, ctypes.c_uint32(value), count])
        self.cuda.cuStreamSynchronize(self.stream)
        seconds = time.perf_counter() - started
        trips = statistics()["round_trips"] - before
        right = self.download(target, 4096) == array.array("I", [LAUNCHES - 1]).tobytes() * 1024
        if not right:
            raise CudaError(f"the last of {LAUNCHES} launches did not come last")
        self.cuda.cuMemFree_v2(target)
        return {"launches": LAUNCHES, "launches_per_s": LAUNCHES / seconds, "round_trips": trips}


def demonstrate(ptx_path: str) -> dict[str, Any]:
    with open(ptx_path, "rb") as file:  # noqa: PTH123 - like any user's program
        ptx = file.read()
    cuda = Cuda()
    started = time.perf_counter()
    names = device_names(cuda)
    if not names:
        raise CudaError("there is no device")
    program = Program(cuda, ptx)
    start_seconds = time.perf_counter() - started
    version, memory = ctypes.c_int(), ctypes.c_size_t()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    return {
        "devices": names,
        "cuda_version": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "memory_bytes": memory.value,
        "start_seconds": start_seconds,
        "results": program.check_results(),
        "launch": program.launches(),
        "bandwidth": program.bandwidth(),
        "statistics": statistics(),
    }


def main(arguments: Sequence[str]) -> int:
    try:
        if arguments[0] == "loaded":
            Cuda().cuGetErrorString(0, ctypes.byref(ctypes.c_char_p()))  # which needs no worker
            report: dict[str, Any] = {"libraries": loaded_libraries()}
        elif arguments[0] == "devices":
            report = {"devices": device_names(Cuda()), "libraries": loaded_libraries()}
        else:
            report = demonstrate(arguments[1])
    except CudaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
