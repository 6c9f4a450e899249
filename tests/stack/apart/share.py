"""A process of test_ipc.py: makes the calls that it reads, a list in JSON on each line, and answers in JSON."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

cuda = ctypes.CDLL("libcuda.so.1")
U64, VOID = ctypes.c_uint64, ctypes.c_void_p


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]


def prepare(device: int = 0) -> int:
    context = VOID()
    return (
        cuda.cuInit(0)
        or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or cuda.cuCtxSetCurrent(context)
        or 0
    )


def alloc(size: int) -> list[int]:
    address = U64()
    return [cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)), address.value]


def alloc_async(size: int) -> list[int]:
    address = U64()
    return [cuda.cuMemAllocAsync(ctypes.byref(address), ctypes.c_size_t(size), None), address.value]


def alloc_managed(size: int) -> list[int]:
    address = U64()
    return [cuda.cuMemAllocManaged(ctypes.byref(address), ctypes.c_size_t(size), 1), address.value]


def alloc_host(size: int) -> list[int]:
    address = VOID()
    return [cuda.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), 0), address.value or 0]


def map_memory(size: int) -> list[int]:
    """Memory of cuMemCreate, mapped."""
    # CUmemAllocationProp: pinned, a descriptor wanted, device 0
    prop = (ctypes.c_uint32 * 8)(1, 1, 1, 0)
    access = (ctypes.c_uint32 * 3)(1, 0, 3)
    handle, address = U64(), U64()
    error = (
        cuda.cuMemCreate(ctypes.byref(handle), ctypes.c_size_t(size), prop, U64(0))
        or cuda.cuMemAddressReserve(ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_size_t(0), U64(0), U64(0))
        or cuda.cuMemMap(address, ctypes.c_size_t(size), ctypes.c_size_t(0), handle, U64(0))
        or cuda.cuMemSetAccess(address, ctypes.c_size_t(size), access, ctypes.c_size_t(1))
    )
    return [error, address.value]


def free(address: int) -> int:
    return int(cuda.cuMemFree_v2(U64(address)) or cuda.cuCtxSynchronize())


def get(address: int, room: bool = True) -> list[Any]:
    handle = Handle()
    result = cuda.cuIpcGetMemHandle(ctypes.byref(handle) if room else None, U64(address))
    return [result, bytes(handle.bytes).hex()]


def open_(handle: str, flags: int = 1, room: bool = True) -> list[int]:
    address = U64()
    given = Handle((ctypes.c_ubyte * 64)(*bytes.fromhex(handle)))
    result = cuda.cuIpcOpenMemHandle_v2(ctypes.byref(address) if room else None, given, flags)
    return [result, address.value]


def close(address: int) -> int:
    return int(cuda.cuIpcCloseMemHandle(U64(address)) or cuda.cuCtxSynchronize())


def fill(address: int, value: int, count: int) -> int:
    result = cuda.cuMemsetD8_v2(U64(address), ctypes.c_ubyte(value), ctypes.c_size_t(count))
    return int(result or cuda.cuCtxSynchronize())


def read(address: int, count: int) -> list[Any]:
    """The bytes, as runs of [value, how often]."""
    room = ctypes.create_string_buffer(count)
    result = cuda.cuMemcpyDtoH_v2(room, U64(address), ctypes.c_size_t(count))
    runs: list[list[int]] = []
    rest = room.raw
    while rest and len(runs) < 8:
        without = rest.lstrip(rest[:1])
        runs.append([rest[0], len(rest) - len(without)])
        rest = without
    return [result, runs]


def copy(to: int, source: int, count: int) -> int:
    return int(cuda.cuMemcpyDtoD_v2(U64(to), U64(source), ctypes.c_size_t(count)) or cuda.cuCtxSynchronize())


def address_range(address: int) -> list[int]:
    base, size = U64(), ctypes.c_size_t()
    result = cuda.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), U64(address))
    return [result, base.value, size.value]


def pointer(attribute: int, address: int) -> list[int]:
    value = U64()
    return [cuda.cuPointerGetAttribute(ctypes.byref(value), attribute, U64(address)), value.value]


def info() -> list[int]:
    free_bytes, total = ctypes.c_size_t(), ctypes.c_size_t()
    result = cuda.cuMemGetInfo_v2(ctypes.byref(free_bytes), ctypes.byref(total))
    return [result, free_bytes.value, total.value]


def reset(device: int = 0) -> int:
    return int(cuda.cuDevicePrimaryCtxReset_v2(device))


def open_elsewhere(handle: str) -> list[int]:
    """In a new context of this process."""
    context = VOID()
    assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
    found = open_(handle)
    assert cuda.cuCtxDestroy_v2(context) == 0
    return found


def captured_record(event: int, stream: int) -> list[int]:
    """What recording in a capture gives, and the capture's status behind it."""
    status, graph = ctypes.c_int(), VOID()
    assert cuda.cuStreamBeginCapture_v2(VOID(stream), 0) == 0
    result = cuda.cuEventRecord(VOID(event), VOID(stream))
    assert cuda.cuStreamIsCapturing(VOID(stream), ctypes.byref(status)) == 0
    assert cuda.cuStreamEndCapture(VOID(stream), ctypes.byref(graph)) == 0
    return [result, status.value]


