"""A worker of another release, played by a relay in front of a real one.

The relay changes the schema in the welcome, and the list that the session shows (the operation `layouts`). Where the
list that it shows has other numbers, it translates those of frames and messages, both ways. So what the client sees is
a worker that was built from another description.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

from tensor_fusion.abi import native_file
from tensor_fusion.apigen.layouts import Layout
from tensor_fusion.worker.protocol import GREETING_BYTES, WELCOME_BYTES

FRAME, REPLY = struct.Struct("<IHHII"), struct.Struct("<IHHIiQ")
ROW = struct.Struct("<QQHHI")
IS_REPLY = 2
RELEASE = 3_004_005  # of the worker that the relay plays: 3.4.5
RELEASE_AT, SCHEMA_AT = 56, 16


@dataclass(frozen=True)
class Row:
    """One row of the list."""

    name: int
    layout: int
    number: int
    flags: int

    def other(self) -> Row:
        """The same name with another layout."""
        return replace(self, layout=self.layout ^ 1)


def name(text: str) -> int:
    return Layout(text, 0, 0, 0).name_hash


def number(text: str) -> int:
    """Of an operation or a message of this build."""
    operations = json.loads(native_file("schema.json").read_text())["operations"]
    return next(int(number) for number, row in operations.items() if row["name"] == text)


def parse(raw: bytes) -> list[Row]:
    return [Row(*row[:4]) for row in ROW.iter_unpack(raw)]


def pack(rows: list[Row]) -> bytes:
    return b"".join(ROW.pack(row.name, row.layout, row.number, row.flags, 0) for row in rows)


def changed(*names: str) -> Callable[[list[Row]], list[Row]]:
    """These have another layout."""
    hashes = [name(text) for text in names]
    return lambda rows: [row.other() if row.name in hashes else row for row in rows]


def without(*names: str) -> Callable[[list[Row]], list[Row]]:
    hashes = [name(text) for text in names]
    return lambda rows: [row for row in rows if row.name not in hashes]


@dataclass
class _Stream:
    """One direction of one connection: what has come of a frame."""

    head: int  # bytes before the frames: the greeting, the welcome
    frames: bool = True
    raw: bytes = field(default=b"", repr=False)


class OtherRelease:
    """Listens; `edit` makes the list that it shows. `raw` is shown in its place, whatever it is.

    `unasked` is sent to the client behind the list: frames of the worker's.
    """

    def __init__(
        self,
        port: int,
        edit: Callable[[list[Row]], list[Row]] = lambda rows: rows,
        *,
        raw: bytes | None = None,
        unasked: bytes = b"",
        release: int = RELEASE,
    ) -> None:
        self._port, self._edit, self._raw, self._unasked, self._release = port, edit, raw, unasked, release
        self._layouts = number("layouts")
        self._to_worker: dict[int, int] = {}
        self._to_client: dict[int, int] = {}
        self.asked = 0  # for its list
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connection = f"native+127.0.0.1+{self._listener.getsockname()[1]}+0"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> OtherRelease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                worker = socket.create_connection(("127.0.0.1", self._port))
                # The role stands in the greeting: data connections have no frames.
                greeting = client.recv(GREETING_BYTES, socket.MSG_WAITALL)
                worker.sendall(greeting)
                control = greeting[12] == 1
                for source, target, stream, change in (
                    (client, worker, _Stream(0, control), self._from_client),
                    (worker, client, _Stream(WELCOME_BYTES, control), self._from_worker),
                ):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pass, args=(source, target, stream, change), daemon=True).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, stream: _Stream, change: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                stream.raw += data
                target.sendall(self._whole(stream, change))
            target.shutdown(socket.SHUT_WR)

    def _whole(self, stream: _Stream, change: Callable[[bytes], bytes]) -> bytes:
        """All whole frames of what has come, changed."""
        out = b""
        if stream.head:
            if len(stream.raw) < stream.head:
                return b""
            out += self._welcome(stream.raw[: stream.head])
            stream.raw, stream.head = stream.raw[stream.head :], 0
        if not stream.frames:
            out, stream.raw = out + stream.raw, b""
            return out
        while len(stream.raw) >= 4 and len(stream.raw) >= (size := int.from_bytes(stream.raw[:4], "little")):
            out, stream.raw = out + change(stream.raw[:size]), stream.raw[size:]
        return out

    def _welcome(self, raw: bytes) -> bytes:
        schema = bytes(value ^ 0xFF for value in raw[SCHEMA_AT : SCHEMA_AT + 16])
        release = struct.pack("<I", self._release)
        return raw[:SCHEMA_AT] + schema + raw[SCHEMA_AT + 16 : RELEASE_AT] + release + raw[RELEASE_AT + 4 :]

    def _from_client(self, frame: bytes) -> bytes:
        (op,) = struct.unpack_from("<H", frame, 4)
        if op == self._layouts:
            self.asked += 1
            return frame
        # What has no number in the list that was shown is sent as it is: the worker then ends the session.
        return frame[:4] + struct.pack("<H", self._to_worker.get(op, op)) + frame[6:]

    def _from_worker(self, frame: bytes) -> bytes:
        size, op, flags, thread, result, transfers = REPLY.unpack_from(frame)
        if op != self._layouts or not flags & IS_REPLY:
            return frame[:4] + struct.pack("<H", self._to_client.get(op, op)) + frame[6:]
        (length,) = struct.unpack_from("<Q", frame, REPLY.size)
        before = parse(frame[REPLY.size + 8 : REPLY.size + 8 + length])
        after = self._edit(before)
        real = {row.name: row.number for row in before if not row.flags & 8}
        moved = {row.number: real[row.name] for row in after if row.name in real and not row.flags & 8}
        self._to_worker.update(moved)
        self._to_client.update({there: shown for shown, there in moved.items()})
        rows = pack(after) if self._raw is None else self._raw
        body = struct.pack("<Q", len(rows)) + rows + bytes(-len(rows) % 8)
        size = REPLY.size + len(body)
        return REPLY.pack(size, op, flags, thread, result, transfers) + body + self._unasked


def moved(rows: list[Row]) -> list[Row]:
    """Every number another one, but that of the list itself."""
    keep = name("layouts")
    ops = [row for row in rows if not row.flags & 8 and row.name != keep]
    (fixed,) = [row for row in rows if row.name == keep]
    numbers = sorted(row.number for row in ops)
    shifted = dict(zip(numbers, [*numbers[7:], *numbers[:7]], strict=True))
    placed = [replace(row, number=shifted[row.number]) for row in ops]
    kinds = [row for row in rows if row.flags & 8]
    return sorted([*placed, fixed], key=lambda row: row.number) + kinds
