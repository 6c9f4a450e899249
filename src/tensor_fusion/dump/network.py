"""Connections in a capture of the network: segments of TCP put in order, and each direction decoded.

A connection is one of ours when its first bytes are a greeting; others are passed over, and so are those whose
beginning was not captured. What comes out of order is kept up to a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from tensor_fusion.dump.connection import Connection, Direction
from tensor_fusion.dump.damage import Damage
from tensor_fusion.dump.pcap import Segment, segments
from tensor_fusion.dump.schema import Schema
from tensor_fusion.worker.hello import HANDSHAKE
from tensor_fusion.worker.protocol import MAGIC

AHEAD_MOST = 16 << 20  # bytes of one direction that wait for earlier ones
CONNECTIONS_MOST = 4096
_WRAP = 1 << 32
Pair = tuple[tuple[bytes, int], tuple[bytes, int]]


@dataclass
class _Flow:
    """One direction as it was captured. `next` is the number of the byte to come, as TCP counts."""

    next: int
    decoder: Direction | None = None
    ahead: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    ahead_bytes: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)  # position in the stream, offset in the file
    position: int = 0
    over: bool = False

    def place(self, at: int) -> int:
        """Offset in the file of a position in the stream."""
        found = [(position, offset) for position, offset in self.places if position <= at]
        return found[-1][1] + at - found[-1][0] if found else 0


@dataclass
class _Both:
    number: int
    connection: Connection
    client: _Flow
    worker: _Flow | None = None


class Network:
    """The lines of a capture; what was damaged is in `damages` when they are over."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._starts: dict[Pair, int] = {}  # sequence number of the first byte, by direction
        self._known: dict[Pair, _Both] = {}
        self._count = 0
        self._first: float | None = None
        self.damages: list[Damage] = []

    def lines(self, file: BinaryIO) -> Iterator[str]:
        """Of every connection, in the order of the packets."""
        try:
            for segment in segments(file):
                yield from self._take(segment)
        except Damage as damage:
            self.damages.append(damage)
        for both in [*self._known.values()]:
            for flow in (both.client, both.worker):
                if flow and not flow.over:
                    self._end(both, flow)
        if not self._count:
            self.damages.append(Damage(0, "no connection to a worker begins in this capture"))

    def _end(self, both: _Both, flow: _Flow) -> None:
        try:
            if flow.ahead:
                first = min(flow.ahead, key=lambda number: (number - flow.next) % _WRAP)
                missing, offset = (first - flow.next) % _WRAP, flow.ahead[first][1]
                raise Damage(-offset, f"{missing} bytes before this packet are missing in the capture")
            if flow.decoder:
                flow.decoder.end()
        except Damage as damage:
            self._damaged(both, flow, damage)

    def _damaged(self, both: _Both, flow: _Flow, damage: Damage) -> None:
        """In the file's offsets; a negative one is such already."""
        flow.over = True
        flow.ahead.clear()
        whose = "client" if flow is both.client else "worker"
        place = -damage.at if damage.at < 0 else flow.place(damage.at)
        self.damages.append(Damage(place, f"connection {both.number}, from the {whose}: {damage.sentence}"))

    def _take(self, segment: Segment) -> Iterator[str]:
        pair = (segment.source, segment.target)
        back = (segment.target, segment.source)
        if segment.syn:
            if len(self._starts) < CONNECTIONS_MOST or pair in self._starts:
                self._starts[pair] = (segment.sequence + 1) % _WRAP
            if not segment.acknowledges:
                self._known.pop(pair, None)  # the ports are used again
            return
        if not segment.data and not segment.missing:
            return
        both = self._known.get(pair) or self._known.get(back)
        if both is None:
            both = self._begins(pair, segment)
            if both is None:
                return
        if both.worker is None and self._known.get(back) is both:
            both.worker = _Flow(self._starts.get(pair, segment.sequence), Direction(both.connection, from_client=False))
        flow = both.client if self._known.get(pair) is both else both.worker
        if flow is None or flow.over:
            return
        self._first = segment.time if self._first is None else self._first
        head = f"{segment.time - self._first:12.6f} {both.number} "
        try:
            for line in _ordered(flow, segment):
                yield head + line
        except Damage as damage:
            self._damaged(both, flow, damage)

    def _begins(self, pair: Pair, segment: Segment) -> _Both | None:
        """A connection whose first bytes are a greeting, or a hello that has one in it."""
        first = self._starts.get(pair, segment.sequence)
        ours = segment.data.startswith(MAGIC) or (segment.data.startswith(HANDSHAKE) and MAGIC in segment.data)
        if first != segment.sequence or not ours or len(self._known) >= CONNECTIONS_MOST:
            return None
        self._count += 1
        connection = Connection(self._schema)
        both = _Both(self._count, connection, _Flow(first, Direction(connection, from_client=True)))
        self._known[pair] = both
        return both


def _ordered(flow: _Flow, segment: Segment) -> Iterator[str]:
    """Puts a segment in its place; lines of what is now in order. What came twice counts once."""
    if segment.missing:
        raise Damage(-segment.at, "the packet was captured only in part (tcpdump -s 0 captures all of it)")
    distance = (segment.sequence - flow.next) % _WRAP
    if distance < _WRAP // 2 and distance:
        known = flow.ahead.get(segment.sequence, (b"", 0))[0]
        if len(segment.data) > len(known):
            flow.ahead[segment.sequence] = (segment.data, segment.at)
            flow.ahead_bytes += len(segment.data) - len(known)
        if flow.ahead_bytes > AHEAD_MOST:
            raise Damage(-segment.at, f"more than {AHEAD_MOST} bytes came before earlier ones, which are missing")
        return
    yield from _fed(flow, segment.sequence, segment.data, segment.at)
    while flow.ahead:
        ready = [number for number in flow.ahead if (flow.next - number) % _WRAP < _WRAP // 2]
        if not ready:
            return
        for number in ready:
            data, at = flow.ahead.pop(number)
            flow.ahead_bytes -= len(data)
            yield from _fed(flow, number, data, at)


def _fed(flow: _Flow, sequence: int, data: bytes, at: int) -> Iterator[str]:
    old = (flow.next - sequence) % _WRAP
    if old >= len(data) or flow.decoder is None:
        return
    data, at = data[old:], at + old
    decoded = flow.decoder.at
    flow.places = [found for found, after in zip(flow.places, flow.places[1:], strict=False) if after[0] > decoded] + (
        flow.places[-1:]
    )
    flow.places.append((flow.position, at))
    flow.position += len(data)
    flow.next = (flow.next + len(data)) % _WRAP
    yield from flow.decoder.feed(data)