def event_create(flags: int = 6) -> list[int]:
    event = VOID()
    return [cuda.cuEventCreate(ctypes.byref(event), flags), event.value or 0]


def event_get(event: int, room: bool = True) -> list[Any]:
    handle = Handle()
    result = cuda.cuIpcGetEventHandle(ctypes.byref(handle) if room else None, VOID(event))
    return [result, bytes(handle.bytes).hex()]


def event_open(handle: str, room: bool = True) -> list[int]:
    event = VOID()
    given = Handle((ctypes.c_ubyte * 64)(*bytes.fromhex(handle)))
    return [cuda.cuIpcOpenEventHandle(ctypes.byref(event) if room else None, given), event.value or 0]


def stream_create() -> list[int]:
    stream = VOID()
    return [cuda.cuStreamCreate(ctypes.byref(stream), 1), stream.value or 0]


def stand(stream: int, address: int) -> int:
    """The stream goes on when the word at the address is 1."""
    return int(cuda.cuStreamWaitValue32_v2(VOID(stream), U64(address), ctypes.c_uint32(1), 1))


def fill_later(address: int, value: int, count: int, stream: int) -> int:
    return int(cuda.cuMemsetD8Async(U64(address), ctypes.c_ubyte(value), ctypes.c_size_t(count), VOID(stream)))


def create(size: int, types: int = 1) -> list[int]:
    prop = (ctypes.c_uint32 * 8)(1, types, 1, 0)
    handle = U64()
    return [cuda.cuMemCreate(ctypes.byref(handle), ctypes.c_size_t(size), prop, U64(0)), handle.value]


def map_handle(handle: int, size: int) -> list[int]:
    access = (ctypes.c_uint32 * 3)(1, 0, 3)
    address = U64()
    error = (
        cuda.cuMemAddressReserve(ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_size_t(0), U64(0), U64(0))
        or cuda.cuMemMap(address, ctypes.c_size_t(size), ctypes.c_size_t(0), U64(handle), U64(0))
        or cuda.cuMemSetAccess(address, ctypes.c_size_t(size), access, ctypes.c_size_t(1))
    )
    return [error, address.value]


def unmap(address: int, size: int) -> int:
    result = cuda.cuMemUnmap(U64(address), ctypes.c_size_t(size))
    return int(result or cuda.cuMemAddressFree(U64(address), ctypes.c_size_t(size)))


def export(handle: int, kind: int = 1, flags: int = 0) -> list[int]:
    fd = ctypes.c_int(-1)
    return [cuda.cuMemExportToShareableHandle(ctypes.byref(fd), U64(handle), kind, U64(flags)), fd.value]


def import_(fd: int, kind: int = 1) -> list[int]:
    handle = U64()
    return [cuda.cuMemImportFromShareableHandle(ctypes.byref(handle), VOID(fd), kind), handle.value]


def pool_create(types: int = 1) -> list[int]:
    """Of device 0."""
    props = (ctypes.c_uint32 * 22)(1, types, 1, 0)
    pool = VOID()
    return [cuda.cuMemPoolCreate(ctypes.byref(pool), props), pool.value or 0]


def pool_current() -> list[int]:
    pool = VOID()
    return [cuda.cuDeviceGetMemPool(ctypes.byref(pool), 0), pool.value or 0]


def pool_alloc(pool: int, size: int, stream: int = 0) -> list[int]:
    address = U64(77)
    made = cuda.cuMemAllocFromPoolAsync(ctypes.byref(address), ctypes.c_size_t(size), VOID(pool), VOID(stream))
    return [made or cuda.cuStreamSynchronize(VOID(stream)), address.value]


