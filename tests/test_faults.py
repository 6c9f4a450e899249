"""Each fault in the middle of each kind of work, over both transports: what the program is told, and what is left.

The program (tests/stack/moments.c) does one kind of work again and again and compares every byte. A neighbour works
beside it all the time and must not notice; after each fault a new client is served, and the device's memory is whole.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from stack.harness import LOSS_SECONDS, LOST, Program, Worker, connected_elsewhere, whole_stack
from worker_harness import eventually

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
MOMENTS = ["upload", "wait", "function", "capture"]
GONE_SECONDS = 1.0
LAUNCH_FAILED = 719
every_moment = pytest.mark.parametrize("moment", MOMENTS)
every_transport = pytest.mark.usefixtures("both_transports")


class Scene:
    """A worker, a neighbour at work, and a program that is in the middle of something."""

    def __init__(self, worker: Worker, neighbour: Program, victim: Program, session: psutil.Process) -> None:
        self.worker, self.neighbour, self.victim, self.session = worker, neighbour, victim, session


def over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def scene(
    worker: Worker, moment: str, env: dict[str, str] | None = None, neighbours_too: bool = False
) -> Iterator[Scene]:
    """At the end the neighbour was right all the time (unless it was to be hit as well) and a new client is served."""
    assert worker.program
    with worker.start("moment", "wait") as neighbour, worker.console() as observer:
        assert neighbour.line() == "there"
        free = observer.info()[0]
        before = worker.sessions()
        with Program([worker.program, "moment", moment], {**worker.env, **(env or {})}) as victim:
            assert victim.line() == "there"
            (session,) = (process for process in worker.sessions() if process not in before)
            yield Scene(worker, neighbour, victim, session)
            assert victim.process.wait(10) is not None
        if neighbours_too:
            return
        assert eventually(lambda: observer.info()[0] == free, GONE_SECONDS + 0.5)
        assert eventually(lambda: over(session), GONE_SECONDS)
        goes_on(neighbour)
        assert observer.code("alloc 0 4096") == 0
    assert worker.run("compute")


def goes_on(victim: Program) -> None:
    """It is told nothing, and what it computes is right."""
    assert victim.end() == 0, victim.errors()
    assert re.fullmatch(r"right after \d+ rounds", victim.line())


def told(victim: Program, code: int, seconds: float = LOSS_SECONDS) -> None:
    """One call gives the error, and so does every later one; the program ends by itself."""
    line = victim.line(seconds)
    assert re.fullmatch(rf"\w+ gave {code} after \d+ rounds, and {code} from then on", line), line
    assert victim.process.wait(5) == 0, victim.errors()


def pause(seconds: float) -> None:
    """Into the middle of a round."""
    time.sleep(seconds)


@every_moment
@every_transport
def test_the_client_is_killed(worker: Worker, moment: str) -> None:
    with scene(worker, moment) as on:
        pause(0.13)
        on.victim.kill()
        assert eventually(lambda: over(on.session), GONE_SECONDS)


@every_moment
@every_transport
def test_the_session_is_killed(worker: Worker, moment: str) -> None:
    with scene(worker, moment) as on:
        pause(0.13)
        on.session.kill()
        told(on.victim, LOST)


@every_moment
@every_transport
@pytest.mark.parametrize("who", ["client", "session", "supervisor"])
def test_one_of_them_is_stopped_for_a_while(worker: Worker, moment: str, who: str) -> None:
    with scene(worker, moment) as on:
        of = {"client": on.victim.process.pid, "session": on.session.pid, "supervisor": on.worker.process.pid}
        pause(0.13)
        os.kill(of[who], signal.SIGSTOP)
        pause(1.5)
        os.kill(of[who], signal.SIGCONT)
        pause(0.3)
        goes_on(on.victim)


@every_moment
@every_transport
def test_the_supervisor_is_killed(worker: Worker, moment: str) -> None:
    with scene(worker, moment, neighbours_too=True) as on:
        pause(0.13)
        sessions = on.worker.sessions()
        on.worker.end(signal.SIGKILL)
        told(on.victim, LOST)
        assert eventually(lambda: all(map(over, sessions)), LOSS_SECONDS)


# The driver

# A call that each kind of work makes in the session, and the number of one that is behind the first round.
IN_THE_DRIVER = {
    "upload": "cuMemcpyHtoDAsync_v2:40",
    "wait": "cuLaunchKernel:8",
    "function": "cuLaunchHostFunc:4",
    "capture": "cuGraphLaunch:3",
}


@contextmanager
def faulty(program: Path, moment: str, effect: str) -> Iterator[tuple[Worker, Program]]:
    """A worker in whose sessions that call has that effect, and a program that is about to meet it."""
    with Worker(program=program, TF_SIM_FAULTS=f"{IN_THE_DRIVER[moment]}={effect}") as worker:
        with worker.start("moment", moment) as victim:
            assert victim.line() == "there"
            yield worker, victim
        assert eventually(lambda: not worker.sessions(), GONE_SECONDS + 0.5)
        with worker.console() as client:
            assert client.code("alloc 0 4096") == 0


@every_moment
@every_transport
def test_the_driver_never_comes_back(program: Path, moment: str) -> None:
    """The client waits, as natively; when it is killed, its session goes."""
    with faulty(program, moment, "hang") as (_, victim):
        pause(4)
        assert victim.process.stdin
        victim.process.stdin.close()  # a program that gets on ends behind the round in which it is
        with pytest.raises(subprocess.TimeoutExpired):
            victim.process.wait(2)
        victim.kill()


@every_moment
@every_transport
def test_the_driver_ends_the_session(program: Path, moment: str) -> None:
    with faulty(program, moment, "exit") as (_, victim):
        told(victim, LOST, 10)


@every_moment
@every_transport
def test_the_context_is_broken(program: Path, moment: str) -> None:
    with faulty(program, moment, f"{LAUNCH_FAILED},sticky") as (_, victim):
        told(victim, LAUNCH_FAILED, 10)


# The network


class Relay:
    """Carries a worker's connections. `way` takes what came, says what goes on, and may take its time."""

    def __init__(self, port: int, way: Callable[[bytes], Iterator[bytes]]) -> None:
        self._to, self._way = port, way
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._all: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                worker = socket.create_connection(("127.0.0.1", self._to))
                self._all += [client, worker]
                for source, sink in ((client, worker), (worker, client)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # cut, or one side has ended: the other is told below
            while part := source.recv(1 << 16):
                for piece in self._way(part):
                    sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Reset every connection."""
        for one in self._all:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):  # the other end was reset before
                one.shutdown(socket.SHUT_RD)
            one.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._all:
            one.close()


def straight(part: bytes) -> Iterator[bytes]:
    yield part


def in_crumbs(part: bytes) -> Iterator[bytes]:
    """Small things byte by byte, the beginning of large ones too."""
    for at in range(min(len(part), 40)):
        yield part[at : at + 1]
    if len(part) > 40:
        yield part[40:]


def late(part: bytes) -> Iterator[bytes]:
    """By 0 to 8 ms, not always the same."""
    time.sleep(random.random() * 0.008)
    yield part


@contextmanager
def through(program: Path, moment: str, way: Callable[[bytes], Iterator[bytes]]) -> Iterator[tuple[Scene, Relay]]:
    with (
        Worker(program=program, transport="native") as worker,
        Relay(worker.port, way) as relay,
        scene(worker, moment, connected_elsewhere(f"native+127.0.0.1+{relay.port}+0")) as on,
    ):
        yield on, relay


@every_moment
def test_the_connections_are_reset(program: Path, moment: str) -> None:
    with through(program, moment, straight) as (on, relay):
        pause(0.13)
        relay.cut()
        told(on.victim, LOST)


@every_moment
@pytest.mark.parametrize("way", [in_crumbs, late], ids=["in crumbs", "late"])
def test_the_network_is_slow(program: Path, moment: str, way: Callable[[bytes], Iterator[bytes]]) -> None:
    with through(program, moment, way) as (on, _):
        pause(2)
        goes_on(on.victim)


# The host


@every_moment
@every_transport
def test_the_log_takes_no_more(program: Path, moment: str) -> None:
    """Every line is lost, and nothing else."""
    full = {"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "trace", "TF_LOG_PATH": "/dev/full"}
    with Worker(program=program, **full) as worker, scene(worker, moment, full) as on:
        pause(1)
        goes_on(on.victim)
