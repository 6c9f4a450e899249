"""Clients that come over TCP.

One thread, one event loop, nothing that waits for a peer. Everything a peer sends before its greeting has been checked
is 256 bytes at most, or 2,048 of a TLS hello, within `GREETING_DEADLINE`, on at most `MAX_PENDING` connections,
`MAX_PENDING_OF_ONE` of one address. When more are open, one that has sent nothing is dropped first: of the same address
where that has its share, else the oldest of all. So a flood takes its own connections away, and a client whose greeting
has come is read before anybody is dropped for it. Accepting yields to those who have been accepted. After its welcome
the connection belongs to a session process and the supervisor closes its own copy; a hello is left in it unread, and
the session says the welcome.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import dataclass, field

from tensor_fusion.config import UserError
from tensor_fusion.worker.admission import Admission, NotYet, Refused
from tensor_fusion.worker.hello import HANDSHAKE, HELLO_BYTES, BadHello, Hello, wanted
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import DATA_CONNECTIONS, GREETING_BYTES, MAGIC, Greeting, Role, Status, Welcome
from tensor_fusion.worker.sessions import Session
from tensor_fusion.worker.throttle import BoundedLines, group

GREETING_DEADLINE = 2.0
# For so long a client whose turn has not come is kept waiting, before it is told why.
TURN_DEADLINE = 5.0
MAX_PENDING = 1024
MAX_PENDING_OF_ONE = 256
ACCEPTS_A_TURN = 16
LOOK = 0.05
BACKLOG = 4096
# Of a client in TLS that is refused, so much is taken off the socket first.
UNREAD_BYTES = 65536
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class _Caller:
    address: str
    port: int
    group: str
    descriptor: int
    place: tuple[int, int] = (0, 0)

    def session_reaped(self) -> None:
        """The connection ended with the process."""


@dataclass(eq=False)
class _Pending:
    """A connection that has no session yet."""

    connection: socket.socket
    address: str
    port: int
    group: str
    until: float
    raw: bytes = b""
    watched: bool = False  # the loop calls when there is more to read
    whole: bool = False  # and waits for its turn
    hello: Hello | None = None
    greeting: Greeting | None = None  # which has been checked


@dataclass
class _Waiting:
    """Pending connections in the order of their coming, those that have sent nothing apart."""

    silent: dict[_Pending, None] = field(default_factory=dict)
    heard: dict[_Pending, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.silent) + len(self.heard)

    def __contains__(self, one: _Pending) -> bool:
        return one in self.silent or one in self.heard

    def first_to_go(self) -> _Pending | None:
        return next(iter(self.silent), None) or next(iter(self.heard), None)

    def add(self, one: _Pending) -> None:
        self.remove(one)
        (self.heard if one.raw else self.silent)[one] = None

    def remove(self, one: _Pending) -> None:
        self.silent.pop(one, None)
        self.heard.pop(one, None)


class TcpListener:
    def __init__(self, host: str, port: int, admission: Admission) -> None:
        self._admission = admission
        self._all = _Waiting()
        self._of: dict[str, _Waiting] = {}
        self._lines = BoundedLines()
        self._listener = listen(host, port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None

    @property
    def place(self) -> str:
        """What the ready line says."""
        host, port = self._listener.getsockname()[:2]
        return f"native [{host}]:{port}" if ":" in host else f"native {host}:{port}"

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """Stop listening and drop connections that have no session yet."""
        for timer in (self._look, self._pause):
            if timer:
                timer.cancel()
        if self._loop:
            self._loop.remove_reader(self._listener)
        for one in [*self._all.silent, *self._all.heard]:
            self._drop(one)
        self._listener.close()

    # Who is there

    def _accept(self) -> None:
        assert self._loop
        for _ in range(ACCEPTS_A_TURN):  # then those who were accepted have their turn
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Out of descriptors, or a connection that ended before it was accepted: neither ends the worker.
                self._lines.write(logging.WARNING, "accept", "a connection could not be accepted: %s", error)
                if error.errno in _OUT_OF:
                    self._drop(self._all.first_to_go())
                    self._loop.remove_reader(self._listener)
                    self._pause = self._loop.call_later(LOOK, self.start)
                    return
                continue
            self._enter(connection, str(peer[0]), int(peer[1]))

    def _enter(self, connection: socket.socket, address: str, port: int) -> None:
        assert self._loop
        one = _Pending(connection, address, port, group(address), self._loop.time() + GREETING_DEADLINE)
        connection.setblocking(False)
        of_one = self._of.setdefault(one.group, _Waiting())
        if len(of_one) >= MAX_PENDING_OF_ONE:
            self._drop(of_one.first_to_go())
        elif len(self._all) >= MAX_PENDING:
            self._drop(self._all.first_to_go())
        self._note(one)
        self._read(one)  # most have sent their greeting by now, and of a flood many have gone
        if one in self._all and not one.whole:
            one.watched = True
            # By its number: of a socket that it does not know, asyncio writes a text first.
            self._loop.add_reader(connection.fileno(), self._read, one)
        self._look_later()

    def _note(self, one: _Pending) -> None:
        """Put it where its bytes say that it belongs."""
        self._all.add(one)
        self._of.setdefault(one.group, _Waiting()).add(one)

    def _drop(self, one: _Pending | None) -> None:
        if one is None:
            return
        self._all.remove(one)
        of_one = self._of[one.group]
        of_one.remove(one)
        if not of_one:
            del self._of[one.group]
        self._watch_no_more(one)
        one.connection.close()

    def _watch_no_more(self, one: _Pending) -> None:
        if one.watched and self._loop:
            one.watched = False
            self._loop.remove_reader(one.connection.fileno())

    def _lost(self, one: _Pending, error: OSError) -> None:
        LOGGER.debug("%s:%d lost: %s", one.address, one.port, error)
        self._drop(one)

    # What they say

    def _read(self, one: _Pending) -> None:
        """Up to 256 bytes; fewer when they can no longer become a greeting. A hello is left to the session."""
        try:
            if one.raw[:1] in (b"", HANDSHAKE):
                part = one.connection.recv(HELLO_BYTES, socket.MSG_PEEK)
                if part[:1] == HANDSHAKE:
                    self._look_at_hello(one, part)
                    return
            part = one.connection.recv(GREETING_BYTES - len(one.raw))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(one, error)
            return
        first = not one.raw
        one.raw += part
        if not one.raw:
            self._drop(one)
        elif not part or len(one.raw) == GREETING_BYTES or one.raw[: len(MAGIC)] != MAGIC[: len(one.raw)]:
            self._greeted(one)
        elif first:
            self._note(one)

    def _look_at_hello(self, one: _Pending, part: bytes) -> None:
        """All that has come so far. Raises OSError."""
        known = len(one.raw)
        try:
            size = wanted(part)
        except BadHello:
            size = 0  # the sentence comes when it is checked
        one.raw = part[:size] if size else part
        if not size or len(part) >= size or (len(part) == known and _has_ended(one.connection)):
            self._greeted(one)
            return
        one.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)  # or this is called again at once
        if not known:
            self._note(one)

    def _greeted(self, one: _Pending) -> None:
        """Answer, or note that it has to wait for its turn."""
        assert self._loop
        if not one.whole:
            one.whole = True
            self._watch_no_more(one)
            one.until = self._loop.time() + TURN_DEADLINE
            self._note(one)
        try:
            try:
                one.hello = one.hello or self._admission.hello(one.raw)
                if one.greeting is None:
                    one.greeting = self._admission.check(one.raw, one.group, network=True, hello=one.hello)
                self._route(one, one.greeting)
            except NotYet as reason:
                if self._loop.time() < one.until:
                    return
                raise Refused(Status.NO_SESSION, reason.sentence) from reason
        except Refused as refused:
            level = logging.INFO if refused.status.asked else logging.WARNING
            said = "asked" if refused.status.asked else "refused"
            self._lines.write(level, one.group, "%s:%d %s: %s", one.address, one.port, said, refused.sentence)
            try:
                if one.raw[:1] == HANDSHAKE:  # what is unread when a socket is closed takes the answer with it
                    one.connection.recv(UNREAD_BYTES)
                one.connection.send(Welcome.build(refused.status, self._admission.schema, refused.sentence))
            except OSError as error:
                LOGGER.debug("%s:%d lost: %s", one.address, one.port, error)
        except OSError as error:
            LOGGER.debug("%s:%d lost: %s", one.address, one.port, error)
        self._drop(one)

    def _look_later(self) -> None:
        if self._look is None and self._all and self._loop:
            self._look = self._loop.call_later(LOOK, self._look_at_all)

    def _look_at_all(self) -> None:
        """End what is too slow; see whose turn has come."""
        assert self._loop
        self._look = None
        now = self._loop.time()
        for one in [one for one in self._all.silent if one.until <= now]:
            LOGGER.debug("no greeting within %d s", GREETING_DEADLINE)
            self._drop(one)
        for one in [one for one in self._all.heard if one.whole or one.until <= now]:
            self._greeted(one)
        self._look_later()

    # Where they go

    def _route(self, one: _Pending, greeting: Greeting) -> None:
        connection = one.connection
        if greeting.role == Role.CONTROL:
            session = self._admission.session(greeting, one.group)
            connection.setblocking(True)  # the file status is shared with the session, which expects a blocking socket
            caller = _Caller(one.address, one.port, one.group, connection.fileno())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._admission.adopt(session, greeting, caller)
            self._welcome(connection, session, greeting)
            LOGGER.info("%s:%d is served by %s", one.address, one.port, session.name)
        elif greeting.role == Role.DATA:
            self._welcome(connection, self._data_connection(connection, greeting), greeting)
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
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if not sessions.add_data(session, connection.fileno(), greeting.data_index, greeting):
            raise Refused(Status.NO_SUCH_SESSION, "The session of this data connection has just ended.")
        return session

    def _welcome(self, connection: socket.socket, session: Session, greeting: Greeting) -> None:
        if greeting.psk:
            return  # the session says it, in TLS
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


def _has_ended(connection: socket.socket) -> bool:
    """The peer sends nothing more: its state is the first byte of what TCP tells, CLOSE or CLOSE_WAIT.

    Where memory is short the kernel calls a socket readable before SO_RCVLOWAT bytes are there.
    """
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (7, 8)


def listen(host: str, port: int, option: str = "") -> socket.socket:
    """A listening socket. Raises UserError that names the address, the option that gave it, and the next step."""
    where = option or "--host"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except OSError as error:
        raise UserError(f"{where} {host!r} is no address of this machine: {error.strerror}.") from error
    except UnicodeError as error:  # a name with an empty part, or one of more than 63 characters
        raise UserError(f"{where} {host!r} is no host name; use an address of this machine.") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts has it from there
        if not option:  # clients speak first: who says nothing, or goes at once, does not get to us for a second
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if option:
            raise UserError(f"{option} cannot listen on {host} port {port}: {error.strerror}.") from error
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} on {host} is in use; choose another with -p (0 takes a free one).") from error
        if error.errno == errno.EACCES:
            raise UserError(f"Port {port} needs root's rights; choose one above 1023 with -p.") from error
        raise UserError(f"Listening on {host} port {port} failed: {error.strerror}; check --host and -p.") from error
    listener.setblocking(False)
    return listener