def pool_free(address: int, stream: int = 0) -> int:
    return int(cuda.cuMemFreeAsync(U64(address), VOID(stream)) or cuda.cuStreamSynchronize(VOID(stream)))


def pool_export(pool: int, kind: int = 1, flags: int = 0, room: bool = True) -> list[int]:
    fd = ctypes.c_int(-1)
    out = ctypes.byref(fd) if room else None
    return [cuda.cuMemPoolExportToShareableHandle(out, VOID(pool), kind, U64(flags)), fd.value]


def pool_import(fd: int, kind: int = 1, flags: int = 0, room: bool = True) -> list[int]:
    pool = VOID(77)
    out = ctypes.byref(pool) if room else None
    return [cuda.cuMemPoolImportFromShareableHandle(out, VOID(fd), kind, U64(flags)), pool.value or 0]


def pointer_export(address: int, room: bool = True) -> list[Any]:
    data = Handle()
    result = cuda.cuMemPoolExportPointer(ctypes.byref(data) if room else None, U64(address))
    return [result, bytes(data.bytes).hex()]


def pointer_import(pool: int, data: str | None, room: bool = True) -> list[int]:
    address = U64(77)
    given = Handle((ctypes.c_ubyte * 64)(*bytes.fromhex(data))) if data else None
    out = ctypes.byref(address) if room else None
    return [cuda.cuMemPoolImportPointer(out, VOID(pool), ctypes.byref(given) if given else None), address.value]


def pool_attribute(pool: int, attribute: int, value: int | None = None) -> list[int]:
    number = U64(value if value is not None else 77)
    call = cuda.cuMemPoolGetAttribute if value is None else cuda.cuMemPoolSetAttribute
    return [call(VOID(pool), attribute, ctypes.byref(number)), number.value]


def pool_access(pool: int, flags: int | None = None, kind: int = 1, device: int = 0) -> list[int]:
    got, place = ctypes.c_int(77), (ctypes.c_uint32 * 2)(kind, device)
    if flags is None:
        return [cuda.cuMemPoolGetAccess(ctypes.byref(got), VOID(pool), place), got.value]
    access = (ctypes.c_uint32 * 3)(kind, device, flags)
    return [cuda.cuMemPoolSetAccess(VOID(pool), access, ctypes.c_size_t(1)), flags]


def without_context(name: str, *arguments: Any) -> Any:
    context = VOID()
    assert cuda.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0
    found = CALLS[name](*arguments)
    assert cuda.cuCtxPushCurrent_v2(context) == 0
    return found


def in_capture(stream: int, name: str, *arguments: Any) -> list[Any]:
    """What the call gives, and what has become of the capture."""
    status, graph = ctypes.c_int(), VOID()
    assert cuda.cuStreamBeginCapture_v2(VOID(stream), 0) == 0
    found = CALLS[name](*arguments)
    assert cuda.cuStreamIsCapturing(VOID(stream), ctypes.byref(status)) == 0
    cuda.cuStreamEndCapture(VOID(stream), ctypes.byref(graph))
    return [found, status.value]


def in_a_fork(name: str, *arguments: Any) -> list[Any]:
    """What the call gives in a process that was forked from this one."""
    ours, its = os.pipe()
    if not os.fork():
        os.write(its, json.dumps(CALLS[name](*arguments)).encode())
        os._exit(0)
    os.close(its)
    with os.fdopen(ours) as told:
        found = json.loads(told.read())
    os.wait()
    return list(found)


def attribute(number: int) -> list[int]:
    value = ctypes.c_int()
    return [cuda.cuDeviceGetAttribute(ctypes.byref(value), number, 0), value.value]


def send_fd(path: str, fd: int) -> int:
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(path)
        socket.send_fds(to, [b"x"], [fd])
    return 0


def take_fd(path: str) -> int:
    """Listens there, says so, and takes the descriptor that comes."""
    with socket.socket(socket.AF_UNIX) as at:
        at.bind(path)
        at.listen()
        print(json.dumps("listening"), flush=True)
        with at.accept()[0] as one:
            return socket.recv_fds(one, 1, 1)[1][0]


def close_fd(fd: int) -> int:
    os.close(fd)
    return 0


class Process(ctypes.Structure):
    """nvmlProcessInfo_t"""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Utilization(ctypes.Structure):
    """nvmlProcessesUtilizationInfo_t"""

    _fields_ = [("version", ctypes.c_uint), ("count", ctypes.c_uint), ("since", ctypes.c_ulonglong), ("list", VOID)]


