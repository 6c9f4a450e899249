"""The driver API through ctypes, for programs that must start fast and do one hostile thing.

`Driver.call("cuMemAlloc_v2", …)` raises DriverError with the number and the name of the call; `Driver.ask` returns the
number instead. Nothing here is typed beyond what the calls need: the C programs ask the fine questions.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any


class DriverError(RuntimeError):
    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} gave {code}")
        self.name = name
        self.code = code


def address(value: int) -> ctypes.c_ulonglong:
    return ctypes.c_ulonglong(value)


class Driver:
    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def ask(self, name: str, *arguments: Any) -> int:
        function = getattr(self.library, name)
        function.restype = ctypes.c_int
        return int(function(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        code = self.ask(name, *arguments)
        if code != 0:
            raise DriverError(name, code)

    def start(self) -> None:
        """cuInit and the primary context of device 0, current in this thread."""
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def alloc(self, size: int) -> int:
        out = ctypes.c_ulonglong()
        self.call("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(size))
        return int(out.value)

    def free(self, pointer: int) -> None:
        self.call("cuMemFree_v2", address(pointer))

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return int(free.value), int(total.value)

    def upload(self, pointer: int, data: bytes) -> None:
        self.call("cuMemcpyHtoD_v2", address(pointer), data, ctypes.c_size_t(len(data)))

    def download(self, pointer: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", buffer, address(pointer), ctypes.c_size_t(size))
        return buffer.raw

    def kernel(self, name: str) -> ctypes.c_void_p:
        """A kernel of tests/kernels/kernels.ptx."""
        text = Path(os.environ["KERNELS_PTX"]).read_bytes() + b"\0"
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), text)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(self, function: ctypes.c_void_p, grid: int, block: int, *arguments: Any) -> None:
        """`arguments` are ctypes values of the kernel's own types, in order."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self.call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, 0, None, pointers, None)

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")
