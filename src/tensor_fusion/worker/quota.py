"""The quota page: memory shared with all sessions of this worker, in which they reserve device memory and note
how much of the disk the image cache takes, and count what their clients ask for.

Sessions of one secret are a tenant: what they reserve is counted together as well, under a limit of their own.

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

PAGE_BYTES = 131072 + 4096 + 65536 + 131072
ROWS = 1024
DEVICES = 16
MAGIC = 0x5446_4C49_4D49_5431
TOTALS = 64
CELLS = 4096
FIGURES = CELLS + 8 * DEVICES * ROWS
_WORD = struct.Struct("@Q")  # in the machine's order, which is the page's: so the eight bytes are written at once
_CELLS = struct.Struct(f"<{DEVICES}Q")
_FIGURES = struct.Struct("<5Q24x")
_LIMIT, _TENANT, _NUMBERS = 40, 48, 56  # behind the figures: of the row's tenant, and of its devices


@dataclass(frozen=True)
class Figures:
    """What a session has counted of its client."""

    calls: int  # all that it has asked for
    round_trips: int  # of these, what it waited for
    received: int  # bytes
    sent: int
    contexts: int  # bit d: it has a context on device d of the worker


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
        self._tenants: dict[bytes, set[int]] = {}  # rows of each
        self._numbers: dict[bytes, int] = {}

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
        for offset, value in ((_LIMIT, limit), (_TENANT, self._numbers[tenant]), (_NUMBERS, numbers)):
            _WORD.pack_into(self.memory, self._about(row) + offset, value)

    def limit(self, tenant: bytes, limit: int) -> None:
        """The tenant's limit is another from now on; what it holds already stays."""
        for row in self._tenants.get(tenant, ()):
            _WORD.pack_into(self.memory, self._about(row) + _LIMIT, limit)

    @staticmethod
    def _about(row: int) -> int:
        return FIGURES + _FIGURES.size * row

    def reserved(self, device: int) -> int:
        """Bytes that all sessions have reserved on a device."""
        value: int = _WORD.unpack_from(self.memory, TOTALS + 8 * device)[0]
        return value

    def held(self, row: int) -> tuple[int, ...]:
        """Bytes that one session has reserved, by device."""
        return _CELLS.unpack_from(self.memory, CELLS + _CELLS.size * row)

    def figures(self, row: int) -> Figures:
        return Figures(*_FIGURES.unpack_from(self.memory, self._about(row)))

    def close(self) -> None:
        os.close(self.fd)