def nvml_device(index: int) -> tuple[Any, Any]:
    nvml, device = ctypes.CDLL("libnvidia-ml.so.1"), VOID()
    assert nvml.nvmlInit_v2() == 0
    assert nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0
    return nvml, device


def processes(index: int) -> list[list[int]]:
    nvml, device = nvml_device(index)
    infos, count = (Process * 64)(), ctypes.c_uint(64)
    assert nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), infos) == 0
    return [[info.pid, info.used] for info in infos[: count.value]]


def devices() -> list[int]:
    """The last byte of each device's UUID, which tells simulated ones apart."""
    count, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    found = []
    for index in range(count.value):
        assert cuda.cuDeviceGetUuid_v2(uuid, index) == 0
        found.append(uuid[15])
    return found


def boards() -> list[int]:
    """The same of NVML's."""
    nvml, _ = nvml_device(0)
    count, found = ctypes.c_uint(), []
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
    for index in range(count.value):
        text = ctypes.create_string_buffer(96)
        assert nvml.nvmlDeviceGetUUID(nvml_device(index)[1], text, 96) == 0
        found.append(int(text.value[-2:], 16))
    return found


def utilization(index: int) -> list[int]:
    nvml, device = nvml_device(index)
    found = []
    for room in (0, 71, 100):
        old, samples = (ctypes.c_uint64 * (4 * 100))(), (ctypes.c_uint64 * (5 * 100))()
        count, fresh = ctypes.c_uint(room), Utilization(ctypes.sizeof(Utilization) | 1 << 24, room)
        fresh.list = ctypes.cast(samples, VOID) if room else None
        array, since = old if room else None, ctypes.c_ulonglong(0)
        found += [nvml.nvmlDeviceGetProcessUtilization(device, array, ctypes.byref(count), since), count.value]
        found += [nvml.nvmlDeviceGetProcessesUtilizationInfo(device, ctypes.byref(fresh)), fresh.count]
    return found


CALLS: dict[str, Callable[..., Any]] = {
    "prepare": prepare,
    "devices": devices,
    "boards": boards,
    "alloc": alloc,
    "alloc_async": alloc_async,
    "alloc_managed": alloc_managed,
    "alloc_host": alloc_host,
    "map": map_memory,
    "free": free,
    "get": get,
    "open": open_,
    "close": close,
    "fill": fill,
    "read": read,
    "copy": copy,
    "range": address_range,
    "pointer": pointer,
    "info": info,
    "reset": reset,
    "event_create": event_create,
    "event_destroy": lambda event: cuda.cuEventDestroy_v2(VOID(event)),
    "event_get": event_get,
    "event_open": event_open,
    "open_elsewhere": open_elsewhere,
    "captured_record": captured_record,
    "record": lambda event, stream: cuda.cuEventRecord(VOID(event), VOID(stream)),
    "query": lambda event: cuda.cuEventQuery(VOID(event)),
    "wait": lambda event: cuda.cuEventSynchronize(VOID(event)),
    "stream": stream_create,
    "stream_wait": lambda stream, event: cuda.cuStreamWaitEvent(VOID(stream), VOID(event), 0),
    "stream_sync": lambda stream: cuda.cuStreamSynchronize(VOID(stream)),
    "create": create,
    "map_handle": map_handle,
    "unmap": unmap,
    "release": lambda handle: cuda.cuMemRelease(U64(handle)),
    "export": export,
    "import": import_,
    "send_fd": send_fd,
    "pool_create": pool_create,
    "pool_current": pool_current,
    "pool_destroy": lambda pool: cuda.cuMemPoolDestroy(VOID(pool)),
    "pool_set": lambda pool: cuda.cuDeviceSetMemPool(0, VOID(pool)),
    "pool_trim": lambda pool: cuda.cuMemPoolTrimTo(VOID(pool), ctypes.c_size_t(0)),
    "pool_alloc": pool_alloc,
    "pool_free": pool_free,
    "pool_export": pool_export,
    "pool_import": pool_import,
    "pointer_export": pointer_export,
    "pointer_import": pointer_import,
    "pool_attribute": pool_attribute,
    "pool_access": pool_access,
    "without_context": without_context,
    "in_capture": in_capture,
    "in_a_fork": in_a_fork,
    "attribute": attribute,
    "take_fd": take_fd,
    "close_fd": close_fd,
    "stand": stand,
    "processes": processes,
    "utilization": utilization,
    "fill_later": fill_later,
}

for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(CALLS[name](*arguments)), flush=True)
