"""Where the native files lie, and the calls into them: the only module of the product that imports ctypes."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from tensor_fusion.config import UserError

SCHEMA_BYTES = 16
GREETING_BYTES = 256
WELCOME_BYTES = 512
_PR_SET_PDEATHSIG = 1


def native_folder() -> Path:
    """The folder with client/, bin/, lib/ and coverage.json."""
    chosen = os.environ.get("TF_NATIVE_DIR")
    return Path(chosen).absolute() if chosen else Path(__file__).resolve().parent / "_native"


def native_file(relative: str) -> Path:
    """One native file, or a sentence that says which is missing."""
    path = native_folder() / relative
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the native files are not installed here; install the package with pip, "
            "or set TF_NATIVE_DIR to a folder that has them.",
            exit_code=1,
        )
    return path


class Native(Protocol):
    """What the supervisor needs from native code."""

    schema: bytes

    def segment(self, memory: mmap.mmap, owners: mmap.mmap) -> SegmentCalls:
        """The calls for a segment and its owners table, which must stay mapped as long as they are made."""

    def boot_id(self) -> str:
        """This machine's boot id; "" when it has none."""


class SegmentCalls(Protocol):
    """The worker's side of one shared segment that this process maps; native/ring/tp_segment.h says what each does."""

    def format(self, epoch: int) -> None: ...
    def close(self) -> None: ...
    def greeting(self, timeout_ms: int) -> tuple[int, bytes, str] | None:
        """Beat the heart and look for a client, releasing the interpreter: its slot, greeting and machine's boot id."""

    def grant(self, slot: int) -> tuple[int, int] | None:
        """First granule and staging blocks of the client's run; None when the arena has no room."""

    def answer(self, slot: int, accepted: bool, welcome: bytes) -> None: ...
    def release(self, slot: int) -> None: ...
    def beat(self, slot: int) -> tuple[int, bool]:
        """The client's beat, and whether its process has ended."""

    def stopped(self, slot: int, is_stopped: bool) -> None:
        """Tell the client whether its session's process is stopped."""

    def guard(self) -> bool:
        """Survive that somebody truncates the file; False if this process cannot."""

    def was_cut(self) -> bool:
        """Whether somebody has."""


class Teleport:
    """libteleport's C interface."""

    def __init__(self) -> None:
        path = native_file("client/libteleport.so.1")
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UserError(f"{path} cannot be loaded: {error}.", exit_code=1) from error
        digest = (ctypes.c_uint8 * SCHEMA_BYTES)()
        self._library.tp_schema_hash.argtypes = [ctypes.c_void_p]
        self._library.tp_schema_hash.restype = None
        self._library.tp_schema_hash(digest)
        self.schema = bytes(digest)

    def fetch_connection(self, url: str) -> tuple[str, str]:
        """The connection string that the URL answers with, or "" and the sentence why not. May take minutes."""
        text, why = ctypes.create_string_buffer(1026), ctypes.create_string_buffer(2048)
        size = ctypes.c_size_t
        self._library.tp_wait_begin()  # which makes it say what it waits for
        status = self._library.tp_fetch_connection(url.encode(), text, size(len(text)), why, size(len(why)))
        self._library.tp_wait_end()
        return ("", why.value.decode("utf-8", "replace")) if status else (text.value.decode("utf-8", "replace"), "")

    def segment(self, memory: mmap.mmap, owners: mmap.mmap) -> SegmentCalls:
        return _Segment(self._library, self.schema, memory, owners)

    def boot_id(self) -> str:
        text = ctypes.create_string_buffer(40)
        self._library.tp_boot_id(text)
        return text.value.decode("ascii", "replace")

    def ask(self, memory: mmap.mmap, timeout_ms: int, greeting: bytes) -> tuple[Asked, bytes]:
        """Greet through a segment as a client would, and leave when this thread ends; the outcome and the welcome."""
        welcome = ctypes.create_string_buffer(WELCOME_BYTES)
        function = self._library.tp_segment_ask
        function.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_char_p]
        outcome = function(_address(memory), timeout_ms, greeting, welcome)
        return Asked(outcome), welcome.raw


class Asked(IntEnum):
    """What became of a greeting through a segment."""

    ANSWERED = 0
    NO_SLOT = 1
    NOT_SEEN = 2
    NO_ANSWER = 3


