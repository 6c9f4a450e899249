"""What sessions share with each other: handles, descriptors, and who pays.

One event loop thread enters everything here. A session hands in the descriptor of memory, and gets a handle for it: 64
bytes that name this worker and the entry, with 128 bits that cannot be guessed. Whoever shows it, and is of the same
tenant, gets a descriptor of the same memory. Of an event, and of a pointer into a pool, what the driver gave for it is
kept in its place. What sessions send was written by processes that a hostile client may have taken over: numbers are
looked up, never trusted.

Memory counts once: for whoever allocated it, until it has been freed or its session has ended; then for one of those
who have it mapped. The former payer goes on paying until the next one has said that it does. A pool counts as a whole;
it grows, and its session says so.
"""

from __future__ import annotations

import hmac
import os
import secrets
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import Packet, PacketType

MAGIC = b"TFSHARE\0"
HANDLE_BYTES = 64
_HANDLE = struct.Struct("<8s16sQ16s16x")
# Of struct tpw_shared: handle, block, offset, size, device, error, kind, the driver's handle of an event or a pointer.
_SHARED = struct.Struct("<64sQQQIiI4x64s")
_BODY_BYTES = 256
assert _HANDLE.size == HANDLE_BYTES and _SHARED.size <= _BODY_BYTES

# Descriptors that are kept for one session, and for all.
SHARES_OF_A_SESSION = 2048
# Handles that name nothing, from one session in a second: more are answered without a look.
FAILURES_A_SECOND = 100

# enum tpw_shares
MEMORY, EVENT, PHYSICAL, POOL, POINTER = range(5)
WITHOUT_DESCRIPTOR = (EVENT, POINTER)

# CUresult
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
INVALID_CONTEXT = 201
MAP_FAILED = 205
INVALID_HANDLE = 400
NOT_PERMITTED = 800
NOT_SUPPORTED = 801
# What the driver (580.159.04) has for bytes that are no handle of this kind, and for a handle of what is gone.
ERRORS = {
    MEMORY: (INVALID_VALUE, NOT_PERMITTED),
    EVENT: (MAP_FAILED, MAP_FAILED),
    POINTER: (INVALID_VALUE, INVALID_VALUE),
}
# And for a descriptor of something else that it shares.
DESCRIPTORS = (PHYSICAL, POOL)


class Member(Protocol):
    """A session, as far as it shares."""

    @property
    def tenant(self) -> bytes: ...

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...

    def tell(self, packet: Packet, descriptor: int | None = None) -> None:
        """Send a packet, now or when the session reads again. The descriptor stays the caller's."""


@dataclass
class _Share:
    number: int
    token: bytes
    owner: Member
    descriptor: int | None
    about: tuple[int, ...]  # block, offset, size, device
    kind: int
    native: bytes  # the driver's own handle, of an event or a pointer
    tenant: bytes
    payer: Member
    importers: dict[int, tuple[Member, int]] = field(default_factory=dict)  # by session: how often it was given
    next_payer: Member | None = None  # has been asked
    open: bool = True  # False: the owner has freed it, or has ended

    def handle(self, worker: bytes) -> bytes:
        return _HANDLE.pack(MAGIC, worker, self.number, self.token)


@dataclass
class _Failures:
    second: int = 0
    count: int = 0


def _refusal(error: int) -> bytes:
    return _SHARED.pack(bytes(HANDLE_BYTES), 0, 0, 0, 0, error, 0, b"")


