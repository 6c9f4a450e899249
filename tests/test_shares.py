"""What the supervisor keeps of what sessions share: who may open it, who pays, and what a session that lies gets."""

from __future__ import annotations

import gc
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensor_fusion.worker import shares as module
from tensor_fusion.worker.protocol import Packet, PacketType
from tensor_fusion.worker.shares import (
    EVENT,
    INVALID_CONTEXT,
    INVALID_HANDLE,
    INVALID_VALUE,
    MAP_FAILED,
    MEMORY,
    NOT_PERMITTED,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    PHYSICAL,
    POINTER,
    POOL,
    Shares,
)

SHARED = struct.Struct("<64sQQQIiI4x64s")
ABOUT = (2 << 20, 512, 1000, 0)


@dataclass
class Session:
    id: int
    tenant: bytes = b""
    told: list[Packet] = field(default_factory=list)
    descriptors: int = 0

    @property
    def name(self) -> str:
        return f"session {self.id}"

    def tell(self, packet: Packet, descriptor: int | None = None) -> None:
        self.told.append(packet)
        if descriptor is not None:
            os.fstat(descriptor)  # it is one
            self.descriptors += 1

    def last(self) -> Packet:
        return self.told[-1]


@pytest.fixture
def shares() -> Iterator[Shares]:
    gc.collect()  # what other tests have left open goes now, and not in the middle
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = Shares(10)
    yield found
    found.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "a descriptor stays"


def share(shares: Shares, session: Session) -> tuple[int, bytes]:
    """The number and the handle."""
    body = SHARED.pack(bytes(64), *ABOUT, 0, MEMORY, b"").ljust(256, b"\0")
    shares.said(session, Packet(PacketType.SHARE, 7, body=body), os.memfd_create("shared"))
    answer = session.last()
    assert (answer.type, answer.argument) == (PacketType.SHARED, 7)
    return answer.value, answer.body[:64]


def ask(shares: Shares, session: Session, handle: bytes) -> tuple[int, int]:
    """The number, 0 if it is refused, and the error."""
    shares.said(session, Packet(PacketType.IMPORT, 9, body=handle.ljust(256, b"\0")), None)
    answer = session.last()
    assert (answer.type, answer.argument) == (PacketType.IMPORTED, 9)
    _, *about, error, _, _ = SHARED.unpack_from(answer.body)
    assert tuple(about) == (ABOUT if answer.value else (0, 0, 0, 0))
    assert bool(answer.text) == (not answer.value), "a refusal says why"
    return answer.value, error


def leave(shares: Shares, session: Session, number: int, grants: int = 0) -> None:
    shares.said(session, Packet(PacketType.LEAVE, grants, value=number), None)


def paid(shares: Shares, session: Session, number: int) -> None:
    shares.said(session, Packet(PacketType.PAID, value=number), None)


def test_who_may_open(shares: Shares) -> None:
    owner, friend, stranger = Session(1, b"secret"), Session(2, b"secret"), Session(3, b"other")
    number, handle = share(shares, owner)
    assert ask(shares, friend, handle) == (number, 0)
    assert friend.descriptors == 1
    assert ask(shares, stranger, handle) == (0, NOT_PERMITTED)
    assert "secret" in stranger.last().text
    assert ask(shares, owner, handle) == (0, INVALID_CONTEXT)
    assert stranger.descriptors == owner.descriptors == 0


