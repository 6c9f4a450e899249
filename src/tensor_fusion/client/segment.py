"""Look into a worker's shared segment from the client's side, step by step.

Standard library only, but for one call into libteleport: the segment's words are atomic, and Python has no
compare-and-swap with which to claim a slot.
"""

from __future__ import annotations

import errno
import mmap
import os
import pwd
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tensor_fusion.abi import Asked, Teleport
from tensor_fusion.config import MEGABYTE, UserError
from tensor_fusion.worker.protocol import (
    PROTOCOL_VERSION,
    SEGMENT_MAGIC,
    SEGMENT_SERVING,
    Greeting,
    Role,
    Welcome,
    apart,
)

# struct tp_segment_header of native/ring/tp_segment.h; the tests ask the compiler whether it is so.
_HEADER = struct.Struct("<QIIQQ16s40sI")
HEARTBEAT_AT = 128
ARENA_AT = (4096 + 64 * 8192 + 65535) // 65536 * 65536
MAGIC = SEGMENT_MAGIC
SMALLEST = 16 * MEGABYTE
# A heart beats every few milliseconds; this long without a beat, and it stands still.
PULSE_TIME = 1.0
ANSWER_TIME = 10.0
SPEED_BYTES = 4 * MEGABYTE
SPEED_TIME = 1.0
UNCACHED = 300.0
UNCACHED_REMEDY = (
    "so it is mapped uncached and everything will be slow. KVM maps the memory of ivshmem-plain write-back by itself; "
    "look whether the guest's MTRRs or PAT (dmesg: x86/PAT) or a passed-through device without snoop control make it "
    "uncached, and give the device 64-bit prefetchable memory (a q35 machine with UEFI does)"
)


@dataclass(frozen=True)
class Header:
    version: int
    state: int
    size: int
    epoch: int
    schema: bytes
    boot_id: str
    release: int


def user() -> str:
    identity = os.geteuid()
    try:
        return f"user {pwd.getpwuid(identity).pw_name}"
    except KeyError:
        return f"the user with id {identity}"


def remedy(path: Path) -> str:
    """How a user that is not root gets at the file."""
    if "/sys/" in f"{path}/" and path.name.startswith("resource"):
        return "install the udev rule that 'tensor-fusion vm' prints, or run the program as root"
    return "start the worker with --shmem-group and a group that this user is in"


