"""One connection: its two directions, each decoded as its bytes come.

A direction is a sequence of needs: it names how many bytes it wants next and what they are, gets them, and says lines.
So it takes bytes in pieces of any size, and holds one frame at most.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from tensor_fusion.dump.damage import Damage
from tensor_fusion.dump.schema import Schema
from tensor_fusion.terminal import counted
from tensor_fusion.worker.hello import HANDSHAKE, HEAD_BYTES, BadHello, wanted
from tensor_fusion.worker.hello import parse as parse_hello
from tensor_fusion.worker.protocol import (
    GREETING_BYTES,
    MAGIC,
    PROTOCOL_VERSION,
    WELCOME_BYTES,
    Greeting,
    Role,
    Status,
    Welcome,
    printable,
)

FRAME_MOST = CHUNK_MOST = 1 << 20
CALL, REPLY, COMPLETES = 1, 2, 4
_FRAME = struct.Struct("<IHHII")
_REPLY = struct.Struct("<IHHIiQ")
_CHUNK = struct.Struct("<QQII")
_ROLES = {
    Role.CONTROL: "control connection",
    Role.DATA: "data connection",
    Role.PROBE: "only asks",
    Role.LOOK: "asks whether its session is stopped",
}
Need = tuple[int, str]
Steps = Generator[Need, bytes, None]


@dataclass
class Connection:
    """What both directions know."""

    schema: Schema
    role: int = Role.CONTROL
    encrypted: bool = False
    calls: dict[int, deque[int]] = field(default_factory=dict)  # by thread: the frames that wait for an answer


class Direction:
    """Bytes in, lines out. Damage ends it; `at` of that is a position in the stream."""

    def __init__(self, connection: Connection, *, from_client: bool, framed: bool = False, at: int = 0) -> None:
        """`framed`: frames begin at once, without a greeting or a welcome; at position `at`."""
        self._connection = connection
        self._lines: list[str] = []
        self._buffer = bytearray()
        self._at = at  # of the buffer's first byte
        self._number: int | None = 0 if at == 0 else None
        steps = self._frames() if from_client else self._answers()
        if not framed:
            steps = self._client() if from_client else self._worker()
        self._steps = steps
        self._need: Need | None = next(steps, None)

    @property
    def at(self) -> int:
        """Everything before it is decoded."""
        return self._at

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines of what is complete. Raises Damage, behind the lines before it."""
        self._buffer += data
        while self._need and len(self._buffer) >= self._need[0]:
            size = self._need[0]
            part = bytes(self._buffer[:size])
            del self._buffer[:size]
            self._at += size
            try:
                self._need = self._steps.send(part)
            except StopIteration:
                self._need = None
            except Damage:
                self._need = None
                yield from self._said()
                raise
            yield from self._said()
        if self._need is None and self._buffer:
            raise Damage(self._at, f"{len(self._buffer)} bytes follow where nothing may")

    def end(self) -> None:
        """Nothing comes any more. Raises Damage inside of something."""
        if self._need and self._buffer:
            size, what = self._need
            found = len(self._buffer)
            raise Damage(self._at + found, f"the capture ends inside {what}: {found} bytes of {size}")

    def _said(self) -> Iterator[str]:
        yield from self._lines
        self._lines.clear()

    # ---- beginnings ----

    def _client(self) -> Steps:
        start = self._at
        raw = yield GREETING_BYTES, "the greeting"
        if raw[:1] == HANDSHAKE:
            try:
                raw += yield wanted(raw) - len(raw), "the greeting"
                raw = parse_hello(raw).identity
            except BadHello as error:
                raise Damage(start, f"what begins as TLS is no greeting of a client with a secret: {error}") from error
            self._connection.encrypted = True
        greeting = Greeting.parse(raw)
        if greeting is None:
            raise Damage(start, "a greeting begins with TFUSION and has a zero at byte 56; this does not")
        self._same_version(greeting.version, start)
        role = _ROLES.get(Role(greeting.role)) if greeting.role in tuple(Role) else None
        if role is None:
            raise Damage(start + 12, f"{greeting.role} is no role: 1 control, 2 data, 3 only asks")
        self._connection.role = greeting.role
        index = f" {greeting.data_index}" if greeting.role == Role.DATA else ""
        self._lines.append(
            f'> greeting: {role}{index}, protocol {greeting.version}, program "{greeting.program}", process '
            f'{greeting.client_pid}, version "{printable(greeting.connection_version)}", secret '
            + ("masked" if any(greeting.secret) else "none")
            + (", in TLS: what follows is encrypted" if self._connection.encrypted else "")
        )
        if self._connection.encrypted:
            yield from self._records(b"")
        if greeting.role == Role.DATA:
            yield from self._chunks(">")
        elif greeting.role == Role.CONTROL:
            yield from self._frames()

    def _worker(self) -> Steps:
        start = self._at
        raw = b""
        if self._connection.encrypted:
            raw = yield HEAD_BYTES, "the welcome"
            if raw != MAGIC[:HEAD_BYTES]:  # who refuses does so in plain
                yield from self._records(raw)
        raw += yield WELCOME_BYTES - len(raw), "the welcome"
        welcome = Welcome.parse(raw)
        if welcome is None:
            raise Damage(start, "a welcome begins with TFUSION; this does not")
        status = Status(welcome.status).name.lower().replace("_", " ") if welcome.status in tuple(Status) else None
        if status is None:
            raise Damage(start + 12, f"{welcome.status} is no status of a welcome")
        sentence = f": {printable(welcome.sentence.encode())}" if welcome.sentence else ""
        self._lines.append(
            f"< welcome: {status}, protocol {welcome.version}, session {welcome.session_id:#x}, key masked, "
            f"{counted(welcome.data_connections, 'data connection')}{sentence}"
        )
        if welcome.status == Status.ACCEPTED:
            self._same_version(welcome.version, start)
            # What follows has the worker's numbers and layouts, whatever the client was built from.
            if welcome.schema != self._connection.schema.hash:
                said = f"the schema is {welcome.schema.hex()}, this version's {self._connection.schema.hash.hex()}"
                raise Damage(start + 16, f"{said}; use the dump of the worker's version")
            if self._connection.role == Role.DATA:
                yield from self._chunks("<")
            else:
                yield from self._answers()

    @staticmethod
    def _same_version(version: int, start: int) -> None:
        if version != PROTOCOL_VERSION:
            raise Damage(start + 8, f"the protocol is {version}, this version's {PROTOCOL_VERSION}")

    # ---- what follows ----

    def _records(self, head: bytes) -> Steps:
        """Of TLS, of which only the sizes are known."""
        while True:
            head = head or (yield HEAD_BYTES, "a record's header")
            yield int.from_bytes(head[3:], "big"), "a record of TLS"
            head = b""

    def _frames(self) -> Steps:
        while True:
            start = self._at
            head = yield _FRAME.size, "a frame's header"
            size, number, flags, thread, context = _FRAME.unpack(head)
            _check_size(size, _FRAME.size, start)
            op = self._connection.schema.operation(number, start + 4)
            if flags & ~CALL:
                raise Damage(start + 6, f"a client's frame has no flags {flags:#x}")
            body = yield size - _FRAME.size, f"a frame of {op.name}"
            inside = self._connection.schema.arguments(op.rows["in"], body, start + _FRAME.size)
            frame = ""
            if self._number is not None:
                self._number += 1
                frame = f" {self._number}"
                if flags & CALL:
                    self._connection.calls.setdefault(thread, deque()).append(self._number)
            waits = ", waits" if flags & CALL else ""
            self._lines.append(
                f"> frame{frame}: {op.name}({inside}), {size} bytes, thread {thread}, context {context:#x}{waits}"
            )

    def _answers(self) -> Steps:
        schema = self._connection.schema
        while True:
            start = self._at
            head = yield _REPLY.size, "an answer's header"
            size, number, flags, thread, result, transfers = _REPLY.unpack(head)
            _check_size(size, _REPLY.size, start)
            op = schema.operation(number, start + 4)
            if flags & ~(REPLY | COMPLETES):
                raise Damage(start + 6, f"an answer has no flags {flags:#x}")
            body = yield size - _REPLY.size, f"an answer of {op.name}"
            after = f", after {counted(transfers, 'download')}" if flags & COMPLETES else ""
            if not flags & REPLY:
                inside = schema.arguments(op.rows["in"], body, start + _REPLY.size)
                self._lines.append(f"< message: {op.name}({inside}), {size} bytes{after}")
                continue
            inside = "" if result and not body else schema.arguments(op.rows["out"], body, start + _REPLY.size)
            waiting = self._connection.calls.get(thread)
            frame = f" to {waiting.popleft()}" if waiting else ""
            said = f" ({inside})" if inside else ""
            self._lines.append(
                f"< answer{frame}: {op.name} = {schema.result(op.api, result)}{said}, {size} bytes, thread {thread}"
                + after
            )

    def _chunks(self, arrow: str) -> Steps:
        while True:
            start = self._at
            head = yield _CHUNK.size, "a chunk's header"
            transfer, offset, size, handed = _CHUNK.unpack(head)
            if size > CHUNK_MOST:
                raise Damage(start + 16, f"a chunk of {size} bytes; it has {CHUNK_MOST} at most")
            yield size, "a chunk"
            last = f", completes download {handed & 0x7FFFFFFF}" if handed else ""
            self._lines.append(f"{arrow} chunk: transfer {transfer}, {_bytes(size)} from {offset}{last}")


def _bytes(size: int) -> str:
    """Without a separator of thousands, as sizes have none here."""
    return f"{size} byte{'' if size == 1 else 's'}"


def _check_size(size: int, least: int, start: int) -> None:
    if size < least or size > FRAME_MOST or size % 8:
        raise Damage(start, f"a frame of {size} bytes; it has {least} to {FRAME_MOST}, a multiple of 8")


def looks_like_client(start: bytes) -> bool | None:
    """Whose first bytes these are: a greeting has the process id where a welcome has a zero. None: neither's."""
    if not start.startswith(MAGIC) or len(start) < 56:
        return None
    return start[52:56] != bytes(4)
