"""The file of a shared segment: make it or take it over, keep others away from it, leave nothing behind.

A virtual machine maps the file for as long as it runs, so a file that somebody else has open keeps its inode and its
size whatever happens: a worker that comes after another formats it anew, and one that ends leaves it. Nothing is ever
cut off it, because a process that touches what is gone dies of SIGBUS; and all of it is really allocated, for the same
reason.

The lock (flock) is held by the worker and by its sessions, which inherit the descriptor: as long as one session of a
worker that was killed still runs, and with it the GPU may still write, no other worker begins.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tensor_fusion.config import MEGABYTE, UserError, segment_path
from tensor_fusion.terminal import complain
from tensor_fusion.worker.leftover import (
    SMALLEST_MEGABYTES,
    Openers,
    begun,
    holds_nothing,
    openers,
    same_file,
    start_keeper,
    sweep,
)

MODE = 0o660
SLOTS = 64
GRANULE = 64 << 10
ARENA = (4096 + SLOTS * 8192 + GRANULE - 1) // GRANULE * GRANULE
LARGEST_MEGABYTES = 1 << 20
LARGEST_GROUP = (1 << 32) - 2  # chown takes the next number for "as it is"


@dataclass(frozen=True)
class SegmentSettings:
    """What the command line says of the segment."""

    name: str
    megabytes: int
    group: str | None = None

    @property
    def path(self) -> Path:
        return segment_path(self.name)

    @property
    def shown(self) -> str:
        """As a connection string would name it: a POSIX name with its slash, or the path."""
        return self.name if "/" in self.name else f"/{self.name}"


class Segment:
    """The file, mapped and locked for as long as this lives, and the table of who owns which granule of its arena."""

    def __init__(self, settings: SegmentSettings) -> None:
        self.settings = settings
        self.size = settings.megabytes * MEGABYTE
        _check_size(settings)
        for sentence in sweep(settings.path):
            _say(sentence)
        group = None if settings.group is None else _group_id(settings.group)
        self.fd = _open(settings, self.size)
        self.owners_fd = -1
        self.memory: mmap.mmap | None = None
        self.owners: mmap.mmap | None = None
        try:
            os.fchmod(self.fd, MODE)
            start_keeper(self.fd, settings.path)
            if group is not None:
                _give_to_group(self.fd, settings, group)
            try:
                self.memory = mmap.mmap(self.fd, self.size)
            except OSError as error:
                raise UserError(
                    f"{settings.path} cannot be mapped: {error.strerror}; {_page_hint(self.fd)}."
                ) from error
            self.owners_fd, self.owners = _owners_table(self.size)
        except BaseException:
            self.close()
            raise

    def was_resized(self) -> bool:
        """Whether somebody has changed the size of the file, in which nobody may have met the hole yet."""
        return os.fstat(self.fd).st_size != self.size

    def close(self) -> None:
        """Give the file up; it goes unless somebody else, a virtual machine for example, has it open."""
        if self.owners_fd >= 0:
            os.close(self.owners_fd)
            self.owners_fd = -1
        if self.fd >= 0:
            if same_file(self.fd, self.settings.path):
                found = openers(self.fd)
                if found is Openers.NONE:
                    self.settings.path.unlink(missing_ok=True)
                else:
                    goes = (
                        "it goes with the last of them"
                        if found is Openers.SOME
                        else f"when they have ended: rm {self.settings.path}"
                    )
                    _say(
                        f"{self.settings.path} stays, {self.settings.megabytes} MB of memory: a client or a virtual "
                        f"machine has it open. A worker that is started there takes it again; else {goes}."
                    )
            os.close(self.fd)
            self.fd = -1
        for memory in (self.memory, self.owners):
            if memory is not None:
                memory.close()


def _say(sentence: str) -> None:
    complain(f"tensor-fusion-worker: {sentence}")


def _check_size(settings: SegmentSettings) -> None:
    megabytes = settings.megabytes
    if megabytes < SMALLEST_MEGABYTES:
        raise UserError(
            f"A segment of {megabytes} MB is too small to serve; use -M {SMALLEST_MEGABYTES} at least, 256 is usual."
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEGABYTE
    if megabytes > memory:
        raise UserError(
            f"A segment of {megabytes} MB is larger than this machine's memory, {memory} MB; use a smaller -M."
        )


def _open(settings: SegmentSettings, size: int) -> int:
    """The locked file, with all of its bytes allocated."""
    path = settings.path
    while True:
        try:
            fd, fresh = _open_once(path), False
        except FileNotFoundError:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"{path} cannot be created: {error.strerror}; check the folder and -m.") from error
            fresh = True
        try:
            if not _take(fd, settings):
                os.close(fd)
                continue
            if fresh or os.fstat(fd).st_size == 0:
                try:
                    _allocate(fd, path, size)
                except BaseException:  # no room, or told to end: gigabytes take seconds
                    path.unlink(missing_ok=True)
                    raise
                return fd
            if not _may_be_a_segment(fd, size):
                raise UserError(
                    f"{path} is there and holds something else than a segment; choose another name with -m, "
                    "or remove it."
                )
            if begun(fd).killed:
                _say(f"{path} was left by a worker that was killed; this one takes it.")
            if os.fstat(fd).st_size == size:
                _allocate(fd, path, size)
                return fd
            if openers(fd) is not Openers.NONE:
                raise UserError(
                    f"{path} has {_megabytes(os.fstat(fd).st_size)} and somebody, a virtual machine perhaps, has it "
                    f"open; start the worker with that size, or end whoever uses it before it becomes "
                    f"{settings.megabytes} MB."
                )
            path.unlink()
            os.close(fd)
        except BaseException:
            os.close(fd)
            raise


def _may_be_a_segment(fd: int, size: int) -> bool:
    """A guest may have written over the header of one; what it cannot change is how the file was made."""
    found = os.fstat(fd)
    made_here = found.st_size == size and stat.S_IMODE(found.st_mode) == MODE
    return made_here or begun(fd).by_worker or holds_nothing(fd)


def _open_once(path: Path) -> int:
    """An existing file. Raises FileNotFoundError, or UserError when it is nothing that a worker may take."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(
                f"{path} is a symbolic link, which a worker does not follow; name the file itself."
            ) from error
        if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENOTDIR):
            raise UserError(f"{path} is no regular file; choose another name with -m.") from error
        raise UserError(
            f"{path} cannot be opened: {error.strerror}; it belongs to another user, or choose another name with -m."
        ) from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise UserError(f"{path} is no regular file; choose another name with -m.")
    if found.st_uid != os.geteuid() or found.st_nlink > 1:
        os.close(fd)
        what = "has a second name" if found.st_nlink > 1 else f"belongs to user {found.st_uid}, not to {os.geteuid()}"
        raise UserError(
            f"{path} {what}; remove it or choose another name with -m, and start the worker before the virtual machine."
        )
    return fd


