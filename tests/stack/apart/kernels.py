"""A process of test_kernel_timeout.py: makes the calls that it reads, a list in JSON on each line; answers in JSON."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

cuda = ctypes.CDLL("libcuda.so.1")
VOID, U64 = ctypes.c_void_p, ctypes.c_uint64
HOST = ctypes.CFUNCTYPE(None, VOID)

streams: list[ctypes.c_void_p] = []
kept: list[Any] = []
spinning, filling = VOID(), VOID()


def first(*results: int) -> int:
    return next((result for result in results if result), 0)


def prepare() -> int:
    """The streams: 0 the legacy one, 1 and 2 that do not wait for it."""
    context, module = VOID(), VOID()
    result = first(
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
        cuda.cuModuleLoadData(ctypes.byref(module), Path(sys.argv[1]).read_bytes()),
        cuda.cuModuleGetFunction(ctypes.byref(spinning), module, b"spin_ns"),
        cuda.cuModuleGetFunction(ctypes.byref(filling), module, b"fill_u32"),
    )
    streams.extend((VOID(), VOID(), VOID()))
    return result or first(*(cuda.cuStreamCreate(ctypes.byref(stream), 1) for stream in streams[1:]))


def spin(stream: int, milliseconds: int, count: int = 1) -> int:
    length = U64(milliseconds * 1_000_000)
    arguments = (VOID * 1)(ctypes.addressof(length))
    launch = (spinning, 1, 1, 1, 1, 1, 1, 0, streams[stream], arguments, None)
    return first(*(cuda.cuLaunchKernel(*launch) for _ in range(count)))


def fault(stream: int) -> int:
    """Writes where nothing is."""
    address, value, count = U64(4096), ctypes.c_uint32(1), U64(1)
    arguments = (VOID * 3)(*(ctypes.addressof(one) for one in (address, value, count)))
    return int(cuda.cuLaunchKernel(filling, 1, 1, 1, 1, 1, 1, 0, streams[stream], arguments, None))


def wait(stream: int) -> int:
    return int(cuda.cuStreamSynchronize(streams[stream]))


def query(stream: int) -> int:
    return int(cuda.cuStreamQuery(streams[stream]))


def synchronize() -> int:
    return int(cuda.cuCtxSynchronize())


def destroy(stream: int) -> int:
    return int(cuda.cuStreamDestroy_v2(streams[stream]))


def info() -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    return int(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))


def host_function(stream: int, seconds: float) -> int:
    function = HOST(lambda _: time.sleep(seconds))
    kept.append(function)
    return int(cuda.cuLaunchHostFunc(streams[stream], function, None))


def word() -> int:
    address = U64()
    assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(4096)) == 0
    assert cuda.cuMemsetD8_v2(address, ctypes.c_ubyte(0), ctypes.c_size_t(4096)) == 0
    return address.value


def wait_for(stream: int, address: int) -> int:
    """The stream stands until the word is 1."""
    return int(cuda.cuStreamWaitValue32_v2(streams[stream], U64(address), ctypes.c_uint32(1), 1))


def write(stream: int, address: int) -> int:
    return int(cuda.cuStreamWriteValue32_v2(streams[stream], U64(address), ctypes.c_uint32(1), 0))


def wait_for_stream(stream: int, other: int) -> int:
    """The stream stands at an event that is recorded behind all that is in the other."""
    event = VOID()
    return first(
        cuda.cuEventCreate(ctypes.byref(event), 2),
        cuda.cuEventRecord(event, streams[other]),
        cuda.cuStreamWaitEvent(streams[stream], event, 0),
    )


def graph(stream: int, milliseconds: int, seconds: float = 0) -> int:
    """Captures a kernel, behind a host function if that takes any time, and launches the graph."""
    captured, executable = VOID(), VOID()
    result = first(cuda.cuStreamBeginCapture_v2(streams[stream], 0))
    if seconds:
        result = result or host_function(stream, seconds)
    return first(
        result or spin(stream, milliseconds),
        cuda.cuStreamEndCapture(streams[stream], ctypes.byref(captured)),
        cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), captured, U64(0)),
        cuda.cuGraphLaunch(executable, streams[stream]),
    )


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        prepare,
        spin,
        fault,
        wait,
        query,
        synchronize,
        destroy,
        info,
        host_function,
        word,
        wait_for,
        write,
        wait_for_stream,
        graph,
    )
}

for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(CALLS[name](*arguments)), flush=True)