def test_handles_are_not_alike_and_not_guessed(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    handles = [share(shares, a)[1] for _ in range(8)]
    assert len({handle[32:48] for handle in handles}) == 8
    for bit in range(512):
        forged = bytearray(handles[0])
        forged[bit // 8] ^= 1 << bit % 8
        # Magic, worker and zeros are those of a handle, or it is none; number and token name something, or nothing.
        bytes_of_it = bit // 8 < 24 or bit // 8 >= 48
        assert ask(shares, Session(100 + bit), bytes(forged)) == (0, INVALID_VALUE if bytes_of_it else NOT_PERMITTED), (
            bit
        )
    assert ask(shares, b, handles[3][:32] + handles[4][32:]) == (0, NOT_PERMITTED), "the token of another"
    assert ask(shares, b, handles[3])[1] == 0


@settings(deadline=None)
@given(st.binary(min_size=64, max_size=64))
def test_any_bytes_are_refused(handle: bytes) -> None:
    shares = Shares(1)
    assert ask(shares, Session(1), handle) == (0, INVALID_VALUE)
    assert ask(shares, Session(1), module.MAGIC + handle[8:]) == (0, INVALID_VALUE)


def test_who_guesses_is_not_looked_at(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    a, b, c = Session(1), Session(2), Session(3)
    _, handle = share(shares, a)
    for _ in range(module.FAILURES_A_SECOND):
        assert ask(shares, b, bytes(64))[1] == INVALID_VALUE
    assert ask(shares, b, handle)[1] == NOT_PERMITTED
    assert ask(shares, c, handle)[1] == 0
    monkeypatch.setattr(time, "monotonic", lambda: 6.0)
    assert ask(shares, b, handle)[1] == 0


def test_another_worker_is_named(shares: Shares) -> None:
    other = Shares(10)
    _, handle = share(other, Session(1))
    b = Session(2)
    assert ask(shares, b, handle) == (0, INVALID_VALUE)
    assert "only clients of one worker" in b.last().text
    other.close()


def test_budgets(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARES_OF_A_SESSION", 4)
    a, b, c = Session(1), Session(2), Session(3)
    numbers = [share(shares, a)[0] for _ in range(4)]
    assert share(shares, a)[0] == 0
    assert SHARED.unpack_from(a.last().body)[5] == OUT_OF_MEMORY
    leave(shares, a, numbers[0])
    assert share(shares, a)[0]
    assert all(share(shares, b)[0] for _ in range(4))
    assert [bool(share(shares, c)[0]) for _ in range(3)] == [True, True, False], "ten in all"
    shares.gone(a)
    assert share(shares, c)[0]


def test_without_a_descriptor_nothing_is_shared(shares: Shares) -> None:
    a = Session(1)
    shares.said(a, Packet(PacketType.SHARE, 1, body=bytes(256)), None)
    assert (a.last().type, a.last().value) == (PacketType.SHARED, 0)
    for kind in (PacketType.IMPORT, PacketType.LEAVE, PacketType.PAID):
        shares.said(a, Packet(kind, body=bytes(256)), os.memfd_create("for nothing"))


def test_events(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    body = SHARED.pack(bytes(64), 0, 0, 0, 0, 0, EVENT, b"n" * 64).ljust(256, b"\0")
    shares.said(a, Packet(PacketType.SHARE, 1, body=body), None)
    number, handle = a.last().value, a.last().body[:64]
    assert number
    assert b"n" * 8 not in a.last().body, "the driver's handle is nobody's to see"
    asked = SHARED.pack(handle, 0, 0, 0, 0, 0, EVENT, b"").ljust(256, b"\0")
    shares.said(b, Packet(PacketType.IMPORT, 2, body=asked), None)
    assert SHARED.unpack_from(b.last().body)[7] == b"n" * 64
    assert ask(shares, b, handle) == (0, INVALID_VALUE), "it is no memory"
    memory = share(shares, a)[1]
    asked = SHARED.pack(memory, 0, 0, 0, 0, 0, EVENT, b"").ljust(256, b"\0")
    shares.said(b, Packet(PacketType.IMPORT, 2, body=asked), None)
    assert b.last().value == 0, "and that is no event"
    assert SHARED.unpack_from(b.last().body)[5] == MAP_FAILED
    leave(shares, a, number)
    shares.said(b, Packet(PacketType.IMPORT, 2, body=SHARED.pack(handle, 0, 0, 0, 0, 0, EVENT, b"")), None)
    assert b.last().value == 0
    assert len(shares) == 1
    shares.said(a, Packet(PacketType.SHARE, 1, body=body), os.memfd_create("of an event there is none"))
    assert a.last().value == 0


def share_as(
    shares: Shares, session: Session, kind: int, block: int = 2 << 20, native: bytes = b""
) -> tuple[int, bytes]:
    body = SHARED.pack(bytes(64), block, 0, block, 0, 0, kind, native).ljust(256, b"\0")
    shares.said(session, Packet(PacketType.SHARE, 1, body=body), None if native else os.memfd_create("shared"))
    return session.last().value, session.last().body[:64]


def ask_as(shares: Shares, session: Session, kind: int, handle: bytes) -> tuple[int, int]:
    """The number, 0 if it is refused, and the error."""
    shares.said(session, Packet(PacketType.IMPORT, 2, body=SHARED.pack(handle, 0, 0, 0, 0, 0, kind, b"")), None)
    return session.last().value, SHARED.unpack_from(session.last().body)[5]


def grown(shares: Shares, session: Session, number: int, size: int) -> None:
    shares.said(session, Packet(PacketType.GROWN, session_key=size, value=number), None)


def test_pools(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    number, handle = share_as(shares, a, POOL)
    memory = share_as(shares, a, PHYSICAL)[1]
    assert ask_as(shares, a, POOL, handle) == (number, 0), "whoever made it may import it"
    assert ask_as(shares, b, POOL, handle) == (number, 0)
    assert a.descriptors == b.descriptors == 1
    assert ask_as(shares, b, PHYSICAL, handle) == (0, NOT_SUPPORTED)
    assert ask_as(shares, b, POOL, memory) == (0, NOT_SUPPORTED)
    assert ask_as(shares, b, POINTER, handle) == (0, INVALID_VALUE)
    assert ask_as(shares, b, POOL, share(shares, a)[1]) == (0, INVALID_HANDLE)
    assert ask_as(shares, Session(3, b"other"), POOL, handle) == (0, INVALID_HANDLE)


def test_a_pool_counts_at_its_highest(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    number, handle = share_as(shares, a, POOL)
    ask_as(shares, b, POOL, handle)
    for session, size in ((a, 6 << 20), (a, 4 << 20), (b, 8 << 20), (Session(3), 8 << 20)):
        grown(shares, session, number, size)
    other = share_as(shares, a, PHYSICAL)[0]
    for wrong in (other, number + 100):
        grown(shares, a, wrong, 8 << 20)
    shares.gone(a)
    assert (b.last().type, b.last().session_key) == (PacketType.PAY, 6 << 20)
    grown(shares, a, number, 10 << 20)
    paid(shares, b, number)
    shares.gone(b)
    assert len(shares) == 0


def test_pointers(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    number, handle = share_as(shares, a, POINTER, 5, b"n" * 64)
    assert number
    assert b"n" * 8 not in a.last().body, "what the driver gave is nobody's to see"
    for session in (a, b):
        assert ask_as(shares, session, POINTER, handle) == (number, 0)
        assert SHARED.unpack_from(session.last().body)[7] == b"n" * 64
    assert ask_as(shares, b, POOL, handle) == (0, INVALID_HANDLE)
    assert ask_as(shares, Session(3, b"other"), POINTER, handle) == (0, INVALID_VALUE)
    leave(shares, a, number)
    assert a.last().type == PacketType.RELEASED, "there is nothing to pay for"
    assert ask_as(shares, b, POINTER, handle) == (0, INVALID_VALUE)


def test_the_last_who_has_it_pays(shares: Shares) -> None:
    a, b, c = Session(1), Session(2), Session(3)
    number, handle = share(shares, a)
    ask(shares, b, handle)
    ask(shares, c, handle)
    leave(shares, a, number)
    assert [p.type for p in a.told] == [PacketType.SHARED], "it pays until somebody else does"
    assert b.last().type == PacketType.PAY
    assert ask(shares, Session(4), handle)[0] == 0
    paid(shares, b, number)
    assert a.last().type == PacketType.RELEASED
    leave(shares, b, number, 1)
    assert c.last().type == PacketType.PAY
    paid(shares, c, number)
    assert b.last().type == PacketType.RELEASED
    leave(shares, c, number, 1)
    assert c.last().type == PacketType.RELEASED
    assert len(shares) == 0


def test_who_was_asked_to_pay_may_just_have_left(shares: Shares) -> None:
    a, b, c = Session(1), Session(2), Session(3)
    number, handle = share(shares, a)
    ask(shares, b, handle)
    ask(shares, c, handle)
    leave(shares, a, number)
    leave(shares, b, number, 1)  # before it has read that it is to pay
    assert c.last().type == PacketType.PAY
    paid(shares, b, number)  # a lie
    assert a.last().type == PacketType.SHARED
    shares.gone(c)
    assert a.last().type == PacketType.RELEASED
    assert len(shares) == 0


def test_the_owner_dies_while_somebody_is_asked(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    number, handle = share(shares, a)
    ask(shares, b, handle)
    leave(shares, a, number)
    cleared: list[int] = []
    shares.gone(a, lambda: cleared.append(1))
    assert [p.type for p in b.told] == [PacketType.IMPORTED, PacketType.PAY], "once"
    assert not cleared, "nobody else counts it yet"
    paid(shares, b, number)
    assert cleared
    leave(shares, b, number, 1)
    assert b.last().type == PacketType.RELEASED
    assert len(shares) == 0


def test_given_again_before_it_was_left(shares: Shares) -> None:
    a, b = Session(1), Session(2)
    number, handle = share(shares, a)
    ask(shares, b, handle)
    ask(shares, b, handle)
    leave(shares, b, number, 1)  # of the first time
    leave(shares, a, number)
    assert b.last().type == PacketType.PAY, "it still has it"


def test_lies_change_nothing(shares: Shares) -> None:
    a, b, liar = Session(1), Session(2), Session(3)
    number, handle = share(shares, a)
    ask(shares, b, handle)
    for grants in (0, 1, 2**32 - 1):
        leave(shares, liar, number, grants)
        leave(shares, liar, number + 1, grants)
    paid(shares, liar, number)
    paid(shares, b, number)
    leave(shares, b, number)  # as if it were its own
    assert ask(shares, Session(4), handle)[0] == number
    assert not liar.told