def _take(fd: int, settings: SegmentSettings) -> bool:
    """Lock the file; False when it has lost its name meanwhile. Raises UserError when another worker has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _lock_owner(fd)
        raise UserError(
            f"{settings.shown} belongs to another worker{f' (process {owner})' if owner else ''}; "
            "give this worker another segment with -m, or end that one."
        ) from None
    return same_file(fd, settings.path)


def _lock_owner(fd: int) -> int | None:
    """The process that holds the lock, if the kernel tells: not across the borders of containers."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for words in map(str.split, lines):
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == place and words[4].isdecimal() and int(words[4]) > 0:
            return int(words[4])
    return None


def _allocate(fd: int, path: Path, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        room = os.fstatvfs(fd)
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{path.parent} has room for {_megabytes(room.f_bavail * room.f_frsize)}, not for a segment of "
                f"{_megabytes(size)}; use a smaller -M, or enlarge it (in a container: --shm-size)."
            ) from error
        hint = "ulimit -f is below that" if error.errno == errno.EFBIG else _page_hint(fd)
        raise UserError(f"{path} cannot get {_megabytes(size)}: {error.strerror}; {hint}.") from error


def _page_hint(fd: int) -> str:
    page = os.fstat(fd).st_blksize
    return (
        f"its pages have {_megabytes(page)}, and -M must be a multiple of that"
        if page > MEGABYTE
        else "check -m and -M"
    )


def _group_id(text: str) -> int:
    try:
        number = int(text) if text.isdecimal() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise UserError(f"--shmem-group {text!r} is no group of this machine; use a name or a number.") from None
    if number > LARGEST_GROUP:
        raise UserError(f"--shmem-group {text!r} is no number of a group; use 0 to {LARGEST_GROUP}.")
    return number


def _give_to_group(fd: int, settings: SegmentSettings, group: int) -> None:
    try:
        os.fchown(fd, -1, group)
        os.fchmod(fd, MODE)
    except OSError as error:
        raise UserError(
            f"{settings.path} cannot be given to --shmem-group {settings.group}: {error.strerror}; "
            "a user can name only groups that it is in."
        ) from error


def _owners_table(size: int) -> tuple[int, mmap.mmap]:
    """Memory for the worker and its sessions alone: a u16 for each granule. Sealed: no session can shrink it."""
    length = (size - ARENA) // GRANULE * 2
    fd = os.memfd_create("tensor-fusion-owners", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd, mmap.mmap(fd, length)
    except BaseException:
        os.close(fd)
        raise


def _megabytes(count: int) -> str:
    return f"{count // MEGABYTE} MB" if count >= MEGABYTE else f"{count} bytes"
