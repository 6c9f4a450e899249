"""The quota page: memory shared with all sessions of this worker, in which they reserve device memory and note
how much of the disk the image cache takes, and count what their clients ask for.

Layout: docs/wire-format.md. The page is sealed against a change of its size, so that no session can make the
supervisor fault by truncating it. Sessions add and subtract atomically while the supervisor looks, which is why the
subtraction for a dead session is made by native code.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass

from tensor_fusion.abi import Native

PAGE_BYTES = 131072 + 4096 + 65536
ROWS = 1024
DEVICES = 16
MAGIC = 0x5446_4C49_4D49_5431
TOTALS = 64
CELLS = 4096
FIGURES = CELLS + 8 * DEVICES * ROWS
_WORD = struct.Struct("<Q")
_CELLS = struct.Struct(f"<{DEVICES}Q")
_FIGURES = struct.Struct("<5Q24x")


@dataclass(frozen=True)
class Figures:
    """What a session has counted of its client."""

    calls: int  # all that it has asked for
    round_trips: int  # of these, what it waited for
    received: int  # bytes
    sent: int
    contexts: int  # bit d: it has a context on device d


class QuotaPage:
    def __init__(self, limit_bytes: int, native: Native) -> None:
        self._native = native
        self.fd = os.memfd_create("tensor-fusion-quota", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, PAGE_BYTES)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.memory = mmap.mmap(self.fd, PAGE_BYTES)
        except BaseException:
            os.close(self.fd)
            raise
        for offset, value in ((0, MAGIC), (8, limit_bytes), (16, ROWS)):
            _WORD.pack_into(self.memory, offset, value)
        self._free = set(range(ROWS))

    def take_row(self) -> int | None:
        """The lowest free row, or None when all are in use."""
        if not self._free:
            return None
        row = min(self._free)
        self._free.remove(row)
        return row

    def release_row(self, row: int) -> None:
        """Give back what the dead session in `row` had reserved; only after its process has been reaped."""
        self._native.release_row(self.memory, row)
        self._free.add(row)

    def reserved(self, device: int) -> int:
        """Bytes that all sessions have reserved on a device."""
        value: int = _WORD.unpack_from(self.memory, TOTALS + 8 * device)[0]
        return value

    def held(self, row: int) -> tuple[int, ...]:
        """Bytes that one session has reserved, by device."""
        return _CELLS.unpack_from(self.memory, CELLS + _CELLS.size * row)

    def figures(self, row: int) -> Figures:
        return Figures(*_FIGURES.unpack_from(self.memory, FIGURES + _FIGURES.size * row))

    def close(self) -> None:
        os.close(self.fd)
