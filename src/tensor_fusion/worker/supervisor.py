"""Listen, check who calls, route.

One thread, one event loop. Everything a peer sends before its greeting has been checked is 256 bytes at most, within
`GREETING_DEADLINE`, on at most `MAX_PENDING` connections: when more are open, the oldest is dropped, so that idle
connections cannot keep out a client that sends its greeting at once. After that the connection belongs to a session
process and the supervisor closes its own copy.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

from tensor_fusion.abi import Native
from tensor_fusion.config import UserError
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.options import Settings
from tensor_fusion.worker.protocol import (
    GREETING_BYTES,
    MAGIC,
    PROTOCOL_VERSION,
    Greeting,
    Role,
    Status,
    Welcome,
)
from tensor_fusion.worker.sessions import Sessions

GREETING_DEADLINE = 2.0
MAX_PENDING = 256
BACKLOG = 512


class Refused(Exception):
    """The answer to a greeting that is not accepted."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class Supervisor:
    def __init__(self, settings: Settings, native: Native, sessions: Sessions) -> None:
        self._settings = settings
        self._native = native
        self._sessions = sessions
        self._pending: dict[asyncio.Task[None], None] = {}
        self._listener = listen(settings.host, settings.port)
        self._accepting: asyncio.Task[None] | None = None
        if settings.connections_file:
            sessions.on_change = self._write_connections
            self._write_connections()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def close(self) -> None:
        """Stop listening and drop connections that have no session yet."""
        tasks = list(self._pending)
        if self._accepting:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors, or a connection that ended before it was accepted: neither ends the worker.
                LOGGER.warning("a connection could not be accepted: %s", error)
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._drop_oldest()
                    await asyncio.sleep(0.05)
                continue
            if len(self._pending) >= MAX_PENDING:
                self._drop_oldest()
            task = loop.create_task(self._serve(connection, (str(peer[0]), int(peer[1]))))
            self._pending[task] = None
            task.add_done_callback(lambda done: self._pending.pop(done, None))

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._pending), None)
        if oldest:
            del self._pending[oldest]
            oldest.cancel()

    async def _serve(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw = await self._read_greeting(connection)
            if not raw:
                return
            try:
                self._route(connection, raw, peer)
            except Refused as refused:
                LOGGER.warning("%s:%d refused: %s", *peer, refused.sentence)
                connection.send(Welcome.build(refused.status, self._native.schema, refused.sentence))
        except OSError as error:
            LOGGER.debug("%s:%d lost: %s", *peer, error)
        finally:
            connection.close()

    async def _read_greeting(self, connection: socket.socket) -> bytes:
        """Up to 256 bytes; fewer when they can no longer become a greeting, none when there came none."""
        loop = asyncio.get_running_loop()
        raw = b""
        try:
            until = loop.time() + GREETING_DEADLINE
            while len(raw) < GREETING_BYTES:
                part = await asyncio.wait_for(
                    loop.sock_recv(connection, GREETING_BYTES - len(raw)), max(until - loop.time(), 0)
                )
                raw += part
                if not part or raw[: len(MAGIC)] != MAGIC[: len(raw)]:
                    break
        except asyncio.TimeoutError:
            LOGGER.debug("no greeting within %d s", GREETING_DEADLINE)
        return raw

    def _route(self, connection: socket.socket, raw: bytes, peer: tuple[str, int]) -> None:
        greeting = Greeting.parse(raw)
        if greeting is None:
            raise Refused(
                Status.NOT_A_GREETING, f"What came is not the greeting of a Tensor Fusion client ({len(raw)} bytes)."
            )
        if greeting.version != PROTOCOL_VERSION:
            raise Refused(
                Status.PROTOCOL_DIFFERS,
                f"The client speaks protocol version {greeting.version}, this worker {PROTOCOL_VERSION}; "
                "install the same version of Tensor Fusion on both sides.",
            )
        if greeting.schema != self._native.schema:
            raise Refused(
                Status.SCHEMA_DIFFERS,
                f"The client was built from another API description (schema {greeting.schema.hex()}) than this worker "
                f"({self._native.schema.hex()}); install the same version of Tensor Fusion on both sides.",
            )
        if greeting.role == Role.CONTROL:
            self._new_client(connection, greeting, peer)
        elif greeting.role == Role.DATA:
            self._data_connection(connection, greeting)
        else:
            raise Refused(Status.NOT_A_GREETING, f"The greeting asks for the unknown role {greeting.role}.")

    def _new_client(self, connection: socket.socket, greeting: Greeting, peer: tuple[str, int]) -> None:
        self._check_secret(greeting)
        if len(self._sessions.serving()) >= self._settings.max_clients:
            raise Refused(
                Status.NO_SESSION,
                f"This worker serves {self._settings.max_clients} clients already; "
                "end one, or start the worker with a larger --max-clients.",
            )
        session = self._sessions.take()
        if session is None:
            raise Refused(
                Status.NO_SESSION, "This worker could not start a session process; its log (TF_ENABLE_LOG=1) says why."
            )
        client = f"{greeting.program or 'client'}@{peer[0]}"
        connection.setblocking(True)  # the file status is shared with the session, which expects a blocking socket
        if not self._sessions.adopt(session, connection, greeting, client, peer):
            raise Refused(Status.NO_SESSION, "The session process that was to serve this client died; try again.")
        self._welcome(connection, session.id, session.key)
        LOGGER.info("%s:%d is served by %s", *peer, session.name)

    def _data_connection(self, connection: socket.socket, greeting: Greeting) -> None:
        session = self._sessions.find(greeting.session_id, greeting.session_key)
        if session is None or not self._sessions.data_free(session, greeting.data_index):
            raise Refused(
                Status.NO_SUCH_SESSION, f"There is no session that waits for data connection {greeting.data_index}."
            )
        connection.setblocking(True)
        if not self._sessions.add_data(session, connection, greeting.data_index):
            raise Refused(Status.NO_SUCH_SESSION, "The session of this data connection has just ended.")
        self._welcome(connection, session.id, session.key)

    def _check_secret(self, greeting: Greeting) -> None:
        keys = self._settings.keys
        if keys is None:
            return
        try:
            accepted = keys.accept(greeting.secret)
        except UserError as error:
            LOGGER.error("nobody can be let in: %s", error.sentence)
            accepted = False
        if not accepted:
            raise Refused(
                Status.SECRET_REFUSED,
                "The secret was refused; put the one from the worker's TF_AUTHORIZED_KEY_PATH file into the fifth "
                "field of the connection string.",
            )

    def _welcome(self, connection: socket.socket, session_id: int, key: int) -> None:
        # The send buffer of a fresh connection is empty, so 512 bytes go in whole and without waiting.
        connection.sendall(Welcome.build(Status.ACCEPTED, self._native.schema, "", session_id, key))

    def _write_connections(self) -> None:
        """Keep TF_CONNECTION_INFO_PATH equal to the clients being served; readers never see half a file."""
        path = self._settings.connections_file
        if path is None:
            return
        lines = [",".join(map(str, session.connection)) for session in self._sessions.serving() if session.connection]
        try:
            replace_text(path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            LOGGER.error("TF_CONNECTION_INFO_PATH %s cannot be written: %s", path, error.strerror)


def replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError that names the address and the next step."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except OSError as error:
        raise UserError(f"--host {host!r} is no address of this machine: {error.strerror}.") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} on {host} is in use; choose another with -p (0 takes a free one).") from error
        if error.errno == errno.EACCES:
            raise UserError(f"Port {port} needs root's rights; choose one above 1023 with -p.") from error
        raise UserError(f"Listening on {host} port {port} failed: {error.strerror}; check --host and -p.") from error
    listener.setblocking(False)
    return listener