class Shares:
    def __init__(self, most: int) -> None:
        """`most` descriptors are kept at a time."""
        self._most = most
        self._worker = secrets.token_bytes(16)
        self._shares: dict[int, _Share] = {}
        self._last = 0
        self._kept: Counter[int] = Counter()  # descriptors, by session
        self._failures: dict[int, _Failures] = {}
        # Of sessions that have ended and still pay: for what, and how to clear their rows.
        self._rows: dict[int, tuple[set[int], Callable[[], None] | None]] = {}

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def descriptors(self) -> int:
        return sum(self._kept.values())

    def said(self, session: Member, packet: Packet, descriptor: int | None) -> None:
        """A packet about sharing. The descriptor is ours from now on."""
        if packet.type == PacketType.SHARE:
            self._share(session, packet, descriptor)
            return
        if descriptor is not None:
            os.close(descriptor)
        if packet.type == PacketType.IMPORT:
            self._import(session, packet)
        elif packet.type == PacketType.LEAVE:
            share = self._shares.get(packet.value)
            if share:
                self._leave(share, session, packet.argument)
        elif packet.type == PacketType.PAID:
            share = self._shares.get(packet.value)
            if share and share.next_payer is session:
                self._paid(share, session)
        elif packet.type == PacketType.GROWN:
            share = self._shares.get(packet.value)
            if share and share.owner is session and share.kind == POOL and share.open:
                block = max(share.about[0], packet.session_key)
                share.about = (block, 0, block, share.about[3])

    def gone(self, session: Member, clear: Callable[[], None] = lambda: None) -> None:
        """The session has ended; its row of the quota page is cleared when others count what they have of it."""
        self._failures.pop(session.id, None)
        for share in list(self._shares.values()):
            if share.owner is session:
                self._close(share)
            share.importers.pop(session.id, None)
            self._left(share, session)
        del self._kept[session.id]
        pays = {share.number for share in self._shares.values() if share.payer is session}
        if pays:
            self._rows[session.id] = (pays, clear)
        else:
            clear()

    def _settled(self, share: _Share) -> None:
        """Who has paid for it does so no longer."""
        share.payer.tell(Packet(PacketType.RELEASED, value=share.number))
        pays, clear = self._rows.get(share.payer.id, (set(), None))
        pays.discard(share.number)
        if clear and not pays:
            del self._rows[share.payer.id]
            clear()

    def close(self) -> None:
        for share in self._shares.values():
            self._close(share)
        self._shares.clear()

    # Sharing

    def _share(self, session: Member, packet: Packet, descriptor: int | None) -> None:
        _, *about, _, kind, native = _SHARED.unpack_from(packet.body)
        why = self._no_room(session, kind, descriptor)
        if why:
            if descriptor is not None:
                os.close(descriptor)
            LOGGER.warning("%s cannot share: %s", session.name, why)
            session.tell(Packet(PacketType.SHARED, packet.argument, text=why, body=_refusal(OUT_OF_MEMORY)))
            return
        self._last += 1
        share = _Share(
            number=self._last,
            token=secrets.token_bytes(16),
            owner=session,
            descriptor=descriptor,
            about=tuple(about),
            kind=kind,
            native=native,
            tenant=session.tenant,
            payer=session,
        )
        self._shares[share.number] = share
        self._kept[session.id] += 1
        body = _SHARED.pack(share.handle(self._worker), 0, 0, 0, 0, 0, 0, b"")
        session.tell(Packet(PacketType.SHARED, packet.argument, value=share.number, body=body))

    def _no_room(self, session: Member, kind: int, descriptor: int | None) -> str:
        if (descriptor is None) != (kind in WITHOUT_DESCRIPTOR):
            return "no descriptor came, or this worker has none left"
        if self.descriptors >= self._most:
            return f"this worker keeps {self._most} handles already"
        if self._kept[session.id] >= SHARES_OF_A_SESSION:
            return f"this client has {SHARES_OF_A_SESSION} handles already"
        return ""

    # Importing

    def _import(self, session: Member, packet: Packet) -> None:
        kind = _SHARED.unpack_from(packet.body)[6]
        found = self._find(session, packet.body[:HANDLE_BYTES], kind)
        if isinstance(found, _Share) and kind in WITHOUT_DESCRIPTOR:
            body = _SHARED.pack(bytes(HANDLE_BYTES), *found.about, 0, kind, found.native)
            session.tell(Packet(PacketType.IMPORTED, packet.argument, value=found.number, body=body))
            return
        if isinstance(found, _Share):
            _, count = found.importers.get(session.id, (session, 0))
            found.importers[session.id] = (session, count + 1)
            body = _SHARED.pack(bytes(HANDLE_BYTES), *found.about, 0, kind, b"")
            session.tell(Packet(PacketType.IMPORTED, packet.argument, value=found.number, body=body), found.descriptor)
            return
        error, why = found
        if self._failures[session.id].count <= FAILURES_A_SECOND:
            LOGGER.warning("%s shows a handle and is refused: %s", session.name, why)
        session.tell(Packet(PacketType.IMPORTED, packet.argument, text=why, body=_refusal(error)))

    def _find(self, session: Member, handle: bytes, kind: int) -> _Share | tuple[int, str]:
        """What the handle names, or the error and the reason."""
        no_handle, nothing = ERRORS.get(kind, (INVALID_HANDLE, INVALID_HANDLE))
        magic, worker, number, token = _HANDLE.unpack(handle)
        failures = self._failures.setdefault(session.id, _Failures())
        second = int(time.monotonic())
        if failures.second != second:
            failures.second, failures.count = second, 0
        failures.count += 1
        if failures.count > FAILURES_A_SECOND:
            return nothing, f"more than {FAILURES_A_SECOND} handles in a second named nothing"
        share = self._shares.get(number)
        # Compare even when there is no such entry: a number is not to be found by timing.
        same = hmac.compare_digest(share.token if share else self._worker, token)
        tenant = hmac.compare_digest(share.tenant if share else b"", session.tenant)
        if magic != MAGIC or any(handle[_HANDLE.size - 16 :]):
            return no_handle, "these are not the bytes of a handle that a worker made"
        if not hmac.compare_digest(worker, self._worker):
            return no_handle, (
                f"the handle was made by worker {worker.hex()[:8]}, and this is worker {self._worker.hex()[:8]}: "
                "only clients of one worker share"
            )
        if share is None or not same or not share.open:
            return nothing, "what was shared has been freed, or the process that shared it has ended"
        if not tenant:
            return nothing, "what was shared belongs to a client with another secret"
        if kind != share.kind:
            descriptors = kind in DESCRIPTORS and share.kind in DESCRIPTORS
            return NOT_SUPPORTED if descriptors else no_handle, "it is a handle of something else"
        failures.count -= 1
        if share.owner is session and kind in (MEMORY, EVENT):
            return INVALID_CONTEXT, "a handle cannot be opened by the process that made it"
        return share

    # Who pays

    def _leave(self, share: _Share, session: Member, grants: int) -> None:
        """The owner has freed it, or an importer has unmapped what it was given so many times."""
        if session is share.owner and not grants:
            self._close(share)
        elif session.id in share.importers:
            _, count = share.importers[session.id]
            if count > grants:
                share.importers[session.id] = (session, count - grants)
                return
            del share.importers[session.id]
        else:
            return
        self._left(share, session)

    def _close(self, share: _Share) -> None:
        """Nobody can import it any more."""
        if share.descriptor is not None:
            os.close(share.descriptor)
            share.descriptor = None
        if share.open:
            share.open = False
            self._kept[share.owner.id] -= 1

    def _left(self, share: _Share, session: Member) -> None:
        """The session has nothing of it any more. While somebody has been asked, the payer's leaving asks nobody."""
        if share.next_payer is session or (share.payer is session and share.next_payer is None):
            self._move(share)

    def _move(self, share: _Share) -> None:
        """Find somebody else to pay; when there is nobody, nothing is left to be paid for."""
        share.next_payer = next((member for member, _ in share.importers.values()), None)
        if share.next_payer:
            share.next_payer.tell(Packet(PacketType.PAY, session_key=share.about[0], value=share.number))
        else:
            self._settled(share)
            del self._shares[share.number]

    def _paid(self, share: _Share, session: Member) -> None:
        self._settled(share)
        share.payer, share.next_payer = session, None