class _Segment:
    def __init__(self, library: ctypes.CDLL, schema: bytes, memory: mmap.mmap, owners: mmap.mmap) -> None:
        self._schema = schema
        self._base, self._owners = _address(memory), _address(owners)
        self._size = len(memory)
        word, number, pointer = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p

        def function(name: str, result: type[ctypes._SimpleCData[Any]] | None, *types: Any) -> Any:
            found = library[name]
            found.restype, found.argtypes = result, types
            return found

        self._format = function("tp_segment_format", None, pointer, word, word, ctypes.c_char_p)
        self._close = function("tp_segment_close", None, pointer)
        self._greeting = function("tp_segment_greeting", ctypes.c_int, pointer, number, pointer, pointer)
        self._grant = function("tp_segment_grant", ctypes.c_bool, pointer, word, pointer, number, pointer, pointer)
        self._answer = function("tp_segment_answer", None, pointer, number, ctypes.c_bool, ctypes.c_char_p)
        self._release = function("tp_segment_release", None, pointer, word, pointer, number)
        self._beat = function("tp_segment_beat", word, pointer, number, pointer)
        self._stopped = function("tp_segment_stopped", None, pointer, number, ctypes.c_bool)
        self._guard = function("tp_segment_guard", ctypes.c_bool, pointer, word)
        self._was_cut = function("tp_segment_was_cut", ctypes.c_bool)

    def format(self, epoch: int) -> None:
        self._format(self._base, self._size, epoch, self._schema)

    def close(self) -> None:
        self._close(self._base)

    def greeting(self, timeout_ms: int) -> tuple[int, bytes, str] | None:
        greeting, boot_id = ctypes.create_string_buffer(GREETING_BYTES), ctypes.create_string_buffer(40)
        slot = self._greeting(self._base, timeout_ms, greeting, boot_id)
        return None if slot < 0 else (slot, greeting.raw, boot_id.value.decode("ascii", "replace"))

    def grant(self, slot: int) -> tuple[int, int] | None:
        first, blocks = ctypes.c_uint32(), ctypes.c_uint32()
        arguments = (self._base, self._size, self._owners, slot, ctypes.byref(first), ctypes.byref(blocks))
        return (first.value, blocks.value) if self._grant(*arguments) else None

    def answer(self, slot: int, accepted: bool, welcome: bytes) -> None:
        if len(welcome) != WELCOME_BYTES:
            raise ValueError(f"a welcome has {WELCOME_BYTES} bytes, not {len(welcome)}")
        self._answer(self._base, slot, accepted, welcome)

    def release(self, slot: int) -> None:
        self._release(self._base, self._size, self._owners, slot)

    def beat(self, slot: int) -> tuple[int, bool]:
        over = ctypes.c_int()
        beat: int = self._beat(self._base, slot, ctypes.byref(over))
        return beat, over.value != 0

    def stopped(self, slot: int, is_stopped: bool) -> None:
        self._stopped(self._base, slot, is_stopped)

    def guard(self) -> bool:
        return bool(self._guard(self._base, self._size))

    def was_cut(self) -> bool:
        return bool(self._was_cut())


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def stop_with_parent(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A function for the child between fork and exec: the kernel signals the child when the caller's thread dies."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arm


_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1


def landlock_version() -> int:
    """The version of the kernel's interface, from 1; less where it has none or it is switched off."""
    syscall = ctypes.CDLL(None).syscall
    syscall.restype = ctypes.c_long
    found = syscall(
        ctypes.c_long(_LANDLOCK_CREATE_RULESET),
        ctypes.c_void_p(None),
        ctypes.c_size_t(0),
        ctypes.c_uint(_LANDLOCK_VERSION),
    )
    return int(found)


NVML_NOT_SUPPORTED, NVML_NOT_FOUND = 3, 6
_NVML_TEXT = 96
_MEMORY_V2 = 2 << 24
_MOST_PROCESSES = 4096
_NOT_AVAILABLE = (1 << 64) - 1


class _NvmlMemory(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [
        (name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")
    ]


class _NvmlProcess(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("gpu_instance", ctypes.c_uint)]
    _fields_ += [("compute_instance", ctypes.c_uint)]


class _NvmlSample(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("time", ctypes.c_ulonglong)]
    _fields_ += [(name, ctypes.c_uint) for name in ("sm", "memory", "encoder", "decoder")]


class _NvmlTwo(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint), ("second", ctypes.c_uint)]


class NvmlError(Exception):
    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")
        self.code = code


class Nvml:
    """NVML in this process: what it says of a GPU. Raises NvmlError; one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._call("nvmlInit_v2")

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = self._library[name]
        except AttributeError:  # an older library
            raise NvmlError(name, NVML_NOT_SUPPORTED) from None
        if code := function(*arguments):
            raise NvmlError(name, code)

    def _number(self, name: str, device: ctypes.c_void_p, *arguments: int, wide: bool = False) -> int:
        value = ctypes.c_ulonglong() if wide else ctypes.c_uint()
        self._call(name, device, *arguments, ctypes.byref(value))
        return int(value.value)

    def device(self, uuid: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(found))
        return found

    def index(self, device: ctypes.c_void_p) -> int:
        return self._number("nvmlDeviceGetIndex", device)

    def minor(self, device: ctypes.c_void_p) -> int:
        return self._number("nvmlDeviceGetMinorNumber", device)

    def name(self, device: ctypes.c_void_p) -> str:
        text = ctypes.create_string_buffer(_NVML_TEXT)
        self._call("nvmlDeviceGetName", device, text, _NVML_TEXT)
        return text.value.decode("ascii", "replace")

    def utilization(self, device: ctypes.c_void_p) -> tuple[int, int]:
        """Percent of the last moments in which kernels ran, and in which memory was read or written."""
        rates = _NvmlTwo()
        self._call("nvmlDeviceGetUtilizationRates", device, ctypes.byref(rates))
        return rates.first, rates.second

    def memory(self, device: ctypes.c_void_p) -> dict[str, int]:
        found = _NvmlMemory(version=ctypes.sizeof(_NvmlMemory) | _MEMORY_V2)
        self._call("nvmlDeviceGetMemoryInfo_v2", device, ctypes.byref(found))
        return {name: int(getattr(found, name)) for name in ("total", "reserved", "free", "used")}

    def temperature(self, device: ctypes.c_void_p) -> int:
        return self._number("nvmlDeviceGetTemperature", device, 0)

    def milliwatts(self, device: ctypes.c_void_p) -> int:
        return self._number("nvmlDeviceGetPowerUsage", device)

    def millijoules(self, device: ctypes.c_void_p) -> int:
        """Since the driver was loaded."""
        return self._number("nvmlDeviceGetTotalEnergyConsumption", device, wide=True)

    def megahertz(self, device: ctypes.c_void_p) -> tuple[int, int]:
        """Of the multiprocessors and of the memory."""
        return self._number("nvmlDeviceGetClockInfo", device, 1), self._number("nvmlDeviceGetClockInfo", device, 2)

    def processes(self, device: ctypes.c_void_p) -> dict[int, int | None]:
        """Bytes of each process that has a context; None where the driver does not tell."""
        found, room = (_NvmlProcess * _MOST_PROCESSES)(), ctypes.c_uint(_MOST_PROCESSES)
        self._call("nvmlDeviceGetComputeRunningProcesses_v3", device, ctypes.byref(room), found)
        listed = found[: min(room.value, _MOST_PROCESSES)]
        return {one.pid: None if one.used == _NOT_AVAILABLE else int(one.used) for one in listed}

    def shares(self, device: ctypes.c_void_p, since: float) -> dict[int, int]:
        """Percent of the multiprocessors' time by process, of the newest sample since that time; none has none."""
        found, room = (_NvmlSample * _MOST_PROCESSES)(), ctypes.c_uint(_MOST_PROCESSES)
        name = "nvmlDeviceGetProcessUtilization"
        try:
            self._call(name, device, found, ctypes.byref(room), ctypes.c_ulonglong(int(since * 1e6)))
        except NvmlError as error:
            if error.code == NVML_NOT_FOUND:
                return {}
            raise
        listed = sorted(found[: min(room.value, _MOST_PROCESSES)], key=lambda one: int(one.time))
        return {one.pid: int(one.sm) for one in listed}
