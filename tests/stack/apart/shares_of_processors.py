"""A client that may use a part of a device tells in JSON what it finds: codes, counts of multiprocessors, bytes."""

from __future__ import annotations

import ctypes
import json
import sys
import time

MULTIPROCESSOR_COUNT, SM = 16, 1
COUNT_AT = 96  # bytes into CUdevResource, as the driver has it
MIB = 1 << 20

cuda = ctypes.CDLL("libcuda.so.1")
found: dict[str, object] = {}


def call(name: str, *arguments: object) -> int:
    return int(getattr(cuda, name)(*arguments))


def must(name: str, *arguments: object) -> None:
    result = call(name, *arguments)
    assert result == 0, (name, result)


def of_resource(name: str, owner: object) -> int:
    resource = ctypes.create_string_buffer(1024)
    must(name, owner, resource, SM)
    return int.from_bytes(resource.raw[COUNT_AT : COUNT_AT + 4], "little")


def free_bytes() -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    must("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


count, context, created = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
address, affinity = ctypes.c_uint64(), (ctypes.c_uint * 4)()
must("cuInit", 0)
must("cuDeviceGetAttribute", ctypes.byref(count), MULTIPROCESSOR_COUNT, 0)
found["attribute"] = count.value
found["of the device, before a context"] = of_resource("cuDeviceGetDevResource", 0)
must("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
must("cuCtxSetCurrent", context)
found["of the device"] = of_resource("cuDeviceGetDevResource", 0)
found["of the context"] = of_resource("cuCtxGetDevResource", context)
must("cuCtxGetExecAffinity", affinity, 0)
found["affinity"] = affinity[1]
before = free_bytes()
must("cuCtxCreate_v2", ctypes.byref(created), 0, 0)
found["of a created context"] = of_resource("cuCtxGetDevResource", created)
must("cuMemAlloc_v2", ctypes.byref(address), 64 * MIB)
must("cuMemsetD8_v2", address, 1, ctypes.c_size_t(64 * MIB))
must("cuCtxDestroy_v2", created)
found["freed"] = call("cuMemFree_v2", address)
must("cuCtxSetCurrent", context)
must("cuCtxSynchronize")
patience = time.monotonic() + 20
while free_bytes() < before and time.monotonic() < patience:  # a context ends beside its client
    time.sleep(0.02)
found["left behind"] = before - free_bytes()
# A split gives groups within the part, and never more.
resource, groups = ctypes.create_string_buffer(1024), ctypes.create_string_buffer(16 * 1024)
must("cuCtxGetDevResource", context, resource, SM)
number = ctypes.c_uint(1)
found["as much again"] = call(
    "cuDevSmResourceSplitByCount", groups, ctypes.byref(number), resource, None, 0, count.value + 1
)
must("cuDevSmResourceSplitByCount", groups, ctypes.byref(number), resource, None, 0, 1)
found["a split"] = int.from_bytes(groups.raw[COUNT_AT : COUNT_AT + 4], "little")
json.dump(found, sys.stdout)
