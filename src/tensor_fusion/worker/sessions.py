"""Session processes: start, warm, hand out, reap.

One event loop thread enters everything here. A session is warm (its driver initialised, no client yet) or serving; it
leaves the table only when its process has been reaped, because until then it may still hold device memory and its
row of the quota page. What arrives on a control channel comes from a process that a hostile client may have taken
over, so it is parsed like anything else from outside.
"""

from __future__ import annotations

import asyncio
import hmac
import mmap
import os
import resource
import secrets
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Protocol

from tensor_fusion.config import UserError
from tensor_fusion.terminal import limited
from tensor_fusion.worker.driver import Driver, visible_devices
from tensor_fusion.worker.images import Images
from tensor_fusion.worker.keys import Key
from tensor_fusion.worker.lines import Lines
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import DATA_CONNECTIONS, PACKET_BYTES, Greeting, Packet, PacketType
from tensor_fusion.worker.quota import DEVICES, Figures, QuotaPage
from tensor_fusion.worker.segment import Segment
from tensor_fusion.worker.shares import Shares

# Answers with a descriptor that may wait for a session, which asks for one at a time.
UNREAD_MAX = 64
# Answers of any kind: a session asks no more than half as many questions at a time.
UNSENT_MAX = 2048
# What sessions say about shared memory.
SHARING = (PacketType.SHARE, PacketType.IMPORT, PacketType.LEAVE, PacketType.PAID, PacketType.GROWN)
# Initialising the driver of a host with many GPUs and no persistence daemon takes tens of seconds.
WARM_DEADLINE = 90.0
NO_DEVICE = 100  # the driver sees none
# A replacement waits this long, so that it does not compete with the start of the client that took the last one.
REPLACE_DELAY = 1.0
MAX_REPLACE_DELAY = 30.0
# A context that is being made for a client is waited for so long before a session is warmed, and looked for so often.
SETTLE_PATIENCE = 10.0
SETTLE_LOOK = 0.25
# From the end of the control channel to SIGKILL.
EXIT_GRACE = 2.0
# From SIGKILL until a process that does not end, because a driver call hangs in the kernel, is left alone.
KILL_PATIENCE = 10.0


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    SERVING = "serving"
    ENDING = "ending"


@dataclass(frozen=True)
class Executable:
    """How a session process is started; the environment has already been cleaned."""

    path: Path
    driver: Driver
    environment: Mapping[str, str]
    segment: Segment | None = None
    output: int = 2  # where its lines go
    jail: str = "basic"
    layers: tuple[str, ...] = ()  # of the full jail, as far as this machine has them
    calls: str = ""  # numbers of the system calls that are left, with commas between; nothing: no such list
    kernel_timeout: int = 0  # seconds; 0: kernels run as long as they like
    tls: bool = False  # its clients come with secrets, over a network


class Caller(Protocol):
    """A client that asks to be served, over whatever transport it came."""

    @property
    def address(self) -> str:
        """Where it is, for the log and the connections file: an address, or the name of a segment."""

    @property
    def port(self) -> int:
        """Its port there, or its slot in the segment."""

    @property
    def group(self) -> str:
        """Whose quota it counts for; "" for nobody's."""

    @property
    def descriptor(self) -> int | None:
        """What the session gets: the connection, or None over shared memory."""

    @property
    def place(self) -> tuple[int, int]:
        """Argument and value of the ADOPT packet: where in the segment, (0, 0) over TCP."""

    def session_reaped(self) -> None:
        """The process that served it has ended."""


