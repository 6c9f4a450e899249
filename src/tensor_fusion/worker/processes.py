"""Which processes a client is shown as users of a device: those of its own machine and tenant.

Sessions know nothing of each other, so the supervisor answers. What a client says of itself (its number, and of which
machine and process namespace that is) narrows what it sees and never widens it: besides, the worker must have seen both
come from the same address, or through the same segment, with the same secret. Who does not say where it is sees itself.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable, Iterator

from tensor_fusion.worker.protocol import Packet, PacketType
from tensor_fusion.worker.quota import DEVICES
from tensor_fusion.worker.sessions import Session, Sessions

# Of struct tpw_process: number in the client's machine, the session's own, bytes reserved; so many in a packet.
_PROCESS = struct.Struct("<IIQ")
IN_A_PACKET = 16
_NUMBER = 0xFFFF_FFFF


def visible(asking: Session, serving: Iterable[Session]) -> Iterator[Session]:
    """The session that asks is one of them."""
    for session in serving:
        if session is asking or (
            asking.machine
            and session.machine == asking.machine
            and session.place == asking.place
            and hmac.compare_digest(session.tenant, asking.tenant)
        ):
            yield session


def answer(sessions: Sessions, asking: Session, question: Packet) -> Packet:
    """Those that have a context on the device in question, in the order of their numbers, behind the one named."""
    device, after = question.value >> 32, question.value & _NUMBER
    device = asking.sees[device] if device < len(asking.sees) else device
    found: dict[int, tuple[int, int]] = {}
    for session in visible(asking, sessions.serving()):
        number = session.connection[2] if session.connection else 0
        if device < DEVICES and number > after and sessions.figures(session).contexts >> device & 1:
            # A program that has begun another in its place may have two for a moment: the later one counts.
            found[number] = (session.process.pid, sessions.held(session)[device])
    first = sorted(found)[:IN_A_PACKET]
    body = b"".join(_PROCESS.pack(number, *found[number]) for number in first)
    return Packet(PacketType.LISTED, question.argument, value=len(first) | len(found) - len(first) << 32, body=body)
