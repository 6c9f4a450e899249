"""Who wants to keep others out, or to guess a secret: floods of connections, silent clients, wrong secrets.

Where a number of connections or a time is named, the test waits for the state itself, with a generous end.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack.harness import ROOT, connected_elsewhere, whole_stack
from stack.harness import Worker as RealWorker
from stranger import Lost, Stranger, handle
from worker_harness import SCHEMA, Worker, eventually, opening, read_welcome, suspend

from tensor_fusion.worker import tcp, throttle
from tensor_fusion.worker.protocol import Greeting, Role, Status

needs_native = pytest.mark.skipif(whole_stack[0].args[0], reason="needs the native files")


def welcomes(connection: socket.socket) -> Status:
    return Status(read_welcome(connection).status)


# Floods


def test_a_client_between_half_open_connections_is_served() -> None:
    """All of them are in the queue before the worker looks at the first."""
    with Worker() as worker:
        suspend(worker.process)
        before = [worker.connect() for _ in range(300)]
        client = worker.connect()
        client.sendall(Greeting.build(SCHEMA))
        behind = [worker.connect() for _ in range(600)]
        worker.process.send_signal(signal.SIGCONT)
        assert welcomes(client) == Status.ACCEPTED
        for one in [client, *before, *behind]:
            one.close()


def test_who_sent_something_stays_longer_than_who_sent_nothing() -> None:
    waiting = tcp._Waiting()
    with socket.socket() as unused:
        some = [tcp._Pending(unused, "192.0.2.1", number, "192.0.2.1", 0.0) for number in range(3)]
    for one in some:
        waiting.add(one)
    some[0].raw = b"T"
    waiting.add(some[0])
    for expected in (some[1], some[2], some[0], None):
        found = waiting.first_to_go()
        assert found is expected
        if found:
            waiting.remove(found)


def test_connections_of_one_address_do_not_take_the_places_of_another() -> None:
    """Another address of the loopback network is another host."""
    with Worker(FAKE_GREETING_DEADLINE="60") as worker:
        suspend(worker.process)
        other = socket.create_connection(("127.0.0.1", worker.port), timeout=10, source_address=("127.0.0.2", 0))
        idle = [worker.connect() for _ in range(1500)]
        worker.process.send_signal(signal.SIGCONT)
        # All of the flood have been accepted when one that comes behind them is answered.
        assert worker.refuse(Greeting.build(SCHEMA, role=Role.PROBE)).status == Status.PROBED
        other.sendall(Greeting.build(SCHEMA))
        assert welcomes(other) == Status.ACCEPTED
        for one in [other, *idle]:
            one.close()


@needs_native
@pytest.mark.parametrize("secret", ["", "0123456789abcdef"], ids=["plain", "with a secret"])
def test_a_client_tries_again_when_it_is_dropped_before_its_welcome(tmp_path: Path, secret: str) -> None:
    """The worker is behind a door that shuts the first connections without a word."""
    dropped: list[int] = []
    keys: dict[str, Any] = {}
    if secret:
        (tmp_path / "keys").write_text(secret)
        keys = {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(tmp_path / "keys")}
    with RealWorker(transport="native", **keys) as worker, socket.create_server(("127.0.0.1", 0)) as door:

        def relay(source: socket.socket, target: socket.socket) -> None:
            try:
                while part := source.recv(65536):
                    target.sendall(part)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        def serve() -> None:
            while True:
                try:
                    connection, _ = door.accept()
                except OSError:
                    return
                number = len(dropped)
                if number < 4:
                    dropped.append(number)
                    if number % 2:  # a reset, else an end
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    connection.close()
                    continue
                onward = socket.create_connection(("127.0.0.1", worker.port))
                for pair in ((connection, onward), (onward, connection)):
                    threading.Thread(target=relay, args=pair, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
        environment = connected_elsewhere(f"native+127.0.0.1+{door.getsockname()[1]}+0" + f"+{secret}" * bool(secret))
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
        assert len(dropped) == 4


@needs_native
@pytest.mark.deep
@pytest.mark.parametrize("secret", [[], ["--secret"]], ids=["plain", "with a secret"])
def test_good_clients_start_in_a_flood(tmp_path: Path, secret: list[str]) -> None:
    """2,000 connects a second and 500 that say nothing. How long starts take is for machines with more processors."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks/flood.py"), "--gpu", "sim", "--floods", "1", "--seconds", "4"]
    done = subprocess.run(
        [*command, "--rate", "2000", "--held", "500", *secret, "--out", str(figures)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert figures.exists(), done.stderr
    found = json.loads(figures.read_text())
    assert found["rate"] > 500 and found["held"] > 250  # there was a flood
    for when in ("quiet", "flood"):
        assert found[when]["starts"] > 3
        assert not found[when]["starts that failed"]


# Places


def test_clients_of_an_address_that_say_nothing_are_bounded() -> None:
    with Worker(FAKE_TURN_DEADLINE="20") as worker:
        silent = [worker.client() for _ in range(16)]
        waiting = worker.connect()
        waiting.settimeout(60)
        waiting.sendall(Greeting.build(SCHEMA))
        assert silent[0].ask("pid")  # it is silent no more
        assert welcomes(waiting) == Status.ACCEPTED
        other = socket.create_connection(("127.0.0.1", worker.port), timeout=10, source_address=("127.0.0.2", 0))
        other.sendall(Greeting.build(SCHEMA))
        assert welcomes(other) == Status.ACCEPTED
        for one in (waiting, other):
            one.close()
        for client in silent:
            client.close()


def test_who_waits_too_long_for_its_turn_is_told_why() -> None:
    with Worker(FAKE_TURN_DEADLINE="0.2") as worker:
        silent = [worker.client() for _ in range(16)]
        refused = worker.refuse(Greeting.build(SCHEMA))
        assert refused.status == Status.NO_SESSION
        assert "16 clients of this address" in refused.sentence
        for client in silent:
            client.close()


@needs_native
def test_a_session_that_is_asked_for_nothing_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        RealWorker(transport="native", TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker,
        Stranger(worker.port, silent=True) as silent,
    ):
        silent.connection.sendall(silent.frame("start", True)[:7])  # half a frame is none
        assert silent.connection.recv(1) == b""
        assert eventually(lambda: not worker.sessions())
        assert "asked for nothing in 10 s" in log.read_text()
        with Stranger(worker.port) as other:
            assert other.call("cuMemGetInfo_v2")[0] == 0


def test_clients_of_one_address_and_of_one_secret_are_bounded(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    keys.chmod(0o600)
    variables = {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)}
    options = ("--max-clients-per-address", "3", "--max-clients-per-secret", "2")
    with Worker(*options, **variables) as worker:
        clients = [worker.client(secret="first"), worker.client(secret="first")]
        refused = worker.refuse(Greeting.build(SCHEMA, secret="first"))
        assert refused.status == Status.NO_SESSION
        assert "2 clients with this secret" in refused.sentence
        clients.append(worker.client(secret="second"))
        refused = worker.refuse(Greeting.build(SCHEMA, secret="second"))
        assert "3 clients of this address" in refused.sentence
        clients.pop().close()
        assert eventually(lambda: worker.exchange(Greeting.build(SCHEMA, secret="second"))[1].status == Status.ACCEPTED)
        for client in clients:
            client.close()


# Sessions that were taken over


def test_a_session_does_not_fill_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        client, other = worker.client(), worker.client()
        client.connection.sendall(b"gone 1000\n")
        assert client.connection.recv(1) == b""
        assert other.ask("pid")
        assert log.read_text().count("the client is gone after") == 1
        assert log.read_text().count("out of turn and is killed") == 1
        client.close()
        other.close()


# The jail, with a driver that is not simulated


def test_the_first_session_makes_room_for_one_in_the_jail() -> None:
    with Worker(FAKE_REAL="1") as worker:
        assert eventually(lambda: len(worker.children()) == 1)
        client = worker.client()
        assert client.ask("jail") == "True"
        client.close()
        assert worker.stop() == 0
        assert "NOTICE: sessions run without" not in worker.errors


def test_a_driver_that_does_not_start_in_the_jail_is_served_without() -> None:
    with Worker(FAKE_REAL="1", FAKE_SESSION="free") as worker:
        clients = [worker.client(), worker.client()]
        assert [client.ask("jail") for client in clients] == ["False", "False"]
        for client in clients:
            client.close()
        assert worker.stop() == 0
        assert "NOTICE: sessions run without a jail" in worker.errors


def test_a_driver_that_does_not_start_in_the_full_jail_is_served_in_the_basic_one() -> None:
    with Worker("--jail", "full", FAKE_REAL="1", FAKE_SESSION="unconfined") as worker:
        client = worker.client()
        assert client.ask("jail") == "True"
        client.close()
        assert worker.stop() == 0
        assert "NOTICE: sessions run in the basic jail: in the full one the driver does not start" in worker.errors
        assert "without a jail" not in worker.errors


# What a session has

STATUS = re.compile(r"^(\w+):\s+(\S+)$", re.MULTILINE)


@needs_native
@pytest.mark.parametrize("jail", ["basic", "off"])
def test_a_session_has_no_privileges_and_leaves_no_core_file(tmp_path: Path, jail: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        worker = RealWorker("--jail", jail, transport="native")
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    with worker, Stranger(worker.port) as client:
        (session,) = worker.sessions()
        # Its memory is in reach of nobody without privileges, and of no file.
        assert session.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert Path(f"/proc/{session.pid}/environ").stat().st_uid == 0
        for thread in session.threads():
            has = dict(STATUS.findall(Path(f"/proc/{session.pid}/task/{thread.id}/status").read_text()))
            own = dict(STATUS.findall(Path("/proc/self/status").read_text()))
            if jail == "off":
                assert has["CapEff"] == own["CapEff"]
                continue
            assert has["NoNewPrivs"] == "1"
            assert {has[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert client.call("cuMemGetInfo_v2")[0] == 0


def nested_graphs(client: Stranger) -> None:
    """20 nodes, in 20 child nodes, in 20 child nodes …: 3.2 million in 105 frames."""
    inner = handle("graph", 5)
    assert client.call("cuGraphCreate", phGraph=inner)[0] == 0
    node = 0
    for index in range(6, 11):
        for _ in range(20):
            node += 1
            place = handle("graphnode", node)
            if index == 6:
                client.post("cuGraphAddEmptyNode", hGraph=inner, phGraphNode=place)
            else:
                client.post("graph_child", owner=handle("graph", index - 1), node=place, child=inner)
        inner = handle("graph", index - 1)
        assert client.call("cuGraphCreate", phGraph=handle("graph", index))[0] == 0


def unfinished_images(client: Stranger) -> None:
    """Of an image of 2 GiB all but the last chunk."""
    lane = client.add_lane()
    client.post("image_load", size=2 << 30, owner=handle("module", 5), transfer=7)
    for number in range(2047):
        lane.sendall(struct.pack("<QQII", 7, number << 20, 1 << 20, 0) + bytes(1 << 20))
    client.call("cuMemGetInfo_v2")


@needs_native
@pytest.mark.parametrize("attack", [nested_graphs, unfinished_images])
def test_a_client_takes_so_much_host_memory_and_no_more(tmp_path: Path, attack: Callable[[Stranger], None]) -> None:
    log = tmp_path / "log"
    loud = {"TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log), "TF_SESSION_MEMORY_LIMIT": "512"}
    with RealWorker(program=None, transport="native", **loud) as worker, Stranger(worker.port) as neighbour:
        with Stranger(worker.port) as client, pytest.raises((Lost, OSError)):
            attack(client)
        assert neighbour.call("cuMemGetInfo_v2")[0] == 0
        assert eventually(lambda: len(worker.sessions()) == 1)
        assert "and may have 512 (TF_SESSION_MEMORY_LIMIT)" in log.read_text()
        assert eventually(lambda: "more host memory than" in log.read_text())


# Device memory

MEGABYTE = 1 << 20


def with_variable(megabytes: int) -> bytes:
    ptx = (Path(__file__).parent / "kernels/kernels.ptx").read_text()
    head, rest = ptx.split(".address_size 64", 1)
    variable = f".visible .global .align 8 .b8 big[{megabytes * MEGABYTE}];"
    return f"{head}.address_size 64\n{variable}\n{rest}".encode() + b"\0"


def load(client: Stranger, kind: str, index: int, megabytes: int) -> int:
    image = with_variable(megabytes)
    place = handle(kind, index)
    error, out = client.call("image_load", size=len(image), owner=place, is_library=int(kind == "library"), data=image)
    return error or out["result"]


def free(client: Stranger) -> int:
    error, out = client.call("cuMemGetInfo_v2")
    assert error == 0
    return out["free"]


@pytest.fixture
def limited() -> Iterator[RealWorker]:
    with RealWorker(transport="native", TF_GPU_MEMORY_LIMIT="600") as worker:
        yield worker


@needs_native
@pytest.mark.parametrize("kind", ["module", "library"])
def test_variables_of_images_count_for_the_limit(limited: RealWorker, kind: str) -> None:
    with Stranger(limited.port) as client:
        whole = free(client)
        assert load(client, kind, 1, 1024) == 2
        assert free(client) == whole
        assert load(client, kind, 2, 200) == load(client, kind, 3, 200) == 0
        assert whole - free(client) >= 400 * MEGABYTE
        assert client.call("memory_alloc", size=250 * MEGABYTE)[0] == 2
        assert load(client, kind, 4, 250) == 2
        assert client.call(f"{kind}_unload", **{kind: handle(kind, 2)})[0] == 0
        assert eventually(lambda: whole - free(client) < 300 * MEGABYTE)
        assert load(client, kind, 4, 250) == 0
        assert client.call(f"{kind}_unload", **{kind: handle(kind, 3)})[0] == 0
        assert client.call(f"{kind}_unload", **{kind: handle(kind, 4)})[0] == 0
        assert eventually(lambda: free(client) == whole)


@needs_native
def test_a_library_that_was_loaded_without_a_context_counts_when_it_gets_one(limited: RealWorker) -> None:
    with Stranger(limited.port) as client:
        whole, context = free(client), client.context
        client.context = 0
        assert [load(client, "library", index, 400) for index in (1, 2)] == [0, 0]
        client.context = context
        answers = [
            client.call("library_module", library=handle("library", index), module=handle("module", index))[0]
            for index in (1, 2)
        ]
        assert answers == [0, 2]
        assert client.call("library_module", library=handle("library", 2), module=handle("module", 3))[0] == 2
        assert client.call("library_unload", library=handle("library", 1))[0] == 0
        assert eventually(lambda: free(client) == whole)


@needs_native
def test_contexts_count_for_the_limit(limited: RealWorker) -> None:
    with Stranger(limited.port) as client:
        whole = free(client)
        made = [client.call("context_create", context=handle("context", index), device=0)[0] for index in (5, 6)]
        assert made == [0, 2]
        assert whole - free(client) > 100 * MEGABYTE
        assert client.call("context_destroy", context=handle("context", 5))[0] == 0
        assert eventually(lambda: free(client) == whole)
        assert client.call("context_create", context=handle("context", 7), device=0)[0] == 0


@needs_native
def test_a_byte_of_a_pool_counts_as_what_the_pool_takes(limited: RealWorker) -> None:
    with Stranger(limited.port) as client:
        whole, pool = free(client), handle("pool", 1)
        assert client.call("pool_default", pool=pool, device=0)[0] == 0
        for _ in range(1000):
            assert client.call("pool_alloc", pool=pool, size=1)[0] == 0
        assert whole - free(client) >= 1000 * 512


# Guesses


def guess(worker: Worker, number: int) -> socket.socket:
    connection = worker.connect()
    connection.sendall(opening(Greeting.build(SCHEMA, role=Role.PROBE, secret=f"guess{number}"))[0])
    return connection


def test_guesses_are_few_a_second_and_their_lines_fewer(tmp_path: Path) -> None:
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("right\n")
    keys.chmod(0o600)
    variables = {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)}
    variables |= {"FAKE_TURN_DEADLINE": "1", "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log)}
    with Worker(**variables) as worker:
        began = time.monotonic()
        guesses = [guess(worker, number) for number in range(120)]
        answers = [welcomes(connection) for connection in guesses]
        took = time.monotonic() - began
        assert answers.count(Status.SECRET_REFUSED) <= 20 + 2 * took + 1
        assert answers.count(Status.NO_SESSION) == 120 - answers.count(Status.SECRET_REFUSED)
        for connection in guesses:
            connection.close()
        other = socket.create_connection(("127.0.0.1", worker.port), timeout=10, source_address=("127.0.0.2", 0))
        first, psk = opening(Greeting.build(SCHEMA, secret="right"))
        other.sendall(first)
        assert read_welcome(other, psk).status == Status.ACCEPTED
        other.close()
        assert log.read_text().count(" refused: ") <= 10 + 0.2 * (time.monotonic() - began) + 1


def test_a_throttle_gives_its_burst_and_then_its_rate() -> None:
    now = [100.0]
    few = throttle.Throttle(3, 2, lambda: now[0])
    assert [few.take("a") for _ in range(4)] == [True, True, True, False]
    assert few.take("b")
    now[0] += 1
    assert [few.take("a") for _ in range(3)] == [True, True, False]
    now[0] += 1000
    assert [few.take("a") for _ in range(4)] == [True, True, True, False]


def test_a_throttle_remembers_so_many_and_no_more() -> None:
    now = [0.0]
    few = throttle.Throttle(1, 0.001, lambda: now[0])
    assert few.take("first")
    for number in range(throttle.MOST_KEYS):
        assert few.take(f"key {number}")
    assert few.take("first")  # forgotten
    assert not few.take(f"key {throttle.MOST_KEYS - 1}")


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_whose_an_address_is(address: str, whose: str) -> None:
    assert throttle.group(address) == whose
