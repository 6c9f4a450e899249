"""What kind of file it is, and its lines."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from tensor_fusion.config import UserError
from tensor_fusion.dump import pcap, slot
from tensor_fusion.dump.connection import Connection, Direction, looks_like_client
from tensor_fusion.dump.damage import Damage
from tensor_fusion.dump.network import Network
from tensor_fusion.dump.schema import Schema
from tensor_fusion.worker.protocol import MAGIC

_PIECE = 1 << 20
_NONE = (
    "this is no capture: a file of tcpdump or Wireshark (pcap, pcapng), the bytes of one direction of a connection "
    "from its greeting or welcome on, or a copy of a shared segment"
)


def dump(path: Path, schema: Schema | None = None) -> Iterator[str]:
    """The lines of a capture. Raises UserError, behind the lines before it, with a sentence for each damage."""
    schema = schema or Schema()
    try:
        with path.open("rb") as file:
            damages = yield from _lines(file, schema)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", 1) from error
    if damages:
        raise UserError("\n".join(f"{path}, offset {damage.at}: {damage.sentence}." for damage in damages), 1)


def _lines(file: BinaryIO, schema: Schema) -> Generator[str, None, list[Damage]]:
    start = file.read(8)
    file.seek(0)
    if start.startswith(pcap.STARTS):
        network = Network(schema)
        yield from network.lines(file)
        return network.damages
    if start == slot.START:
        slots = slot.Slots(schema)
        yield from slots.lines(file)
        return slots.damages
    try:
        if start != MAGIC:
            raise Damage(0, _NONE)
        yield from _stream(file, schema)
    except Damage as damage:
        return [damage]
    return []


def _stream(file: BinaryIO, schema: Schema) -> Iterator[str]:
    """One direction, as "Follow TCP stream" saves it. Of a worker's, the control connection's is meant."""
    data = file.read(_PIECE)
    client = looks_like_client(data)
    if client is None:
        raise Damage(len(data), "the file ends inside its greeting or welcome")
    direction = Direction(Connection(schema), from_client=client)
    while data:
        yield from direction.feed(data)
        data = file.read(_PIECE)
    direction.end()