class SegmentFile:
    """A segment that is mapped. Raises UserError with what is wrong with the file."""

    def __init__(self, path: Path, megabytes: int | None) -> None:
        self.path = path
        fd = _open(path)
        try:
            self.size = os.fstat(fd).st_size
            if megabytes is not None and self.size != megabytes * MEGABYTE:
                raise UserError(
                    f"{path} has {describe(self.size)}, not the {megabytes} MB that are asked for; "
                    "use the size that the worker was started with (-M)."
                )
            if self.size < SMALLEST:
                raise UserError(f"{path} has {describe(self.size)}; a segment has {describe(SMALLEST)} at least.")
            self.memory = mmap.mmap(fd, self.size)
        except OSError as error:
            hint = "; a kernel in lockdown (secure boot) forbids it" if error.errno == errno.EPERM else ""
            raise UserError(f"{path} cannot be mapped: {error.strerror}{hint}.") from error
        finally:
            os.close(fd)

    def __enter__(self) -> SegmentFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.memory.close()

    def header(self) -> Header:
        """Raises UserError when no worker of this version is serving here."""
        magic, version, state, size, epoch, schema, boot_id, release = self._header_words()
        if magic == 0xFFFF_FFFF_FFFF_FFFF:
            raise UserError(f"{self.path} reads as all ones: the device is not enabled; write 1 to its file 'enable'.")
        if magic != MAGIC:
            what = "is empty: no worker has prepared it" if magic == 0 else "holds something else than a segment"
            raise UserError(
                f"{self.path} {what}; start tensor-fusion-worker -n shmem on the same file "
                "(in a virtual machine check share=on and mem-path first)."
            )
        if version != PROTOCOL_VERSION:
            raise UserError(apart(f"The worker of {self.path}", version, release, us="client", them="worker"))
        if size != self.size:
            raise UserError(
                f"The worker published a segment of {describe(size)}, but {self.path} has {describe(self.size)}; "
                "start the virtual machine and the worker with the same size."
            )
        if state != SEGMENT_SERVING:
            raise UserError(f"The worker of {self.path} has ended; start it again.")
        boot = boot_id.partition(b"\0")[0].decode("ascii", "replace")
        return Header(version, state, size, epoch, schema, boot, release)

    def _header_words(self) -> tuple[int, int, int, int, int, bytes, bytes, int]:
        words: tuple[int, int, int, int, int, bytes, bytes, int] = _HEADER.unpack_from(self.memory)
        return words

    def pulse(self) -> float:
        """Beats of the worker's heart per second. Raises UserError when it stands still."""
        first, since = self._beats(), time.monotonic()
        while time.monotonic() - since < PULSE_TIME:
            time.sleep(0.02)
            beats = self._beats() - first
            if beats > 5:
                return float(beats / (time.monotonic() - since))
        if self._beats() != first:
            return float((self._beats() - first) / PULSE_TIME)
        raise UserError(
            f"The worker's heart in {self.path} stands still: the worker has ended or is stopped, or this is not its "
            "memory (in a virtual machine check share=on first, then mem-path; the file can have been made again)."
        )

    def _beats(self) -> int:
        value: int = struct.unpack_from("<Q", self.memory, HEARTBEAT_AT)[0]
        return value

    def read_speed(self) -> float:
        """MB/s of the best of a few reads, of more on a busy machine, so that it does not look like uncached memory."""
        count = min(SPEED_BYTES, self.size - ARENA_AT)
        self.memory[ARENA_AT : ARENA_AT + 4096]
        best, reads, until = 0.0, 0, time.perf_counter() + SPEED_TIME
        while reads < 3 or (best < UNCACHED and time.perf_counter() < until):
            begun = time.perf_counter()
            self.memory[ARENA_AT : ARENA_AT + count]
            best = max(best, count / 1e6 / (time.perf_counter() - begun))
            reads += 1
        return best

    def ask(self, secret: str, version: str, program: str, role: Role) -> Welcome:
        """The worker's answer to a greeting: the proof of both directions. Raises UserError when there is none."""
        teleport = Teleport()
        greeting = Greeting.build(
            teleport.schema,
            role=role,
            client_pid=os.getpid(),
            secret=secret,
            connection_version=version,
            program=program,
        )
        answers: list[tuple[Asked, bytes]] = []

        def ask() -> None:
            answers.append(teleport.ask(self.memory, int(ANSWER_TIME * 1000), greeting))

        # The slot belongs to the thread that asks, whose end the kernel marks there: a while after its function has
        # ended, and in memory that must still be mapped.
        thread = threading.Thread(target=ask, name="greeting")
        thread.start()
        thread.join()
        task = Path(f"/proc/self/task/{thread.native_id}")
        until = time.monotonic() + 1.0
        while task.exists() and time.monotonic() < until:
            time.sleep(0.001)
        outcome, raw = answers[0]
        if outcome is Asked.NO_SLOT:
            raise UserError(f"All places of {self.path} are taken; end a client.")
        if outcome is Asked.NOT_SEEN:
            raise UserError(
                f"The worker of {self.path} is alive but does not see what this side writes; check share=on in the "
                "virtual machine's memory backend first, then that both use the same file."
            )
        welcome = Welcome.parse(raw) if outcome is Asked.ANSWERED else None
        if welcome is None:
            raise UserError(
                f"The worker of {self.path} saw the greeting but did not answer within {ANSWER_TIME:.0f} s; "
                "look at its log (TF_ENABLE_LOG=1)."
            )
        return welcome


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; start tensor-fusion-worker -n shmem on it, and in a virtual machine look for the "
            "device with 'tensor-fusion vm --check'."
        ) from error
    except PermissionError as error:
        missing = "written" if os.access(path, os.R_OK, effective_ids=True) else "read"
        raise UserError(f"{path} cannot be {missing} by {user()}; {remedy(path)}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.") from error


def describe(size: int) -> str:
    whole, rest = divmod(size, MEGABYTE)
    return f"{whole} MB" if not rest else f"{size} bytes"
