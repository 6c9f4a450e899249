"""How a worker is: its socket, `tensor-fusion top`, and what clients say of themselves, over both transports."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stack.harness import MIB, ROOT, Program, Worker, clean_environment, whole_stack
from worker_harness import eventually

from tensor_fusion.cli import top
from tensor_fusion.runtime import folders, runtime_folder, statuses
from tensor_fusion.terminal import plain
from tensor_fusion.worker.protocol import Greeting

pytestmark = whole_stack
MACHINE = bytes(range(16))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tensor_fusion", "top", *arguments]


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = clean_environment(TF_RUNTIME_PATH=str(folder), **variables)
    return subprocess.run(command(*arguments), env=env, capture_output=True, text=True, timeout=60, check=False)


class Peer(Program):
    """A client that makes the calls it is told."""

    def __init__(self, worker: Worker) -> None:
        super().__init__([sys.executable, ROOT / "tests/stack/apart/share.py"], worker.env)
        assert self.call("prepare") == 0

    def __enter__(self) -> Peer:
        return self

    def call(self, name: str, *arguments: Any) -> Any:
        return json.loads(self.ask(json.dumps([name, *arguments])))


@pytest.fixture(params=["native", "shmem"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    with Worker(transport=request.param, TF_RUNTIME_PATH=str(tmp_path), TF_GPU_MEMORY_LIMIT="1024") as found:
        yield found


def told(folder: Path) -> dict[str, Any]:
    (status,), problems = statuses({"TF_RUNTIME_PATH": str(folder)})
    assert not problems
    return status


def test_what_a_worker_tells(worker: Worker, tmp_path: Path) -> None:
    status = told(tmp_path)
    assert status["pid"] == worker.process.pid and status["simulated"] and status["sessions"] == []
    assert status["memory_limit_bytes"] == 1024 * MIB
    with Peer(worker) as one, Peer(worker) as other:
        assert one.call("alloc", 48 * MIB)[0] == 0
        assert eventually(lambda: told(tmp_path)["sessions"][0]["memory_bytes"] == {"0": 48 * MIB})
        first, second = told(tmp_path)["sessions"]
        assert [first["client_pid"], second["client_pid"]] == [one.process.pid, other.process.pid]
        assert first["program"] == Path(f"/proc/{one.process.pid}/comm").read_text().strip()
        assert first["user"] == subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        assert first["pid"] in [session.pid for session in worker.sessions()]
        assert first["address"] == ("127.0.0.1" if worker.port else worker.connection.split("+")[1])
        assert eventually(lambda: [session["devices"] for session in told(tmp_path)["sessions"]] == [[0], [0]])

        def counted() -> dict[str, int]:
            names = ("calls", "round_trips", "received_bytes", "sent_bytes")
            return {name: told(tmp_path)["sessions"][1][name] for name in names}

        before = counted()
        assert 0 < before["round_trips"] <= before["calls"] and before["received_bytes"] >= 16 * before["calls"]
        result, address = other.call("alloc", 8 * MIB)
        assert result == 0 and other.call("fill", address, 7, 8 * MIB) == 0
        assert other.call("read", address, 8 * MIB) == [0, [[7, 8 * MIB]]]
        assert eventually(lambda: counted()["sent_bytes"] >= before["sent_bytes"] + 8 * MIB), (before, counted())
        assert counted()["calls"] >= before["calls"] + 2
    assert eventually(lambda: told(tmp_path)["sessions"] == [])


def test_names_of_processes_on_the_host(worker: Worker) -> None:
    with Peer(worker) as peer:
        (session,) = worker.sessions()
        program = Path(f"/proc/{peer.process.pid}/comm").read_text().strip()

        def names() -> tuple[str, str]:
            title = Path(f"/proc/{session.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
            return Path(f"/proc/{session.pid}/comm").read_text().strip(), title

        place = "127.0.0.1" if worker.port else worker.connection.split("+")[1]
        wanted = (f"tf-{program[:12]}", f"tensor-fusion: {program}@{place} pid {peer.process.pid}")
        assert eventually(lambda: names() == wanted), (names(), wanted)


def test_the_socket_is_for_its_user_alone(worker: Worker, tmp_path: Path) -> None:
    (path,) = tmp_path.glob("*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if os.geteuid() == 0:  # who got hold of it all the same is told nothing, by the kernel's word of who it is
        path.chmod(0o666)
        tmp_path.chmod(0o755)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.chdir(tmp_path)
                os.setresuid(65534, 65534, 65534)
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(path.name)
                    code = 2 if connection.recv(1) else 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.end(signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert not path.exists()


def test_what_is_left_of_a_killed_worker(tmp_path: Path) -> None:
    with Worker(TF_RUNTIME_PATH=str(tmp_path)) as killed:
        killed.end(signal.SIGKILL)
    assert len(list(tmp_path.glob("*.sock"))) == 1
    assert statuses({"TF_RUNTIME_PATH": str(tmp_path)}) == ([], [])
    done = run(tmp_path, "--once")
    assert done.returncode == 1 and done.stderr.startswith("tensor-fusion: No worker of yours runs"), done
    with Worker(TF_RUNTIME_PATH=str(tmp_path)) as next_one:
        assert [path.name for path in tmp_path.glob("*.sock")] == [f"worker-{next_one.process.pid}.sock"]


def test_a_new_worker_asks_nobody_who_lives(tmp_path: Path) -> None:
    """Whoever connects makes a worker look at its GPUs."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / f"worker-{os.getpid()}.sock"))
        other.listen()
        other.setblocking(False)
        with Worker(TF_RUNTIME_PATH=str(tmp_path)):
            assert len(list(tmp_path.glob("*.sock"))) == 2
            with pytest.raises(BlockingIOError):
                other.accept()


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    """The worker serves all the same."""
    tmp_path.chmod(0o777)
    env = clean_environment(TF_RUNTIME_PATH=str(tmp_path))
    words = [sys.executable, "-m", "tensor_fusion.worker", "--gpu", "sim", "--host", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline().startswith("ready ")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert f"NOTICE: tensor-fusion top will not see this worker: Others may write into {tmp_path}" in errors
    assert not list(tmp_path.iterdir())


def test_json_and_once(worker: Worker, tmp_path: Path) -> None:
    with Peer(worker) as peer:
        assert peer.call("alloc", 48 * MIB)[0] == 0
        assert eventually(lambda: told(tmp_path)["sessions"][0]["memory_bytes"] == {"0": 48 * MIB})
        printed = json.loads(run(tmp_path, "--json").stdout)
        (status,) = printed["workers"]
        assert status["sessions"][0]["client_pid"] == peer.process.pid and printed["problems"] == []
        done = run(tmp_path, "--once", NO_COLOR="1")
        assert done.returncode == 0 and not done.stderr, done
        assert "\x1b" not in done.stdout
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"worker {worker.process.pid} ") and "SIMULATED GPU" in lines[0]
        assert lines[1].startswith("GPU 0  ") and "H200" in lines[1], lines[1]
        assert lines[2].split()[:4] == ["PID", "PROGRAM", "USER", "FROM"]
        assert str(peer.process.pid) in lines[3] and "48.0M" in lines[3]
        assert run(tmp_path).stdout.splitlines()[2].split() == lines[2].split(), "a pipe gets it once"


