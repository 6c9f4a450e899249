"""Slots of a shared segment, from a copy of its file: the greeting, and the frames that lie in the rings.

A ring holds what was written last, read or not. Where everything ever written is still there it is decoded from its
beginning; else from the earliest place from which frame follows frame up to what was written last. All of the file is
what clients wrote: indices are bounded before they are used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from tensor_fusion.dump.connection import FRAME_MOST, Connection, Direction
from tensor_fusion.dump.damage import Damage
from tensor_fusion.dump.schema import Schema
from tensor_fusion.worker.protocol import GREETING_BYTES, PROTOCOL_VERSION, WELCOME_BYTES
from tensor_fusion.worker.segment import ARENA, GRANULE, SLOTS

# native/ring/tp_segment.h
START = b"TSEGMENT"
_HEADER = struct.Struct("<8sIIQQ16s40s")
_SLOT_BYTES, _FIRST_SLOT = 8192, 4096
_GREETING, _WELCOME, _COMMANDS, _REPLIES = 256, 512, 1280, 1536
_TAIL = 128
_COMMAND_RING, _REPLY_RING = 2 << 20, 256 << 10
_STATES = {1: "claimed", 2: "greeted", 3: "taken", 4: "accepted", 5: "refused", 6: "ended"}


class Slots:
    """The lines of a segment's file; what was damaged is in `damages` when they are over."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.damages: list[Damage] = []

    def lines(self, file: BinaryIO) -> Iterator[str]:
        """Of each slot that a client has."""
        size = file.seek(0, 2)
        if size < ARENA:
            self.damages.append(Damage(size, f"the file ends before the arena of the segment, which begins at {ARENA}"))
            return
        file.seek(0)
        _, version, _, _, _, schema, _ = _HEADER.unpack(file.read(_HEADER.size))
        if version != PROTOCOL_VERSION or schema != self._schema.hash:
            ours = f"{PROTOCOL_VERSION} and {self._schema.hash.hex()}"
            said = f"the segment has version {version} and schema {schema.hex()}, this version's are {ours}"
            self.damages.append(Damage(8, f"{said}; use that version's dump"))
            return
        used = 0
        for number in range(SLOTS):
            at = _FIRST_SLOT + number * _SLOT_BYTES
            state, first, blocks = struct.unpack("<III", _at(file, at, 12))
            if not state:
                continue
            used += 1
            yield f"slot {number}: {_STATES.get(state, f'state {state}')}, {blocks} staging blocks each way"
            try:
                yield from self._slot(file, at, ARENA + first * GRANULE, size)
            except Damage as damage:
                self.damages.append(Damage(damage.at, f"slot {number}: {damage.sentence}"))
        if not used:
            yield "no slot has a client"

    def _slot(self, file: BinaryIO, at: int, run: int, size: int) -> Iterator[str]:
        connection = Connection(self._schema)
        for offset, bytes_, from_client in ((_GREETING, GREETING_BYTES, True), (_WELCOME, WELCOME_BYTES, False)):
            raw = _at(file, at + offset, bytes_)
            if any(raw):
                try:
                    yield from Direction(connection, from_client=from_client).feed(raw)
                except Damage as damage:
                    raise Damage(at + offset + damage.at, damage.sentence) from None
        if run + _COMMAND_RING + _REPLY_RING > size:
            raise Damage(at + 4, f"its rings begin at {run}, too close to the end of the file ({size})")
        for place, begin, room, from_client in (
            (at + _COMMANDS, run, _COMMAND_RING, True),
            (at + _REPLIES, run + _COMMAND_RING, _REPLY_RING, False),
        ):
            yield from self._ring(file, connection, place, begin, room, from_client=from_client)

    def _ring(
        self, file: BinaryIO, connection: Connection, place: int, begin: int, room: int, *, from_client: bool
    ) -> Iterator[str]:
        (head,), (tail,) = struct.unpack("<Q", _at(file, place, 8)), struct.unpack("<Q", _at(file, place + _TAIL, 8))
        if head - tail not in range(room + 1) or head % 8 or tail % 8:
            raise Damage(place, f"{head} bytes were written and {tail} read, which cannot be in a ring of {room}")
        ring = _at(file, begin, room)
        start = max(0, head - room)
        data = (ring + ring)[start % room : start % room + head - start]
        at = 0 if start == 0 else _earliest(data, from_client=from_client, least=tail - start)
        yield f"{'commands' if from_client else 'replies'}: {head} bytes written, {head - tail} of them unread" + (
            "" if start + at == 0 else f", shown from {start + at}"
        )
        if start + at:
            connection.calls.clear()  # nobody knows any more which answer belongs to which
        direction = Direction(connection, from_client=from_client, framed=True, at=start + at)
        try:
            yield from direction.feed(data[at : tail - start])
            yield from (f"{line}  (unread)" for line in direction.feed(data[tail - start :]))
            direction.end()
        except Damage as damage:
            raise Damage(begin + damage.at % room, damage.sentence) from None


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise Damage(offset + len(data), "the file ends here")
    return data


def _earliest(data: bytes, *, from_client: bool, least: int) -> int:
    """The earliest place from which sizes lead to the end exactly; `least` is one when all is well."""
    smallest = 16 if from_client else 24
    flags = 1 if from_client else 6
    leads = bytearray(len(data) // 8 + 1)
    leads[len(data) // 8] = 1
    best = len(data)
    for at in range(len(data) - smallest, -1, -8):
        size, op, found = struct.unpack_from("<IHH", data, at)
        fits = smallest <= size <= FRAME_MOST and not size % 8 and at + size <= len(data)
        if fits and leads[(at + size) // 8] and op and not found & ~flags:
            leads[at // 8] = 1
            best = at
    return best if best <= least else least