@dataclass
class Session:
    process: subprocess.Popen[bytes]
    control: socket.socket
    lines: Lines | None  # where it writes, if not to the log itself
    row: int
    id: int
    key: int
    state: State = State.STARTING
    client: str = ""
    program: str = ""
    user: str = ""
    machine: bytes = field(default=b"", repr=False)  # where its client's number means something; nothing: not known
    since: float = 0.0  # of the clock: when its client came
    connection: tuple[str, int, int] | None = None
    group: str = ""  # whose quota it counts for
    secret: bytes = field(default=b"", repr=False)  # with which its client came
    spoken: bool = False  # its client has sent a frame
    gone: bool = False  # it has said that its client is gone
    data_taken: set[int] = field(default_factory=set)
    devices: int = 0
    device_name: str = ""
    device_memory: int = 0
    failure: str = ""
    failure_code: int = 0  # the driver's; 0: it is something else
    has_context: bool = False
    access: Key | None = field(default=None, repr=False)  # of its client's secret, None where none is asked for
    sees: tuple[int, ...] = ()  # the worker's numbers of the devices that it was started with; nothing: all
    special: bool = False  # for one client, whose secret says what it sees, or its share of the multiprocessors
    multiprocessors: tuple[int, int] = (0, 0)  # of device 0: what the client may use, and all; zeros without a limit
    outbox: deque[tuple[Packet, int | None]] = field(default_factory=deque)
    adopted_at: float = 0.0
    deadline: asyncio.TimerHandle | None = None
    on_reaped: Callable[[], None] = lambda: None

    @property
    def place(self) -> tuple[str, str]:
        """From where its client came, as the worker saw it: address, or segment; and the group of that."""
        return (self.connection[0] if self.connection else "", self.group)

    @property
    def tenant(self) -> bytes:
        """Who may have what it shares."""
        return self.access.tenant if self.access else b""

    @property
    def tenant_name(self) -> str:
        return self.access.name if self.access else ""

    @property
    def name(self) -> str:
        tenant = f" ({self.tenant_name})" if self.tenant_name else ""
        return f"session {self.process.pid}" + (f" of {self.client}{tenant}" if self.client else "")

    def host_memory(self) -> int:
        """Resident bytes of the process, 0 when it has just ended."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * mmap.PAGESIZE

    def is_stopped(self) -> bool:
        """Whether somebody has stopped the process, by a signal or a debugger."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        except OSError:  # it has just ended
            return False

    def send(self, packet: Packet, descriptor: int | None = None) -> None:
        """Raises OSError when the session cannot take it; 512 bytes fit into the channel of a session that reads."""
        descriptors = [] if descriptor is None else [descriptor]
        socket.send_fds(self.control, [packet.build()], descriptors)

    def tell(self, packet: Packet, descriptor: int | None = None) -> None:
        """Send it, or keep it until the session reads again. One that is ending hears nothing."""
        if self.control.fileno() < 0:
            return
        self.outbox.append((packet, None if descriptor is None else os.dup(descriptor)))
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the channel takes it."""
        loop = asyncio.get_running_loop()
        while self.outbox:
            packet, descriptor = self.outbox[0]
            try:
                self.send(packet, descriptor)
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self.control, self.flush)
                return
            except OSError as error:  # its end is read next
                LOGGER.debug("%s does not listen: %s", self.name, error)
                break
            self.drop_first()
        loop.remove_writer(self.control)
        while self.outbox:
            self.drop_first()

    def unread(self) -> int:
        """Descriptors that wait for it."""
        return sum(descriptor is not None for _, descriptor in self.outbox)

    def drop_first(self) -> None:
        _, descriptor = self.outbox.popleft()
        if descriptor is not None:
            os.close(descriptor)


class Sessions:
    """All session processes of a worker, by id."""

    def __init__(self, executable: Executable, page: QuotaPage, warm: int) -> None:
        self._executable = executable
        self._page = page
        self._warm = warm
        self._sessions: dict[int, Session] = {}
        self._replacement: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closing = False
        self._not_started: str | Exception = "there is no row left in the quota page"
        self._changed = asyncio.Event()
        # Half of the descriptors are for clients and their connections.
        self.shares = Shares(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self.images: Images | None = None  # of sessions in the full jail
        self.on_change: Callable[[], None] = lambda: None
        # What a session is told that asks for the processes of its client's machine.
        self.on_list: Callable[[Session, Packet], Packet] = lambda _, question: Packet(
            PacketType.LISTED, question.argument
        )
        self.devices: list[bytes] = []  # their UUIDs, in CUDA's order; nothing before the first session is ready
        self.jail = executable.jail  # of those that are started from now on

    # Starting and warming

    def install(self) -> None:
        """Reap children from now on. The loop must run in the main thread."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    async def first(self) -> Session:
        """Start one session and wait until it is warm: the proof that this worker can serve. Raises UserError."""
        session = self._start()
        if session is None:
            if isinstance(self._not_started, OSError) and limited(self._not_started):
                raise self._not_started
            raise UserError(f"The first session process could not be started: {self._not_started}.", exit_code=1)
        # A session that ends early tells why by its exit code, which is known once it has been reaped.
        while session.state is State.STARTING or (session.state is State.ENDING and session.process.returncode is None):
            self._changed.clear()
            await self._changed.wait()
        if session.state is State.READY:
            return session
        if session.state is State.FAILED:
            driver = f"The GPU driver {self._executable.driver.cuda} failed: " if session.failure_code else ""
            hidden = self._executable.environment.get("CUDA_VISIBLE_DEVICES")
            hint = f"; CUDA_VISIBLE_DEVICES={hidden} leaves it no GPU" if hidden is not None else ""
            raise UserError(
                f"{driver}{session.failure}{hint if session.failure_code == NO_DEVICE else ''}.", exit_code=1
            )
        code = session.process.returncode
        raise UserError(
            f"The session process {self._executable.path} ended with {_ending(code)} before it was ready; "
            "set TF_ENABLE_LOG=1 TF_LOG_LEVEL=debug to see why.",
            exit_code=1,
        )

    def top_up(self) -> None:
        """Start sessions until as many are warm, or on their way, as were asked for.

        Not while a client waits for its first context: the driver makes one after the other.
        """
        self._replacement = None
        if self._client_waits() and not self._closing:
            self._replacement = asyncio.get_running_loop().call_later(SETTLE_LOOK, self.top_up)
            return
        while not self._closing and len(self._waiting()) < self._warm:
            if self._start() is None:
                self._replace_later()
                return

    def _client_waits(self) -> bool:
        """True while a session that was cold when its client came may be making its first context."""
        since = asyncio.get_running_loop().time() - SETTLE_PATIENCE
        return any(not session.has_context and session.adopted_at > since for session in self.serving())

    def discard_surplus(self) -> None:
        """End warm sessions beyond the number asked for (the first one, with --warm 0), and those with few devices."""
        waiting = (State.READY, State.STARTING)
        special = [session for session in self._sessions.values() if session.special and session.state in waiting]
        for session in [*self._waiting()[self._warm :], *special]:
            self.end(session)

    def _waiting(self) -> list[Session]:
        """Warm sessions that are for any client, the ready ones first, then by age."""
        waiting = (State.READY, State.STARTING)
        found = [session for session in self._sessions.values() if session.state in waiting and not session.special]
        return sorted(found, key=lambda session: session.state is not State.READY)

    def _start(self, warm: bool = True, devices: tuple[int, ...] = (), sm: int = 0) -> Session | None:
        """A new session process. One that is not warmed is for a client that waits, and does what that asks for."""
        row = self._page.take_row()
        if row is None:
            LOGGER.error("no session can be started: all rows of the quota page are in use")
            return None
        try:
            process, ours, lines = self._spawn(row, devices, sm)
        except (OSError, subprocess.SubprocessError) as error:
            self._page.release_row(row)
            LOGGER.error("session process %s cannot be started: %s", self._executable.path, error)
            self._not_started = error
            return None
        session = Session(process, ours, lines, row, _new_id(self._sessions), secrets.randbits(64), sees=devices)
        session.special = bool(devices or sm)
        self._sessions[session.id] = session
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._on_control, session)
        session.deadline = loop.call_later(WARM_DEADLINE, self._too_slow, session)
        LOGGER.debug("session %d started in row %d of the quota page", process.pid, row)
        if warm:
            tls = int(self._executable.tls)
            self._hand_over(session, Packet(PacketType.WARM, tls, session.id, session.key), None)
        return session

    def _spawn(
        self, row: int, devices: tuple[int, ...], sm: int
    ) -> tuple[subprocess.Popen[bytes], socket.socket, Lines | None]:
        """A session process, our end of its control channel, and where it writes in the full jail."""
        environment = {**self._executable.environment, **visible_devices(self._executable.environment, devices)}
        if sm:
            environment["TF_CUDA_SM_PERCENT_LIMIT"] = str(sm)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        lines: Lines | None = None
        output = self._executable.output
        try:
            if self.jail == "full":
                lines = Lines(environment.get("TF_LOG_LEVEL", "").strip().lower() not in ("debug", "trace"))
                output = lines.given
                environment.pop("TF_LOG_PATH", None)
            process = subprocess.Popen(
                self._command(theirs.fileno(), row),
                pass_fds=(theirs.fileno(), self._page.read_fd, self._page.fd, *self._segment_descriptors()),
                env=environment,
                stdin=subprocess.DEVNULL,
                # Without a log the worker's standard output carries the ready line and nothing from sessions.
                stdout=output,
                stderr=output,
                # A terminal's Ctrl-C is for the supervisor, which then ends its sessions in order. No preexec_fn: with
                # one Python copies its whole address space to start a process, which takes ten times as long.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            if lines:
                lines.close()
            raise
        finally:
            theirs.close()
        if lines:
            lines.begin(process.pid)
        return process, ours, lines

    def _command(self, control: int, row: int) -> list[str]:
        driver = self._executable.driver
        command = [str(self._executable.path), "--control-fd", str(control), "--row", str(row)]
        command += ["--quota-fd", str(self._page.read_fd), "--cells-fd", str(self._page.fd)]
        command += ["--driver", str(driver.cuda), "--nvml", str(driver.nvml)]
        if segment := self._executable.segment:
            command += ["--segment-fd", str(segment.fd), "--segment-size", str(segment.size)]
            command += ["--owners-fd", str(segment.owners_fd)]
        if self._executable.kernel_timeout:
            command += ["--kernel-timeout", str(self._executable.kernel_timeout)]
        if self.jail != "off":
            command += ["--jail"]
            command += ["--confine", ",".join(self._executable.layers)] if self.jail == "full" else []
            command += ["--calls", self._executable.calls] if self._executable.calls else []
        return [*command, "--simulated"] if driver.simulated else command

    def _segment_descriptors(self) -> tuple[int, ...]:
        segment = self._executable.segment
        return (segment.fd, segment.owners_fd) if segment else ()

    def _too_slow(self, session: Session) -> None:
        LOGGER.error("%s was not ready within %d s and is killed", session.name, WARM_DEADLINE)
        self.kill(session)

    # Handing out

    def serving(self) -> list[Session]:
        return [session for session in self._sessions.values() if session.state is State.SERVING]

    def take(self, devices: tuple[int, ...] = (), sm: int = 100) -> Session | None:
        """A session for a new client: ready, else on its way, else new; None if it cannot be started. One that is to
        see some devices only, or to have less of their multiprocessors than others, is always new, because the driver
        asks which when it starts, and a context has its share from its beginning."""
        if self._closing:
            return None
        less = sm < int(self._executable.environment.get("TF_CUDA_SM_PERCENT_LIMIT", "100"))
        if devices or less:
            return self._start(warm=False, devices=devices, sm=sm if less else 0)
        waiting = [session for session in self._waiting() if session.process.poll() is None]
        return waiting[0] if waiting else self._start(warm=False)

    def adopt(self, session: Session, greeting: Greeting, caller: Caller, access: Key | None) -> bool:
        """Give the client to the session. False: the session died, which has been dealt with."""
        session.state = State.SERVING
        session.access = access
        if access:
            self._page.let(session.row, access.secret, access.memory, session.sees)
        session.adopted_at = asyncio.get_running_loop().time()
        session.program, session.user, session.machine = greeting.program, greeting.user, greeting.machine
        session.since = time.time()
        session.client = f"{greeting.program or 'client'}@{caller.address}"
        session.connection = (caller.address, caller.port, greeting.client_pid)
        session.group, session.secret = caller.group, greeting.secret
        session.on_reaped = caller.session_reaped
        argument, value = caller.place
        packet = Packet(
            PacketType.ADOPT,
            argument=argument,
            session_id=session.id,
            session_key=session.key,
            value=value,
            text=session.client,
            body=greeting.packet,
        )
        self._disarm(session)
        self._replace_later()
        if not self._hand_over(session, packet, caller.descriptor):
            return False
        self.on_change()
        return True

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the full jail, in which sessions are started from now on."""
        return self._executable.layers if self.jail == "full" else ()

    def figures(self, session: Session) -> Figures:
        """What the session has counted; nothing of it is to be believed more than the session."""
        return self._page.figures(session.row)

    def held(self, session: Session) -> tuple[int, ...]:
        """Bytes of device memory that it has reserved, by device."""
        return self._page.held(session.row)

    def limit(self, key: Key) -> None:
        """What a secret may have is another from now on; devices and multiprocessors are for the sessions to come."""
        self._page.limit(key.secret, key.memory)
        for session in self.serving():
            if session.access and session.access.secret == key.secret:
                session.access = replace(key, devices=session.access.devices, sm=session.access.sm)

    def find(self, session_id: int, key: int) -> Session | None:
        """The serving session that a data connection names, if it knows the key."""
        session = self._sessions.get(session_id)
        # Compare even when there is no such session: an id is not to be found by timing.
        expected = session.key if session else 0
        same = hmac.compare_digest(expected.to_bytes(8, "little"), key.to_bytes(8, "little"))
        return session if session and same and session.state is State.SERVING else None

    def add_data(self, session: Session, descriptor: int, index: int, greeting: Greeting) -> bool:
        """Give a data connection to its session; the caller has checked the index with `data_free`."""
        session.data_taken.add(index)
        packet = Packet(
            PacketType.DATA,
            argument=index,
            session_id=session.id,
            session_key=session.key,
            body=greeting.packet,
        )
        return self._hand_over(session, packet, descriptor)

    @staticmethod
    def data_free(session: Session, index: int) -> bool:
        return index < DATA_CONNECTIONS and index not in session.data_taken

    def _hand_over(self, session: Session, packet: Packet, descriptor: int | None) -> bool:
        try:
            session.send(packet, descriptor)
        except OSError as error:
            LOGGER.error("%s does not take a message: %s", session.name, error)
            self.kill(session)
            return False
        return True

    # What sessions say

    def _on_control(self, session: Session) -> None:
        try:
            raw, descriptors, _, _ = socket.recv_fds(session.control, PACKET_BYTES + 1, 1, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            raw, descriptors = b"", []
        descriptor = descriptors[0] if descriptors else None
        packet = Packet.parse(raw)
        if packet and packet.type in SHARING and session.state is State.SERVING:
            self.shares.said(session, packet, descriptor)
            self._check_unread(session)
            return
        if packet and packet.type == PacketType.IMAGE and session.state is State.SERVING and self.images:
            self.images.said(session, packet, descriptor)
            return
        if descriptor is not None:
            os.close(descriptor)
        if not raw:
            if session.state is State.STARTING:
                self._failures += 1  # whatever ended it may end the next one too
            self.end(session)
            return
        if packet is None:
            LOGGER.error("%s sent a packet of %d bytes on its control channel and is killed", session.name, len(raw))
            self.kill(session)
        elif packet.type == PacketType.READY and session.state is State.STARTING:
            self._disarm(session)
            self._failures = 0
            session.state = State.READY
            session.has_context = True
            session.devices, session.device_name = packet.argument, packet.text
            session.multiprocessors = (packet.session_id, packet.session_key)
            self.devices = [packet.body[16 * index :][:16] for index in range(min(packet.argument, DEVICES))]
            session.device_memory = packet.value
            LOGGER.info("%s is ready: %s, %d MiB of its memory in use", session.name, packet.text, packet.value >> 20)
        elif packet.type == PacketType.FAILED and session.state is State.STARTING:
            session.state = State.FAILED
            session.failure = packet.text or f"CUDA error {packet.argument}"
            session.failure_code = packet.argument
            LOGGER.error("%s cannot serve: %s", session.name, session.failure)
            # Not kept for a client: a later one gets a fresh process and with it a fresh attempt.
            self._failures += 1
            self.end(session)
        elif packet.type == PacketType.LIST and session.state is State.SERVING:
            session.tell(self.on_list(session, packet))
            self._check_unread(session)
        elif packet.type == PacketType.SPOKEN:
            session.spoken = True
        elif packet.type == PacketType.GONE and not session.gone:
            session.gone = True
            LOGGER.info("%s: the client is gone after %d calls", session.name, packet.value)
        elif packet.type in (PacketType.READY, PacketType.FAILED) and session.state is not State.STARTING:
            session.has_context = True  # or will have none
            LOGGER.debug("%s: driver %s after its client came", session.name, PacketType(packet.type).name.lower())
        else:
            LOGGER.error("%s sent a packet of type %d out of turn and is killed", session.name, packet.type)
            self.kill(session)
        self._changed.set()

    def _check_unread(self, session: Session) -> None:
        if session.unread() > UNREAD_MAX or len(session.outbox) > UNSENT_MAX:
            LOGGER.error("%s does not take the answers that it asks for and is killed", session.name)
            self.kill(session)

    # Ending

    def end(self, session: Session) -> None:
        """Close the control channel, which asks the session to exit; kill it if it does not."""
        if session.control.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(session.control)
        loop.remove_writer(session.control)
        session.control.close()
        while session.outbox:
            session.drop_first()
        self._disarm(session)
        if session.state is not State.FAILED:
            session.state = State.ENDING
        session.deadline = loop.call_later(EXIT_GRACE, self.kill, session)
        self._changed.set()

    def kill(self, session: Session) -> None:
        self.end(session)
        self._disarm(session)
        if session.process.poll() is None:
            session.process.kill()
        else:
            self.reap()

    def _disarm(self, session: Session) -> None:
        if session.deadline:
            session.deadline.cancel()
            session.deadline = None

    def reap(self) -> None:
        """Take ended processes off the table and their memory off the quota page."""
        for session in list(self._sessions.values()):
            if session.process.poll() is None:
                continue
            del self._sessions[session.id]
            self.end(session)
            self._disarm(session)
            self.shares.gone(session, partial(self._page.release_row, session.row))
            session.on_reaped()
            if session.lines:
                session.lines.close()
            code = session.process.returncode
            level = LOGGER.info if code == 0 else LOGGER.warning
            level("%s ended with %s", session.name, _ending(code))
            self.on_change()
        if not self._closing:
            self._replace_later()
        self._changed.set()

    def _replace_later(self) -> None:
        if self._closing or self._replacement or len(self._waiting()) >= self._warm:
            return
        delay = min(REPLACE_DELAY * 2 ** min(self._failures, 10), MAX_REPLACE_DELAY)
        self._replacement = asyncio.get_running_loop().call_later(delay, self.top_up)

    async def close(self) -> None:
        """End all sessions and wait until no child is left."""
        self._closing = True
        if self._replacement:
            self._replacement.cancel()
        for session in list(self._sessions.values()):
            self.end(session)
        until = time.monotonic() + EXIT_GRACE
        while self._sessions and time.monotonic() < until + KILL_PATIENCE:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(until - time.monotonic(), 0.05))
            except asyncio.TimeoutError:
                for session in list(self._sessions.values()):
                    self.kill(session)
        for session in self._sessions.values():
            LOGGER.error("%s cannot be killed: it is stuck in the kernel", session.name)
        self.shares.close()
        if self.images:
            await self.images.close()
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


def _new_id(taken: Mapping[int, Session]) -> int:
    while True:
        identity = secrets.randbits(63)
        if identity and identity not in taken:
            return identity


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code} ({signal.strsignal(-code)})"
    words = {
        3: "a protocol violation of its client (exit code 3)",
        4: "more host memory than TF_SESSION_MEMORY_LIMIT (exit code 4)",
        5: "a kernel that ran for longer than --kernel-timeout (exit code 5)",
    }
    return f"exit code {code}" if code is None else words.get(code, f"exit code {code}")
