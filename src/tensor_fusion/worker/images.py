"""The image cache of sessions in the full jail, which read there and know nothing but the names of their own images.

A name is the SHA-256 of the bytes: who has it has had the image. Such a session hands a new image over as a file in
memory; it says which ones it has used, and which one is damaged. Nothing of that is believed: the bytes are hashed here
before they get their name, and before they lose it. One event loop thread enters; a thread beside it writes, in order.
The layout and the order of removal are those of native/session/code/images_store.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import stat
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import Packet

KEEP, USED, DAMAGED = range(3)  # the packet's argument
HASH_BYTES = 32
LEAST, MOST = 64 << 10, 1 << 30  # bytes of an image
PIECE = 1 << 20
BLOCK = 4096
SPARE_FROM = 1 << 30  # of a smaller cache nothing more than needed is removed
UNFINISHED = "new-"
UNFINISHED_SECONDS = 600
# Of one session, which wait to be looked at; more are not kept.
WAITING_MOST = 16


def made(folder: Path) -> str:
    """Make the folder, if it is not there; the reason why sessions will keep nothing in it, or an empty text."""
    try:
        for place in (*reversed(folder.parents), folder):
            place.mkdir(0o700, exist_ok=True)
        about = folder.stat()
    except OSError as error:
        return f"{error.filename} cannot be made: {error.strerror}"
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        return f"others than this user ({os.geteuid()}) can write there"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "this user may not write there"


class Member(Protocol):
    """A session, as far as it has images."""

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...


class Images:
    def __init__(self, folder: Path, bound: int) -> None:
        """`bound`: bytes of the disk."""
        self._folder = folder
        self._bound = bound
        self._total: int | None = None  # nobody has looked yet
        self._jobs: deque[tuple[int, Callable[[], None]]] = deque()
        self._waiting: Counter[int] = Counter()
        self._task: asyncio.Task[None] | None = None

    def said(self, session: Member, packet: Packet, descriptor: int | None) -> None:
        """A packet about an image. The descriptor is ours from now on."""
        name = packet.body[:HASH_BYTES].hex()
        job: Callable[[], None] | None = None
        if packet.argument == KEEP and descriptor is not None:
            given, who, size = descriptor, session.name, packet.value
            job = lambda: self._keep(who, given, size, name)  # noqa: E731
        elif packet.argument == USED:
            job = lambda: self._used(name)  # noqa: E731
        elif packet.argument == DAMAGED:
            job = lambda: self._damaged(name)  # noqa: E731
        if job is None or self._waiting[session.id] >= WAITING_MOST:
            if descriptor is not None:
                os.close(descriptor)
            return
        self._waiting[session.id] += 1
        self._jobs.append((session.id, job))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._jobs:
            session, job = self._jobs.popleft()
            try:
                await asyncio.to_thread(job)
            except OSError as error:
                LOGGER.warning("an image is not kept: %s", error)
            self._waiting[session] -= 1
            if not self._waiting[session]:
                del self._waiting[session]
        self._task = None

    async def close(self) -> None:
        """What was handed over is written."""
        if self._task:
            await self._task

    # On the thread that writes

    def _keep(self, who: str, descriptor: int, size: int, name: str) -> None:
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_size != size or not LEAST <= size <= min(MOST, self._bound):
                LOGGER.warning("%s hands over an image that is none, or too large", who)
                return
            if os.path.lexists(self._folder / name) or not self._make_room(_taken(size)):
                return
            unfinished = self._folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(8)}"
            try:
                if self._copy(descriptor, unfinished, size) == name:
                    unfinished.rename(self._folder / name)
                    self._total = (self._total or 0) + _taken(size)
                else:
                    LOGGER.warning("%s hands over an image whose bytes are not those that it names", who)
            finally:
                unfinished.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    @staticmethod
    def _copy(descriptor: int, path: Path, size: int) -> str:
        """The hash of what was copied: the bytes may change meanwhile, and there may be fewer."""
        digest = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123 - with flags
            for at in range(0, size, PIECE):
                piece = os.pread(descriptor, min(PIECE, size - at), at)
                if not piece:
                    break
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()

    def _used(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            path = self._folder / name
            os.utime(path, ns=(time.time_ns(), path.lstat().st_mtime_ns), follow_symlinks=False)

    def _damaged(self, name: str) -> None:
        path = self._folder / name
        digest = hashlib.sha256()
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
                while piece := file.read(PIECE):
                    digest.update(piece)
        except FileNotFoundError:
            return
        if digest.hexdigest() != name:
            LOGGER.warning("the image %s of the cache is damaged and is removed", name)
            path.unlink(missing_ok=True)
            self._total = None

    def _make_room(self, size: int) -> bool:
        """Remove what was not used for longest, until so many bytes fit, and some more where that costs little."""
        if self._total is not None and self._total + size <= self._bound:
            return True
        files: list[tuple[int, int, Path]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode):
                    continue
                if entry.name.startswith(UNFINISHED):
                    if about.st_mtime + UNFINISHED_SECONDS < time.time():
                        Path(entry.path).unlink(missing_ok=True)
                elif len(entry.name) == 2 * HASH_BYTES and not entry.name.strip("0123456789abcdef"):
                    taken = max(_taken(about.st_size), 512 * about.st_blocks)
                    files.append((about.st_atime_ns, taken, Path(entry.path)))
        total = sum(taken for _, taken, _ in files)
        most = self._bound - size
        spare = self._bound // 16 if self._bound >= SPARE_FROM else 0
        wanted = most - spare if total > most > spare else most
        for _, taken, path in sorted(files):
            if total <= wanted:
                break
            path.unlink(missing_ok=True)
            total -= taken
        self._total = total
        return total <= most


def _taken(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
