"""The quota page: memory in which the sessions of this worker reserve device memory, note how much they have added to
the image cache, and count what their clients ask for.

Each session can write its own cell and read all of the page; limits, and what is said of a row, the supervisor alone
writes. What stands in a cell is its session's word, which a hostile client may have taken over.
Sessions of one secret are a tenant: what they reserve is counted together as well, under a limit of their own.

Layout: docs/wire-format.md. The page is sealed against a change of its size, so that no session can make the
supervisor fault by truncating it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass

ROWS = 1024
DEVICES = 16
MAGIC = 0x5446_4C49_4D49_5432
TABLE = 4096  # what the supervisor says of each row
CELLS = TABLE + 32 * ROWS
CELL_BYTES = 4096
PAGE_BYTES = CELLS + CELL_BYTES * ROWS
FIGURES = 8 * DEVICES  # in a cell, behind what is reserved on each device
STORED = FIGURES + 40
_WORD = struct.Struct("@Q")  # in the machine's order, which is the page's: so the eight bytes are written at once
_HELD = struct.Struct(f"<{DEVICES}Q")
_FIGURES = struct.Struct("<5Q")
_ABOUT = struct.Struct("<3Q8x")  # of a row: limit of its tenant, number of its tenant, numbers of its devices
_LIMIT, _ROWS, _STORED = 8, 24, 32


@dataclass(frozen=True)
class Figures:
    """What a session has counted of its client."""

    calls: int  # all that it has asked for
    round_trips: int  # of these, what it waited for
    received: int  # bytes
    sent: int
    contexts: int  # bit d: it has a context on device d of the worker


class QuotaPage:
    def __init__(self, limit_bytes: int) -> None:
        self.fd = os.memfd_create("tensor-fusion-quota", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, PAGE_BYTES)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.memory = mmap.mmap(self.fd, PAGE_BYTES)
            # The same file, open to read: what is mapped by this descriptor cannot be made writable.
            self.read_fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise
        for offset, value in ((0, MAGIC), (_LIMIT, limit_bytes), (16, ROWS)):
            self._write(offset, value)
        self._free = set(range(ROWS))
        self._tenants: dict[bytes, set[int]] = {}  # rows of each
        self._numbers: dict[bytes, int] = {}

    def _write(self, offset: int, value: int) -> None:
        _WORD.pack_into(self.memory, offset, value)

    def _read(self, offset: int) -> int:
        value: int = _WORD.unpack_from(self.memory, offset)[0]
        return value

    def take_row(self) -> int | None:
        """The lowest free row, or None when all are in use."""
        if not self._free:
            return None
        row = min(self._free)
        self._free.remove(row)
        # Sessions look at the rows below this number; it is there before the session in the row is.
        self._write(_ROWS, max(self._read(_ROWS), row + 1))
        return row

    def release_row(self, row: int) -> None:
        """Clear the cell of the dead session in `row`; only after its process has been reaped."""
        cell = self._cell(row)
        stored, known = self._read(cell + STORED), STORED + 8
        for offset in range(cell, cell + known, 8):
            self._write(offset, 0)
        self.memory[cell + known : cell + CELL_BYTES] = bytes(CELL_BYTES - known)  # which nobody reads
        self._write(_STORED, (self._read(_STORED) + stored) % 2**64)
        for offset in range(self._about(row), self._about(row + 1), 8):
            self._write(offset, 0)
        self._free.add(row)
        self._write(_ROWS, max(set(range(ROWS)) - self._free, default=-1) + 1)
        for tenant, rows in list(self._tenants.items()):
            rows.discard(row)
            if not rows:
                del self._tenants[tenant], self._numbers[tenant]

    def let(self, row: int, tenant: bytes, limit: int, devices: tuple[int, ...] = ()) -> None:
        """The session in `row`, which has reserved nothing yet, gets a client of a tenant with a limit in bytes, 0 for
        none. `devices` are the worker's numbers of the devices that it sees, if these are not all."""
        if tenant not in self._tenants:
            self._numbers[tenant] = min(set(range(1, ROWS + 1)) - set(self._numbers.values()))
        self._tenants.setdefault(tenant, set()).add(row)
        numbers = sum(device << 4 * index for index, device in enumerate(devices))
        for index, value in enumerate((limit, self._numbers[tenant], numbers)):
            self._write(self._about(row) + 8 * index, value)

    def limit(self, tenant: bytes, limit: int) -> None:
        """The tenant's limit is another from now on; what it holds already stays."""
        for row in self._tenants.get(tenant, ()):
            self._write(self._about(row), limit)

    @staticmethod
    def _about(row: int) -> int:
        return TABLE + _ABOUT.size * row

    @staticmethod
    def _cell(row: int) -> int:
        return CELLS + CELL_BYTES * row

    def held(self, row: int) -> tuple[int, ...]:
        """Bytes that one session has reserved, by device."""
        return _HELD.unpack_from(self.memory, self._cell(row))

    def figures(self, row: int) -> Figures:
        return Figures(*_FIGURES.unpack_from(self.memory, self._cell(row) + FIGURES))

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.read_fd)