def test_on_a_terminal(worker: Worker, tmp_path: Path) -> None:
    """Drawn anew until q or Ctrl-C; no traceback, and the terminal is as it was."""
    for key in (b"q", b"\x03"):
        with Peer(worker) as peer:
            process, terminal = _terminal(tmp_path)
            seen = _until(terminal, b"q ends it")
            assert str(peer.process.pid).encode() in seen and b"\x1b[?1049h" in seen
            _until(terminal, b"/s")  # the second look has rates
            os.write(terminal, key)
            rest = _rest(terminal)
            assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
            assert b"\x1b[?1049l" in rest and b"Traceback" not in rest
            os.close(terminal)


def _terminal(folder: Path) -> tuple[int, int]:
    env = clean_environment(TF_RUNTIME_PATH=str(folder), TERM="xterm", COLUMNS="80", LINES="24")
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, command("--interval", "0.2"), env)
    return process, terminal


def _until(terminal: int, wanted: bytes) -> bytes:
    seen, until = b"", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < until, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
    return seen


def _rest(terminal: int) -> bytes:
    seen = b""
    try:
        while part := os.read(terminal, 65536):
            seen += part
    except OSError:  # its other end is closed
        pass
    return seen


def test_a_client_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Names with escape sequences: filtered by the worker, and by the command whatever a socket says."""
    greeting = Greeting.build(bytes(16), program="a\x1b[2Jb", user="c\x9bd\n")
    parsed = Greeting.parse(greeting)
    assert parsed and (parsed.program, parsed.user) == ("a?[2Jb", "c??d?")
    session = {
        "pid": 1,
        "program": "\x1b]0;\x07[red]x[/red]",
        "user": "\u202eevil\r\n",
        "address": "\x1b[H",
        "port": 1,
        "client_pid": "\x1b[5m2",
        "since": 0.0,
        "devices": [],
        "memory_bytes": {},
        "gpu_memory_bytes": {},
        "gpu_percent": {"0": "\x1b[6m3"},
        "host_memory_bytes": 0,
        "calls": 1,
        "round_trips": 1,
        "received_bytes": 1,
        "sent_bytes": 1,
    }
    status = {"pid": 7, "version": "", "place": "\x1b[31m", "simulated": False, "since": 0.0, "now": 1.0}
    status["gpus"] = [{"index": "\x1b[7m0", "uuid": "u", "gpu_percent": "\x1b[8m1", "temperature_celsius": "\x9b2"}]
    with _false_worker(tmp_path, {**status, "memory_limit_bytes": 0, "sessions": [session]}):
        done = run(tmp_path, "--once")
    assert done.returncode == 0, done
    assert all(character.isprintable() for character in done.stdout.replace("\n", "")), done.stdout
    assert "[red]x" in done.stdout


def test_what_is_no_status(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"pid": "1", "sessions": []}', "[" * 100000, '{"pid": 1}'):
        with _false_worker(tmp_path, text):
            done = run(tmp_path, "--once")
        assert done.returncode == 1 and "NOTICE: " in done.stderr and "Traceback" not in done.stderr, (text[:9], done)


def test_a_worker_of_another_version(tmp_path: Path) -> None:
    for sessions in ("[{}]", "7", '[{"pid": 1}]', "[7]"):
        with _false_worker(tmp_path, f'{{"pid": 1, "version": "9\\u001b[2J", "now": 1, "sessions": {sessions}}}'):
            done = run(tmp_path, "--once")
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == "worker 1  is of version 9?[2J, whose status is not understood\n"


class _false_worker:  # noqa: N801 - used like a function
    """A socket that says one thing, once."""

    def __init__(self, folder: Path, says: object) -> None:
        self._path = folder / "worker-7.sock"
        self._says = says if isinstance(says, str) else json.dumps(says)

    def __enter__(self) -> None:
        read, write = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            try:
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(self._path))
                    listener.listen()
                    os.write(write, b"r")
                    connection, _ = listener.accept()
                    connection.sendall(self._says.encode())
                    connection.close()
            finally:
                os._exit(0)
        os.read(read, 1)
        os.close(read)
        os.close(write)

    def __exit__(self, *_: object) -> None:
        os.waitpid(self._process, 0)
        self._path.unlink()


def test_places() -> None:
    user = os.geteuid()
    assert runtime_folder({"TF_RUNTIME_PATH": "/a", "XDG_RUNTIME_DIR": "/b"}) == Path("/a")
    assert runtime_folder({"RUNTIME_DIRECTORY": "/run/x:/run/y", "XDG_RUNTIME_DIR": "/b"}) == Path("/run/x")
    assert runtime_folder({"XDG_RUNTIME_DIR": "/b"}) == Path("/b/tensor-fusion")
    assert runtime_folder({}) == Path("/tmp" if user else "/run", f"tensor-fusion-{user}" if user else "tensor-fusion")
    assert folders({"TF_RUNTIME_PATH": "/a"}) == [Path("/a")]
    assert Path("/b/tensor-fusion") in folders({"XDG_RUNTIME_DIR": "/b"})


@pytest.mark.parametrize("width", [40, 80, 200])
def test_widths(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    session = {
        "pid": 4194304,
        "program": "p" * 31,
        "user": "u" * 31,
        "address": "fd00:1234:5678:9abc:def0:1234:5678:9abc",
        "client_pid": 4194304,
        "since": 0.0,
        "memory_bytes": {"0": 139 << 30},
        "gpu_memory_bytes": {"0": 140 << 30},
        "gpu_percent": {"0": 100},
        "calls": 10**12,
        "round_trips": 10**9,
        "received_bytes": 1 << 50,
        "sent_bytes": 1 << 40,
    }
    status = {"pid": 1, "place": "native 0.0.0.0:8000", "simulated": True, "since": 0.0, "now": 9e5}
    gpu = {"index": 0, "uuid": "GPU-0", "name": "NVIDIA H200", "gpu_percent": 100, "memory_used_bytes": 140 << 30}
    gpu |= {"memory_total_bytes": 141 << 30, "temperature_celsius": 45, "power_watts": 699.6}
    console = Console(width=width, highlight=False)
    console.print(
        top._screen([{**status, "memory_limit_bytes": 1 << 40, "sessions": [session], "gpus": [gpu]}], {}, width)
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    if width >= 80:
        row = next(line for line in lines if line.startswith("4194304"))
        assert "GPU 0  NVIDIA H200  100 %  140G of 141G  45 C  700 W" in lines
        words = ["140G", "100%", "1.0T", "1.0G", "1.0P", "pppp", "uuu", "fd00:", "4194304"]
        assert [word for word in words if word not in row] == [], row


def test_a_worker_that_does_not_answer_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "worker-1.sock"))
        listener.listen()
        process = subprocess.Popen(
            command("--once"), env=clean_environment(TF_RUNTIME_PATH=str(tmp_path)), stderr=subprocess.PIPE, text=True
        )
        listener.accept()[0].close()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "tensor-fusion: No worker answers.", errors


@pytest.fixture
def silent_worker(tmp_path: Path) -> Iterator[Path]:
    """Like one that was stopped: the kernel takes connections for it."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "worker-\x1b[2J.sock"  # of another user, when root looks
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.mark.parametrize("how", ["--once", "--json"])
def test_a_stopped_worker_is_named_within_a_second(silent_worker: Path, how: str) -> None:
    env, shown = clean_environment(TF_RUNTIME_PATH=str(silent_worker.parent)), plain(str(silent_worker))
    process = subprocess.Popen(
        command(how), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stderr
    assert process.stderr.readline() == f"top: waiting for an answer of {shown}, for up to 5 s\n"
    assert process.poll() is None, "said while it waits"
    output, errors = process.communicate(timeout=60)
    assert "top: " not in errors, "and once"
    assert f"{shown if how == '--once' else json.dumps(str(silent_worker))[1:-1]} does not answer" in output + errors


def test_a_stopped_worker_is_named_on_the_screen(silent_worker: Path) -> None:
    pid, terminal = _terminal(silent_worker.parent)
    begin = time.monotonic()
    _until(terminal, b"waiting for an answer of")
    assert time.monotonic() - begin < 4.5, "before it is said that it does not answer"
    _until(terminal, b"No worker answers.")
    os.write(terminal, b"q")
    _rest(terminal)
    assert os.waitpid(pid, 0)[1] == 0
