"""Processes that end at the worst moment: killed, stopped, crashed; who notices, how soon, and what is left.

Kills are SIGKILL, so that no process can say goodbye. "Middle of a copy" is exact: the victim does nothing but copy.
"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import psutil
import pytest
from stack.harness import LOSS_SECONDS, LOST, MIB, Program, Worker, whole_stack
from worker_harness import eventually, suspend

pytestmark = [*whole_stack, pytest.mark.usefixtures("both_transports")]
pytest_plugins = ["stack.fixtures"]
GONE_SECONDS = 1.0


def lost(client: Program, killed_at: float) -> None:
    """The client has told its loss in time, gets the same error from every later call, and ends by itself."""
    line = client.line(LOSS_SECONDS)
    assert time.monotonic() - killed_at < LOSS_SECONDS
    assert re.fullmatch(rf"\S+( \S+)? gave {LOST} after \d+ ms", line), line
    assert client.process.wait(5) == 0
    errors = client.errors()
    assert errors.count("is lost") == 1, errors


def of_client(worker: Worker, client: Program, before: list[psutil.Process]) -> psutil.Process:
    """The session that came with this client."""
    (session,) = (process for process in worker.sessions() if process not in before)
    assert client.process.poll() is None
    return session


# The client


@pytest.mark.parametrize("memory", ["pageable", "pinned"])
def test_client_killed_in_the_middle_of_a_copy(program: Path, memory: str) -> None:
    with (
        Worker(program=program, TF_GPU_MEMORY_LIMIT="256") as worker,
        worker.start("steady") as other,
        worker.console() as observer,
    ):
        assert other.line() == "steady"
        free, total, _ = observer.info()
        assert total == 256 * MIB
        with worker.start("copy", "128", memory) as victim:
            assert victim.line() == "copying"
            time.sleep(0.3)
            assert observer.info()[0] == free - 128 * MIB
            assert len(worker.sessions()) == 3
            killed_at = time.monotonic()
            victim.kill()
        assert eventually(lambda: len(worker.sessions()) == 2 and observer.info()[0] == free, GONE_SECONDS)
        assert time.monotonic() - killed_at < GONE_SECONDS + 0.2
        # What it held can be had by somebody else, to the last byte.
        assert observer.code(f"alloc 0 {free}") == 0
        assert other.end() == 0, other.errors()
        assert other.line().startswith("right after ")


def test_client_that_leaves_everything_behind(program: Path) -> None:
    with Worker(program=program, TF_GPU_MEMORY_LIMIT="64") as worker, worker.console() as observer:
        free = observer.info()[0]
        with worker.console() as untidy:
            for i in range(10):
                assert untidy.code(f"alloc {i} {2 * MIB + i}") == 0
                assert untidy.code(f"launch good {i}") == 0
            assert observer.info()[0] < free - 20 * MIB
            assert untidy.end() == 0
        assert eventually(lambda: len(worker.sessions()) == 1 and observer.info()[0] == free, GONE_SECONDS)


def test_client_stopped_for_a_while(worker: Worker) -> None:
    with worker.start("copy", "64") as client:
        assert client.line() == "copying"
        time.sleep(0.1)
        client.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        assert worker.run("compute")  # the worker has time for others
        client.process.send_signal(signal.SIGCONT)
        time.sleep(0.3)
        assert client.process.poll() is None
        assert len(worker.sessions()) == 1


# The session


@pytest.mark.parametrize("memory", ["pageable", "pinned"])
def test_session_killed_in_the_middle_of_a_copy(worker: Worker, memory: str) -> None:
    with worker.start("steady") as other:
        assert other.line() == "steady"
        before = worker.sessions()
        with worker.start("copy", "128", memory) as client:
            assert client.line() == "copying"
            time.sleep(0.3)
            session = of_client(worker, client, before)
            killed_at = time.monotonic()
            session.kill()
            lost(client, killed_at)
        assert other.end() == 0, other.errors()
        assert other.line().startswith("right after ")
    assert worker.run("compute")


def test_session_killed_while_three_threads_wait(worker: Worker) -> None:
    with worker.start("wait") as client:
        assert client.line() == "waiting"
        (session,) = worker.sessions()
        time.sleep(0.2)
        killed_at = time.monotonic()
        session.kill()
        lost(client, killed_at)


def test_worker_killed_before_its_session_has_looked(program: Path) -> None:
    """The client was accepted; the session that is to serve it is stopped, and then dies with its worker."""
    with Worker("--warm", "1", program=program) as worker:
        assert eventually(lambda: len(worker.sessions()) == 1)
        time.sleep(1)  # it has warmed up and waits for its client
        worker.sessions()[0].suspend()
        with worker.start("console") as client:
            assert client.line() == "console"
            client.begin("init")
            time.sleep(1)
            killed_at = time.monotonic()
            worker.end(signal.SIGKILL)
            assert int(client.line(LOSS_SECONDS).split()[0]) == LOST
            assert time.monotonic() - killed_at < LOSS_SECONDS
            assert client.code("init") == LOST
            assert client.end() == 0


def test_session_killed_between_calls(worker: Worker) -> None:
    with worker.console() as client:
        assert client.code("alloc 0 4096") == 0
        (session,) = worker.sessions()
        session.kill()
        assert eventually(lambda: client.code("alloc 1 4096") == LOST, LOSS_SECONDS)
        for command in ("alloc 2 10", "launch good 0", "sync", "read 0", "info"):
            assert client.code(command) == LOST, command
        assert client.end() == 0


def test_session_that_crashes_in_the_driver(program: Path) -> None:
    with Worker(program=program, TF_SIM_FAULTS="cuLaunchKernel:3=exit") as worker, worker.console() as client:
        assert client.code("alloc 0 4096") == 0
        for _ in range(3):
            assert client.code("launch good 0") == 0
        assert client.code("sync", LOSS_SECONDS) == LOST
        assert client.code("launch good 0") == LOST
        assert client.end() == 0
        with worker.console() as next_client:
            assert next_client.code("alloc 0 4096") == 0


def test_client_killed_while_the_driver_hangs(program: Path) -> None:
    with Worker(program=program, TF_SIM_FAULTS="cuMemcpyHtoDAsync_v2:5=hang") as worker:
        with worker.start("copy", "16", "pageable") as victim:
            assert victim.line() == "copying"
            time.sleep(0.5)
            assert len(worker.sessions()) == 1
            victim.kill()
        assert eventually(lambda: not worker.sessions(), GONE_SECONDS + 0.5)


def test_session_stopped_for_two_seconds(worker: Worker) -> None:
    with worker.start("steady") as client:
        assert client.line() == "steady"
        (session,) = worker.sessions()
        session.suspend()
        time.sleep(2)
        assert client.process.poll() is None
        session.resume()
        assert client.end() == 0, client.errors()  # every round had the right bytes, the one that stood still too
        told = re.fullmatch(r"right after \d+ rounds, longest (\d+) ms", client.line())
    assert told
    assert int(told[1]) >= 1900, "nothing waited for the session that stood still"


# The supervisor


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_supervisor_ended(program: Path, how: signal.Signals) -> None:
    with (
        Worker(program=program) as worker,
        worker.start("copy", "64") as copying,
        worker.start("wait") as waiting,
    ):
        assert copying.line() == "copying"
        assert waiting.line() == "waiting"
        time.sleep(0.3)
        sessions = worker.sessions()
        assert len(sessions) == 2
        killed_at = time.monotonic()
        worker.end(how)
        lost(copying, killed_at)
        lost(waiting, killed_at)
        assert eventually(
            lambda: not any(s.is_running() and s.status() != psutil.STATUS_ZOMBIE for s in sessions),
            max(killed_at + LOSS_SECONDS - time.monotonic(), 0),
        )


def test_supervisor_is_not_on_the_path_of_a_call(worker: Worker) -> None:
    with worker.console() as client:
        suspend(worker.process)
        try:
            for i in range(20):
                assert client.code(f"alloc {i} 100000") == 0
                assert client.code(f"launch good {i}") == 0
                assert client.ask(f"read {i}") == "0 5"
        finally:
            worker.process.send_signal(signal.SIGCONT)
        assert client.end() == 0


# Memory that several clients share


def test_limit_over_two_clients_to_the_byte(program: Path) -> None:
    with (
        Worker(program=program, TF_GPU_MEMORY_LIMIT="64") as worker,
        worker.console() as first,
        worker.console() as second,
    ):
        assert first.info() == second.info() == (64 * MIB, 64 * MIB, 64 * MIB)
        assert first.code(f"alloc 0 {64 * MIB + 1}") == 2
        assert first.code(f"alloc 0 {32 * MIB}") == 0
        assert second.info() == (32 * MIB, 64 * MIB, 64 * MIB)
        assert second.code(f"alloc 0 {32 * MIB + 1}") == 2
        assert second.code(f"alloc 0 {32 * MIB}") == 0
        assert first.info()[0] == second.info()[0] == 0
        assert first.code("alloc 1 1") == 2
        assert second.code("alloc 1 1") == 2
        # A failed allocation leaves no trace: everything else goes on, and what is freed can be had again.
        assert first.code("launch good 0") == 0
        assert first.code("sync") == 0
        assert second.code("free 0") == 0
        assert second.code("sync") == 0  # a free does not wait; what follows it in the same client does
        assert first.info()[0] == 32 * MIB
        assert first.code(f"alloc 1 {32 * MIB}") == 0
        assert second.code("alloc 0 1") == 2


def test_limit_holds_while_two_clients_race(program: Path) -> None:
    """Both ask for pieces at the same time, more than there are; together they get exactly the limit."""
    pieces = 60
    with (
        Worker(program=program, TF_GPU_MEMORY_LIMIT="64") as worker,
        worker.console() as first,
        worker.console() as second,
    ):
        for turn in range(3):
            for client in (first, second):
                assert client.process.stdin
                commands = "".join(f"alloc {i} {2 * MIB}\n" for i in range(pieces))
                client.process.stdin.write(commands.encode())
                client.process.stdin.flush()
            held = {client: [client.line().split()[0] for _ in range(pieces)] for client in (first, second)}
            assert {code for codes in held.values() for code in codes} == {"0", "2"}
            assert sum(codes.count("0") for codes in held.values()) == 32, turn
            assert first.info()[0] == second.info()[0] == 0
            for client, codes in held.items():
                for i, code in enumerate(codes):
                    if code == "0":
                        assert client.code(f"free {i}") == 0
                assert client.code("sync") == 0
            assert first.info()[0] == second.info()[0] == 64 * MIB
