"""Clients that come over TCP.

One thread, one event loop. Everything a peer sends before its greeting has been checked is 256 bytes at most, within
`GREETING_DEADLINE`, on at most `MAX_PENDING` connections: when more are open, the oldest is dropped, so that idle
connections cannot keep out a client that sends its greeting at once. After that the connection belongs to a session
process and the supervisor closes its own copy.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass

from tensor_fusion.config import UserError
from tensor_fusion.worker.admission import Admission, Refused
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import DATA_CONNECTIONS, GREETING_BYTES, MAGIC, Greeting, Role, Status, Welcome
from tensor_fusion.worker.sessions import Session

GREETING_DEADLINE = 2.0
MAX_PENDING = 256
BACKLOG = 512


@dataclass(frozen=True)
class _Caller:
    address: str
    port: int
    descriptor: int
    place: tuple[int, int] = (0, 0)

    def session_reaped(self) -> None:
        """The connection ended with the process."""


class TcpListener:
    def __init__(self, host: str, port: int, admission: Admission) -> None:
        self._admission = admission
        self._pending: dict[asyncio.Task[None], None] = {}
        self._listener = listen(host, port)
        self._accepting: asyncio.Task[None] | None = None

    @property
    def place(self) -> str:
        """What the ready line says."""
        host, port = self._listener.getsockname()[:2]
        return f"native [{host}]:{port}" if ":" in host else f"native {host}:{port}"

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
                self._route(connection, self._admission.check(raw), peer)
            except Refused as refused:
                level = LOGGER.info if refused.status == Status.PROBED else LOGGER.warning
                level("%s:%d refused: %s", *peer, refused.sentence)
                connection.send(Welcome.build(refused.status, self._admission.schema, refused.sentence))
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

    def _route(self, connection: socket.socket, greeting: Greeting, peer: tuple[str, int]) -> None:
        if greeting.role == Role.CONTROL:
            session = self._admission.session(greeting)
            connection.setblocking(True)  # the file status is shared with the session, which expects a blocking socket
            self._admission.adopt(session, greeting, _Caller(*peer, connection.fileno()))
            self._welcome(connection, session)
            LOGGER.info("%s:%d is served by %s", *peer, session.name)
        elif greeting.role == Role.DATA:
            self._welcome(connection, self._data_connection(connection, greeting))
        else:
            raise self._admission.unknown_role(greeting)

    def _data_connection(self, connection: socket.socket, greeting: Greeting) -> Session:
        sessions = self._admission.sessions
        session = sessions.find(greeting.session_id, greeting.session_key)
        if session is None or not sessions.data_free(session, greeting.data_index):
            raise Refused(
                Status.NO_SUCH_SESSION, f"There is no session that waits for data connection {greeting.data_index}."
            )
        connection.setblocking(True)
        if not sessions.add_data(session, connection.fileno(), greeting.data_index):
            raise Refused(Status.NO_SUCH_SESSION, "The session of this data connection has just ended.")
        return session

    def _welcome(self, connection: socket.socket, session: Session) -> None:
        # The send buffer of a fresh connection is empty, so 512 bytes go in whole and without waiting.
        connection.sendall(
            Welcome.build(
                Status.ACCEPTED,
                self._admission.schema,
                session_id=session.id,
                session_key=session.key,
                data_connections=DATA_CONNECTIONS,
            )
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError that names the address and the next step."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except OSError as error:
        raise UserError(f"--host {host!r} is no address of this machine: {error.strerror}.") from error
    except UnicodeError as error:  # a name with an empty part, or one of more than 63 characters
        raise UserError(f"--host {host!r} is no host name; use an address of this machine.") from error
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
