"""A client that keeps to docs/wire-format.md only as far as it likes: TCP, frames made from the fields in api/."""

from __future__ import annotations

import socket
import struct
from functools import cache
from pathlib import Path
from types import TracebackType

from tensor_fusion.apigen import model
from tensor_fusion.worker.protocol import WELCOME_BYTES, Greeting, Role, Status, Welcome

API = Path(__file__).parent.parent / "api"
REPLY = struct.Struct("<IHHIiQ")
IS_REPLY = 2


@cache
def description() -> model.Model:
    return model.load(API)


@cache
def operations() -> dict[str, model.Op]:
    return {operation.name: operation for operation in description().ops}


def handle(kind: str, index: int, generation: int = 1) -> int:
    number = {found.name: found.number for found in description().kinds}[kind]
    return 1 << 46 | number << 36 | (generation << 20 | index) << 4


class Lost(Exception):
    """The worker ended the connection."""


class Stranger:
    def __init__(self, port: int, secret: str = "", silent: bool = False) -> None:
        """Greeted and, unless it is to be silent, with the primary context of device 0."""
        self.port = port
        self.context = 0
        self.connection = self._connect(Greeting.build(description().schema, secret=secret, program="stranger"))
        welcome = Welcome.parse(self._exactly(self.connection, WELCOME_BYTES))
        assert welcome and welcome.status == Status.ACCEPTED, welcome
        self.welcome = welcome
        self.lanes: list[socket.socket] = []
        if not silent:
            assert self.call("start")[0] == 0
            context = handle("context", 1)
            assert self.call("primary_retain", device=0, context=context)[0] == 0
            self.context = (context >> 4) & 0xFFFFFFFF

    def __enter__(self) -> Stranger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self.connection, *self.lanes]:
            one.close()

    def _connect(self, greeting: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(greeting)
        return connection

    def add_lane(self) -> socket.socket:
        """One more data connection."""
        lane = self._connect(
            Greeting.build(
                description().schema,
                role=Role.DATA,
                session_id=self.welcome.session_id,
                session_key=self.welcome.session_key,
                data_index=len(self.lanes),
            )
        )
        welcome = Welcome.parse(self._exactly(lane, WELCOME_BYTES))
        assert welcome and welcome.status == Status.ACCEPTED, welcome
        self.lanes.append(lane)
        return lane

    @staticmethod
    def _exactly(connection: socket.socket, size: int) -> bytes:
        raw = b""
        while len(raw) < size:
            try:
                part = connection.recv(size - len(raw))
            except ConnectionResetError as error:
                raise Lost from error
            if not part:
                raise Lost
            raw += part
        return raw

    def frame(self, name: str, asks: bool, /, **values: int | str | bytes | list[int]) -> bytes:
        operation = operations()[name]
        inputs = operation.inputs()
        fixed, variable = b"", b""
        for field in inputs:
            value = values.pop(field.name, b"" if field.variable else 0)
            if field.variable:
                body = value.encode() + b"\0" if isinstance(value, str) else value
                if isinstance(body, list):
                    body = b"".join(word.to_bytes(8, "little") for word in body)
                assert isinstance(body, bytes)
                variable += struct.pack("<Q", len(body)) + body + bytes(-len(body) % 8)
            elif isinstance(value, bytes):
                fixed += value.ljust(field.size, b"\0")
            else:
                assert isinstance(value, int)
                fixed += (value & ((1 << 8 * field.size) - 1)).to_bytes(field.size, "little")
        assert not values, values
        body = fixed + bytes(model.padding(inputs)) + variable
        return struct.pack("<IHHII", 16 + len(body), operation.number, int(asks), 1, self.context) + body

    def post(self, name: str, /, **values: int | str | bytes | list[int]) -> None:
        self.connection.sendall(self.frame(name, False, **values))

    def call(self, name: str, /, **values: int | str | bytes | list[int]) -> tuple[int, dict[str, int]]:
        """Result and the plain numbers of the answer. Raises Lost."""
        try:
            self.connection.sendall(self.frame(name, True, **values))
        except OSError as error:
            raise Lost from error
        while True:
            size, _, flags, _, result, _ = REPLY.unpack(self._exactly(self.connection, REPLY.size))
            body = self._exactly(self.connection, size - REPLY.size)
            if flags & IS_REPLY:
                break
        numbers, at = {}, 0
        for field in operations()[name].outputs() if body else ():
            if field.variable:
                break
            numbers[field.name] = int.from_bytes(body[at : at + field.size], "little")
            at += field.size
        return result, numbers
