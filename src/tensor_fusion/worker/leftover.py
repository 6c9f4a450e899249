"""Segments that outlive their worker: who has one open, who takes it away, and what is said of it.

A client or a virtual machine that has a segment mapped keeps its memory in use after its worker has ended, in order or
by SIGKILL. So each worker on a segment has a *keeper*, a process that does nothing while the worker lives. When the
worker is gone and the file is still there, the keeper waits for the last one that has it open and takes it away, unless
another worker has begun on it meanwhile. Where the keeper was killed too (systemd kills all of a service), the next
worker that starts on this machine does it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tensor_fusion.config import MEGABYTE
from tensor_fusion.worker.protocol import SEGMENT_MAGIC, SEGMENT_SERVING

SHARED_MEMORY = Path("/dev/shm")
SMALLEST_MEGABYTES = 16
# The first words of struct tp_segment_header: magic, version, state, size, epoch.
_WORDS = struct.Struct("<QIIQQ")
LOOK_SECONDS = 0.5
# A younger file may be of one who is about to begin on it.
SWEPT_AFTER = 60.0
# Somebody who only looks, as a keeper does, has the file open for some microseconds.
_LOOKS, _BETWEEN_LOOKS = 4, 0.02


class Openers(Enum):
    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"  # on a file system without leases


def openers(fd: int) -> Openers:
    """Whether another open file or mapping leads to this file: only if none does is a write lease granted."""
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # not SIGIO, which would end us if somebody opened it just now
    for look in range(_LOOKS):
        if look:
            time.sleep(_BETWEEN_LOOKS)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return Openers.UNKNOWN
        else:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return Openers.NONE
    return Openers.SOME


def same_file(fd: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except OSError:
        return False
    ours = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


@dataclass(frozen=True)
class Begun:
    """What a worker wrote when it began on the file; another one writes another epoch."""

    magic: int
    version: int
    state: int
    size: int
    epoch: int

    @property
    def by_worker(self) -> bool:
        return self.magic == SEGMENT_MAGIC

    @property
    def killed(self) -> bool:
        """Whether it has not said that it ended, of one that holds no lock any more."""
        return self.by_worker and self.state == SEGMENT_SERVING


def begun(fd: int) -> Begun:
    return Begun(*_WORDS.unpack(os.pread(fd, _WORDS.size, 0).ljust(_WORDS.size, b"\0")))


def holds_nothing(fd: int) -> bool:
    """Whether all bytes are zero, as QEMU makes the file of a machine that starts before its worker."""
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # from here on there is none
                return True
        part = os.pread(fd, MEGABYTE, at)
        if part.count(0) != len(part):
            return False
        at += MEGABYTE
    return True


def take_away(fd: int, path: Path) -> Openers:
    """Remove the file if nobody has it open and no worker has locked it; who has it open."""
    found = openers(fd)
    if found is Openers.NONE:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Openers.SOME
        if same_file(fd, path):
            path.unlink(missing_ok=True)
    return found


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


# The keeper


def start_keeper(fd: int, path: Path) -> None:
    """Fork it, before there are threads and before the file is mapped. It is no child of the worker's: init's."""
    place = os.fstat(fd)
    told, _ = os.pipe()  # the other end is closed with the worker; no session gets it
    between = os.fork()
    if between:
        os.close(told)
        os.waitpid(between, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            _keep(told, path, (place.st_dev, place.st_ino))
    finally:
        os._exit(0)


def _keep(told: int, path: Path, place: tuple[int, int]) -> None:
    # Nobody waits for its words, and whoever reads the worker's is to see their end.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.dup2(told, 3)
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number > 3:
            with suppress(OSError):  # the one by which the folder was read
                os.close(number)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.read(3, 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    epoch: int | None = None
    while True:
        try:
            fd = _open(path)
        except FileNotFoundError:
            return
        try:
            found, now = os.fstat(fd), begun(fd).epoch
            if (found.st_dev, found.st_ino) != place or (epoch is not None and now != epoch):
                return
            epoch = now
            if take_away(fd, path) is not Openers.SOME:
                return
        finally:
            os.close(fd)
        time.sleep(LOOK_SECONDS)


# The next worker's start


def sweep(own: Path, folder: Path = SHARED_MEMORY) -> Iterator[str]:
    """Take away what workers that are gone have left under other names; a sentence for each, also for what stays."""
    for path in sorted(folder.iterdir()):
        with suppress(FileNotFoundError, PermissionError):  # gone meanwhile, or another user's
            named = path.lstat()
            ours = stat.S_ISREG(named.st_mode) and named.st_uid == os.geteuid() and named.st_nlink == 1
            sized = named.st_size >= SMALLEST_MEGABYTES * MEGABYTE and named.st_size % MEGABYTE == 0
            if not ours or not sized or path == own or time.time() - named.st_mtime < SWEPT_AFTER:
                continue
            fd = _open(path)
            try:
                if begun(fd).by_worker:
                    yield from _look_at(fd, path, named.st_size // MEGABYTE)
            finally:
                os.close(fd)


def _look_at(fd: int, path: Path, megabytes: int) -> Iterator[str]:
    found = take_away(fd, path)
    if found is Openers.NONE:
        yield f"{path}, {megabytes} MB, was left by a worker that is gone; it is removed."
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # a worker has it
    yield f"{path}, {megabytes} MB, was left by a worker that is gone, and a client or a virtual machine has it open."
