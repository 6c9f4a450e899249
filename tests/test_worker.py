"""The supervisor with a stand-in session, in real processes: who is let in, and what is left when things end."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from random import Random

import psutil
import pytest
from worker_harness import SCHEMA, Worker, alive, command, environment, eventually, fails, read_welcome

from tensor_fusion.worker.protocol import RELEASE, Greeting, Status


def test_ready_and_the_cost_of_being_warm_are_the_only_output() -> None:
    with Worker() as worker:
        assert worker.ready == f"ready native 127.0.0.1:{worker.port} (Fake GPU, 2 GPUs)\n"
        assert worker.process.stdout
        words = r"warm 1 session, each \d+ MiB of host memory; with the first, \d+ MiB of Fake GPU are in use"
        assert re.fullmatch(words + " by all processes\n", worker.process.stdout.readline())
        assert worker.stop() == 0
        assert worker.output == ""
        assert "SIMULATED" in worker.errors


def test_client_gets_its_own_session() -> None:
    with Worker() as worker:
        first, second = worker.client("train.py"), worker.client("infer.py")
        assert first.welcome.session_id != second.welcome.session_id
        assert first.welcome.data_connections == 8
        assert first.ask("pid") != second.ask("pid")
        assert first.ask("row") != second.ask("row")
        assert first.ask("text") == "train.py@127.0.0.1"
        assert second.ask("text") == "infer.py@127.0.0.1"
        first.close()
        second.close()


def test_session_is_told_driver_and_simulation() -> None:
    with Worker() as worker:
        cuda, nvml, simulated = worker.client().ask("driver").split()
        assert cuda.endswith("lib/libtf-simgpu.so")
        assert nvml == cuda
        assert simulated == "True"


def test_program_name_is_made_printable() -> None:
    with Worker() as worker:
        assert worker.client("a\x1b[2Jb").ask("text") == "a?[2Jb@127.0.0.1"


def test_warm_session_is_used_and_replaced() -> None:
    with Worker() as worker:
        warm = {child.pid for child in worker.children()}
        client = worker.client()
        assert int(client.ask("pid")) in warm
        assert eventually(lambda: len(worker.children()) == 2), "no replacement was started"


def test_replacement_waits_for_the_client_to_start() -> None:
    with Worker() as worker:
        client = worker.client()
        client.ask("pid")
        time.sleep(0.5)
        assert len(worker.children()) == 1


def test_replacement_waits_for_the_first_context_of_a_client(tmp_path: Path) -> None:
    with Worker(FAKE_SESSION=f"late:{tmp_path}/first") as worker:
        first = worker.client()
        first.ask("pid")
        second = worker.client()  # its session is cold: it has no context before it says so
        second.ask("pid")
        assert len(worker.children()) == 2
        time.sleep(2)
        assert len(worker.children()) == 2
        second.ask("context")
        assert eventually(lambda: len(worker.children()) == 3), "no replacement was started"


def test_replacement_does_not_wait_for_a_client_that_has_gone(tmp_path: Path) -> None:
    with Worker(FAKE_SESSION=f"late:{tmp_path}/first") as worker:
        first = worker.client()
        first.ask("pid")
        second = worker.client()
        second.ask("pid")
        second.close()
        assert eventually(lambda: len(worker.children()) == 2), "no replacement was started"


def test_no_warm_session_when_none_is_wanted() -> None:
    with Worker("--warm", "0") as worker:
        assert eventually(lambda: not worker.children())
        assert worker.client().ask("row") == "0"


def test_data_connections_reach_their_session() -> None:
    with Worker() as worker:
        client = worker.client()
        streams = [worker.exchange(worker.data_greeting(client, index)) for index in (0, 3)]
        assert all(welcome.status == Status.ACCEPTED for _, welcome in streams)
        assert eventually(lambda: client.ask("data") == "0,3")
        assert worker.refuse(worker.data_greeting(client, 3)).status == Status.NO_SUCH_SESSION
        assert worker.refuse(worker.data_greeting(client, 8)).status == Status.NO_SUCH_SESSION


def test_data_connection_needs_the_key() -> None:
    with Worker() as worker:
        client = worker.client()
        wrong = worker.data_greeting(client, 0, key=client.welcome.session_key ^ 1)
        assert worker.refuse(wrong).status == Status.NO_SUCH_SESSION
        client.close()
        assert eventually(lambda: worker.exchange(worker.data_greeting(client, 0))[1].status == Status.NO_SUCH_SESSION)


def test_another_frame_version_is_named_and_another_schema_let_in() -> None:
    with Worker() as worker:
        later = worker.refuse(Greeting.build(SCHEMA, version=3, release=1_004_000))
        assert later.status == Status.PROTOCOL_DIFFERS
        assert later.sentence == (
            "The client is of release 1.4.0 and this worker of 0.2.0; the two cannot talk to each other (frame "
            "versions 3 and 2): upgrade the worker to release 1.4.0 or a later one."
        )
        _, welcome = worker.exchange(Greeting.build(bytes(16)))
        assert (welcome.status, welcome.schema, welcome.release) == (Status.ACCEPTED, SCHEMA, RELEASE)
        assert worker.refuse(Greeting.build(SCHEMA, role=9)).status == Status.NOT_A_GREETING


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" * 200, b"TFUSION\x01" * 32, b"\0" * 256])
def test_junk_is_answered_and_closed(junk: bytes) -> None:
    with Worker() as worker:
        connection, welcome = worker.exchange(junk[:256])
        assert welcome.status == Status.NOT_A_GREETING
        connection.close()
        assert worker.client().ask("row") == "0"


def test_connection_that_says_nothing_is_closed_after_the_deadline() -> None:
    with Worker() as worker:
        started = time.monotonic()
        connection = worker.connect()
        assert connection.recv(1) == b""
        assert 1.5 < time.monotonic() - started < 4


def test_slow_greeting_is_cut_off_at_the_deadline() -> None:
    with Worker() as worker:
        connection = worker.connect()
        greeting = Greeting.build(SCHEMA)
        started = time.monotonic()
        connection.settimeout(0.1)
        answer = b""
        for byte in greeting:
            try:
                connection.send(bytes([byte]))
                answer = connection.recv(512)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - started < 4
        assert not answer or struct.unpack_from("<I", answer, 12)[0] == Status.NOT_A_GREETING


def test_greeting_in_pieces_is_accepted() -> None:
    with Worker() as worker:
        connection = worker.connect()
        greeting = Greeting.build(SCHEMA)
        for start in range(0, 256, 50):
            connection.sendall(greeting[start : start + 50])
            time.sleep(0.02)
        assert read_welcome(connection).status == Status.ACCEPTED


def test_idle_connections_do_not_keep_a_client_out() -> None:
    with Worker() as worker:
        idle = [worker.connect() for _ in range(400)]
        started = time.monotonic()
        client = worker.client()
        assert client.ask("row") == "0"
        assert time.monotonic() - started < 1.5
        for connection in idle:
            connection.close()


def test_worker_out_of_descriptors_recovers() -> None:
    with Worker() as worker:
        psutil.Process(worker.process.pid).rlimit(psutil.RLIMIT_NOFILE, (30, 8192))
        idle = [worker.connect() for _ in range(100)]
        time.sleep(0.3)
        for connection in idle:
            connection.close()
        assert worker.client().ask("row") == "0"


def test_junk_does_not_disturb_a_client() -> None:
    random = Random(7)
    with Worker() as worker:
        client = worker.client()
        for _ in range(150):
            with worker.connect() as connection:
                prefix = random.choice([b"", b"TFUSION\0", Greeting.build(SCHEMA)[: random.randrange(257)]])
                connection.sendall(prefix + random.randbytes(random.randrange(1, 2000)))
            assert client.ask("row") == "0"
        assert worker.process.poll() is None


def test_reset_connections_are_survived() -> None:
    with Worker() as worker:
        for _ in range(50):
            connection = worker.connect()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.send(Greeting.build(SCHEMA)[:100])
            connection.close()
        assert worker.client().ask("row") == "0"


def test_more_clients_than_allowed_are_refused_until_one_leaves() -> None:
    with Worker("--max-clients", "2") as worker:
        first, second = worker.client(), worker.client()
        refused = worker.refuse(Greeting.build(SCHEMA))
        assert refused.status == Status.NO_SESSION
        assert "2 clients" in refused.sentence
        first.close()
        assert eventually(lambda: worker.exchange(Greeting.build(SCHEMA))[1].status == Status.ACCEPTED)
        second.close()


def test_secret(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-secret\n\nother\n")
    log = tmp_path / "log"
    variables = {
        "TF_ENABLE_URL_AUTH": "1",
        "TF_AUTHORIZED_KEY_PATH": str(keys),
        "TF_ENABLE_LOG": "1",
        "TF_LOG_LEVEL": "trace",
        "TF_LOG_PATH": str(log),
    }
    with Worker(**variables) as worker:
        for wrong in ("", "first", "first-secret2", "FIRST-SECRET"):
            refused = worker.refuse(Greeting.build(SCHEMA, secret=wrong))
            assert refused.status == Status.SECRET_REFUSED
            assert not wrong or wrong not in refused.sentence
        other = worker.client(secret="other")
        assert b"other".hex() not in other.ask("greeting")
        assert other.ask("env TF_AUTHORIZED_KEY_PATH") == other.ask("env TF_ENABLE_URL_AUTH") == "(unset)"
        other.close()
        worker.client(secret="first-secret").close()
        keys.write_text("new\n")
        assert worker.refuse(Greeting.build(SCHEMA, secret="other")).status == Status.SECRET_REFUSED
        worker.client(secret="new").close()
        keys.unlink()
        worker.client(secret="new").close()
        worker.stop()
    text = log.read_text()
    assert "refused" in text
    assert "first-secret" not in text
    assert "FIRST-SECRET" not in text


def test_crashed_session_frees_its_memory_and_slot() -> None:
    with Worker() as worker:
        victim, other = worker.client(), worker.client()
        assert victim.ask("reserve 1000") == "1000"
        assert other.ask("reserve 24") == "1024"
        row = victim.ask("row")
        assert victim.ask("crash") == ""
        assert eventually(lambda: other.ask("total") == "24", 1.0)
        assert eventually(lambda: worker.client().ask("row") == row)


def test_killed_client_frees_memory_within_a_second() -> None:
    with Worker() as worker:
        client, other = worker.client(), worker.client()
        client.ask("reserve 5")
        client.close()
        assert eventually(lambda: other.ask("total") == "0", 1.0)


def test_memory_limit_reaches_the_page() -> None:
    with Worker(TF_GPU_MEMORY_LIMIT="7", TF_CUDA_MEMORY_LIMIT="9") as worker:
        assert worker.client().ask("limit") == str(7 << 20)
    with Worker(TF_CUDA_MEMORY_LIMIT="9") as worker:
        assert worker.client().ask("limit") == str(9 << 20)


def test_connections_file_follows_the_clients(tmp_path: Path) -> None:
    path = tmp_path / "connections.txt"
    with Worker(TF_CONNECTION_INFO_PATH=str(path)) as worker:
        assert path.read_text() == ""
        client = worker.client(client_pid=4242)
        client.ask("pid")
        port = client.connection.getsockname()[1]
        assert path.read_text() == f"127.0.0.1,{port},4242\n"
        client.close()
        assert eventually(lambda: path.read_text() == "")


def test_session_environment_has_no_client_files(tmp_path: Path) -> None:
    (tmp_path / "libteleport.so.1").touch()
    variables = {
        "LD_LIBRARY_PATH": f"{tmp_path}:/opt/kept",
        "TENSOR_FUSION_OPERATOR_CONNECTION_INFO": "native+h+1+0",
        "TRITON_LIBCUDA_PATH": str(tmp_path),
    }
    with Worker(**variables) as worker:
        client = worker.client()
        assert client.ask("env LD_LIBRARY_PATH") == "/opt/kept"
        assert client.ask("env TENSOR_FUSION_OPERATOR_CONNECTION_INFO") == "(unset)"
        assert client.ask("env TRITON_LIBCUDA_PATH") == "(unset)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_everything(number: int) -> None:
    worker = Worker("--warm", "3")
    client = worker.client()
    client.ask("pid")
    children = worker.children()
    assert len(children) >= 3
    assert worker.stop(number) == 0
    assert not [child for child in children if alive(child)]
    assert client.connection.recv(1) == b""


def test_worker_of_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        worker = Worker()
    finally:
        signal.signal(signal.SIGHUP, before)
    with worker:
        worker.process.send_signal(signal.SIGHUP)
        assert worker.client().ask("pid")


def test_killed_worker_leaves_no_session() -> None:
    worker = Worker("--warm", "2", FAKE_SESSION="stubborn")
    client = worker.client()
    client.ask("pid")
    children = worker.children()
    worker.process.kill()
    worker.process.communicate()
    assert eventually(lambda: not [c for c in children if alive(c)])


def test_session_that_does_not_exit_is_killed() -> None:
    worker = Worker(FAKE_SESSION="stubborn")
    children = worker.children()
    started = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - started < 8
    assert not [child for child in children if alive(child)]


@pytest.mark.parametrize(
    ("mode", "words"),
    [("fail", "no CUDA-capable device"), ("die", "exit code 7"), ("junk", "before it was ready")],
)
def test_worker_without_working_session_ends_with_a_sentence(mode: str, words: str) -> None:
    code, errors = fails("--gpu", "sim", "-p", "0", FAKE_SESSION=mode)
    assert code == 1
    assert words in errors
    assert "Traceback" not in errors


def test_dead_warm_session_is_replaced() -> None:
    with Worker() as worker:
        (child,) = worker.children()
        child.kill()
        assert eventually(lambda: [c.pid for c in worker.children() if c.pid != child.pid] != [], 6)
        assert worker.client().ask("pid") != str(child.pid)


def test_sessions_that_keep_dying_are_started_ever_more_rarely(tmp_path: Path) -> None:
    log = tmp_path / "log"
    variables = {"FAKE_SESSION": f"once:{tmp_path}/first", "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log)}
    with Worker("--warm", "2", **variables):
        time.sleep(4)
    assert 1 <= log.read_text().count("exit code 7") <= 3


def test_stop_while_the_first_session_hangs() -> None:
    process = subprocess.Popen(
        command("--gpu", "sim", "-p", "0"),
        env=environment(FAKE_SESSION="hang"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert eventually(lambda: bool(psutil.Process(process.pid).children(recursive=True)))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert output == ""
    assert process.returncode == 0


def test_signals_during_the_stop_do_not_make_it_a_failure() -> None:
    for _ in range(5):
        with Worker() as worker:
            until = time.monotonic() + 15
            while worker.process.poll() is None and time.monotonic() < until:
                worker.process.send_signal(signal.SIGTERM)
                time.sleep(0.001)
            assert worker.process.returncode == 0


def test_many_clients_come_and_go() -> None:
    with Worker("--warm", "2") as worker:
        for _ in range(5):
            clients = [worker.client() for _ in range(6)]
            assert len({client.ask("pid") for client in clients}) == 6
            for client in clients:
                client.close()
        descriptors = Path(f"/proc/{worker.process.pid}/fd")
        assert eventually(lambda: len(worker.children()) == 2, 10)
        assert len(list(descriptors.iterdir())) < 20
