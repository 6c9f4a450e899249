"""Asks one NVML library everything: `python nvml_program.py LIBRARY [--lenient]` prints one JSON object.

For every function that api/nvml says runs in the session and has no event set or sample, or that it refuses, or that
has one of the lists that are empty: the result and the caller's memory after a call with valid arguments, and the
results with each pointer in turn left out. The same program runs on the driver itself and on the
client, so that the two can be compared byte for byte. With `--lenient`, for NVIDIA's own library, which crashes when
some pointers or handles are NULL and leaves some bytes of its structs unwritten, no pointer or handle is left out, all
memory is zero before the call, and nothing that is refused is called: with rights it would set something.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from tensor_fusion.apigen.model import Model, Op, load  # noqa: E402

ROOM = 16384
LENIENT = "--lenient" in sys.argv
FILLER = 0 if LENIENT else 0xA5
MISSING = 13  # what the session answers for a function that the driver does not have
LENGTH = 96


def remote(model: Model) -> Iterator[Op]:
    """The operations of NVML that belong to an exported function of a device, or of none."""
    for operation in model.apis[1].ops:
        if operation.prototype and all(field.kind in ("", "nvmldevice") for field in operation.fields):
            yield operation


# Answered in the client: what there is none of, and what is near what.
LOCAL = (
    "nvmlDeviceGetEncoderSessions", "nvmlDeviceGetFBCSessions", "nvmlDeviceGetAccountingPids",
    "nvmlDeviceGetGpuInstances", "nvmlDeviceGetGpuInstancePossiblePlacements",
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2", "nvmlDeviceGetGridLicensableFeatures",
    "nvmlDeviceGetGridLicensableFeatures_v2", "nvmlDeviceGetGridLicensableFeatures_v3", "nvmlSystemGetHicVersion",
    "nvmlGetExcludedDeviceCount", "nvmlDeviceSetCpuAffinity", "nvmlDeviceClearCpuAffinity",
)  # fmt: skip


def beside(model: Model) -> Iterator[tuple[str, dict[str, str]]]:
    """The other functions, and the types of their parameters."""
    for line in model.apis[1].lines.values():
        prototype = model.apis[1].prototype(line.name)
        if prototype and (line.name in LOCAL or line.kind == "refused"):
            yield line.name, {p.name: p.type for p in prototype.params}


class Arguments:
    """Valid arguments of one function, and the memory behind them."""

    def __init__(self, model: Model, operation: Op, device: int) -> None:
        assert operation.prototype
        roles = {field.name: field for field in operation.fields}
        self.values: list[int] = []
        self.memory: list[ctypes.Array[ctypes.c_ubyte]] = []
        self.pointers: list[int] = []
        for position, parameter in enumerate(operation.prototype.params):
            role = roles[parameter.name].role
            if role == "handle":
                self.values.append(device)
            elif role == "value":
                self.values.append(LENGTH if parameter.name in ("length", "size") else 0)
            else:
                room = (ctypes.c_ubyte * ROOM)(*[FILLER] * ROOM)
                if role == "outversioned":
                    size = model.types.size(parameter.type.removesuffix("*").strip())
                    ctypes.memset(room, 0, size)
                    ctypes.c_uint32.from_buffer(room).value = size | 1 << 24
                self.memory.append(room)
                self.pointers.append(position)
                self.values.append(ctypes.addressof(room))

    def written(self) -> list[str]:
        """The memory, without the filler behind what was written."""
        return [bytes(room).rstrip(bytes([FILLER])).hex() for room in self.memory]


def call(function: Callable[..., Any], values: list[int]) -> int:
    return int(function(*[ctypes.c_uint64(value) for value in values]))


def main() -> int:
    library = ctypes.CDLL(sys.argv[1])
    model = load(ROOT / "api")
    assert library.nvmlInit_v2() == 0
    device = ctypes.c_uint64()
    assert library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
    answers: dict[str, dict[str, object]] = {}
    for operation in remote(model):
        function = getattr(library, operation.name, None)
        if function is None:
            answers[operation.name] = {"valid": MISSING, "memory": None, "null": None, "handle": None}
            continue
        arguments = Arguments(model, operation, device.value)
        valid = call(function, arguments.values)
        memory = arguments.written()
        null = []
        for position in () if LENIENT else arguments.pointers:
            without = Arguments(model, operation, device.value)
            without.values[position] = 0
            null.append(call(function, without.values))
        wrong = None
        assert operation.prototype
        first = operation.prototype.params[0].type if operation.prototype.params else ""
        if first == "nvmlDevice_t" and not LENIENT:
            wrong = call(function, [0, *arguments.values[1:]])
        answers[operation.name] = {"valid": valid, "memory": memory, "null": null, "handle": wrong}
    for name, types in () if LENIENT else beside(model):
        function = getattr(library, name)
        rooms = {n: (ctypes.c_ubyte * ROOM)() for n, t in types.items() if t.endswith("*")}
        for n in (n for n, t in types.items() if t == "unsigned int *"):
            rooms[n][0] = 4  # a count: so much room there is
        good = {n: device.value if t == "nvmlDevice_t" else 0 for n, t in types.items()}
        good |= {n: ctypes.addressof(room) for n, room in rooms.items()}
        valid = call(function, list(good.values()))
        memory = [bytes(room).rstrip(b"\0").hex() for room in rooms.values()]
        other = [call(function, list((good | {n: v}).values())) for n in good for v in (0, 1) if not (v and good[n])]
        answers[name] = {"valid": valid, "memory": memory, "null": other, "handle": None}
    assert library.nvmlShutdown() == 0
    sys.stdout.write(json.dumps(answers) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
