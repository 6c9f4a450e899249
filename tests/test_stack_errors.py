"""Bad input, bad neighbours and failing calls: one sentence, the right code, and nobody else disturbed."""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stack.harness import (
    LOST,
    Program,
    Worker,
    clean_environment,
    connected_elsewhere,
    fail,
    whole_stack,
)
from worker_harness import eventually, read_welcome

from tensor_fusion.abi import Teleport, native_folder
from tensor_fusion.client.files import client_environment
from tensor_fusion.config import CONNECTION_INFO, CONNECTION_URL
from tensor_fusion.worker.protocol import Greeting, Role, Status

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
NO_DEVICE = 100
# A client that only initialises, twice: the second answer must be the first one, without a second sentence.
INIT = "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); print(cuda.cuInit(0), cuda.cuInit(0))"
CONTEXT = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
p = ctypes.c_void_p()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(p), 0) == 0
assert cuda.cuCtxSetCurrent(p) == 0
"""


def initialise(env: dict[str, str]) -> tuple[str, list[str]]:
    """What INIT prints, and the sentences on standard error without time and process."""
    done = subprocess.run(
        [sys.executable, "-c", INIT], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    sentences = [re.sub(r"^\S+ ERROR client\[\d+\]: ", "", line) for line in done.stderr.splitlines()]
    return done.stdout.strip(), sentences


# Connection strings


@pytest.mark.parametrize(
    ("connection", "code", "sentence"),
    [
        (
            "",
            NO_DEVICE,
            "No GPU worker is configured: set TENSOR_FUSION_OPERATOR_CONNECTION_INFO to where it is, for example "
            "native+192.168.1.100+12345+0.",
        ),
        (
            "tcp+h+1+0",
            NO_DEVICE,
            "Unknown protocol 'tcp' in the connection string; the form is native+HOST+PORT+VERSION[+SECRET] or "
            "shmem+FILE+MB+VERSION[+SECRET].",
        ),
        (
            "native+127.0.0.1+1",
            NO_DEVICE,
            "The connection string 'native+127.0.0.1+1' has too few fields instead of 4 or 5; the form is "
            "native+HOST+PORT+VERSION[+SECRET] or shmem+FILE+MB+VERSION[+SECRET].",
        ),
        (
            "native+127.0.0.1+99999+0",
            NO_DEVICE,
            "'99999' in the connection string 'native+127.0.0.1+99999+0' is no port; use 1 to 65535.",
        ),
        (
            "native+127.0.0.1+1+0+hush secret",
            NO_DEVICE,
            "The connection string 'native+127.0.0.1+1+0+…' holds a space or a character that is not plain ASCII.",
        ),
        (
            "shmem+/tf-nothing-is-here+16+0",
            NO_DEVICE,
            "/dev/shm/tf-nothing-is-here cannot be opened (No such file or directory); check the connection string, "
            "and that the worker runs with -n shmem (and, in a virtual machine, that it was started with the "
            "ivshmem-plain device).",
        ),
    ],
)
def test_bad_connection_string(connection: str, code: int, sentence: str) -> None:
    assert initialise(connected_elsewhere(connection)) == (f"{code} {code}", [sentence])


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    assert initialise(connected_elsewhere(f"native+127.0.0.1+{port}+0+hush")) == (
        f"{LOST} {LOST}",
        [
            f"No GPU worker answers at 127.0.0.1 port {port} (Connection refused); check that tensor-fusion-worker "
            "runs there and that the port is open."
        ],
    )
    assert time.monotonic() - started < 3


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + b" " * 600)

        thread = threading.Thread(target=answer)
        thread.start()
        found = initialise(connected_elsewhere(f"native+127.0.0.1+{port}+0"))
        thread.join(10)
    assert found == (
        f"{LOST} {LOST}",
        [
            f"What answers at 127.0.0.1 port {port} is no tensor-fusion-worker: it says 'HTTP/1.1 400 Bad Request'; "
            "check the port in the connection string."
        ],
    )


class Operator:
    """An HTTP server that hands out one answer, and remembers who asked."""

    def __init__(self, status: int, content: str, body: str) -> None:
        self.paths: list[str] = []
        paths = self.paths

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                paths.append(self.path)
                self.send_response(status)
                self.send_header("Content-Type", content)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/api/connection?name=a&namespace=b"

    def __enter__(self) -> Operator:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.mark.parametrize("form", ["text/plain", "application/json"])
def test_url_hands_out_the_connection(worker: Worker, program: Path, form: str) -> None:
    body = worker.connection if form == "text/plain" else json.dumps({"connection_url": worker.connection})
    env = {**worker.env}
    del env[CONNECTION_INFO]
    with Operator(200, form, body) as operator:
        done = subprocess.run(
            [program, "compute"],
            env={**env, CONNECTION_URL: operator.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "right on Simulated NVIDIA H200\n"), done.stderr
    assert operator.paths == ["/api/connection?name=a&namespace=b"]


def test_connection_string_wins_over_the_url(worker: Worker) -> None:
    with Operator(200, "text/plain", "native+127.0.0.1+1+0") as operator:
        assert initialise({**worker.env, CONNECTION_URL: operator.url}) == ("0 0", [])
    assert operator.paths == []


def test_url_that_knows_no_connection() -> None:
    with Operator(404, "application/json", '{"error": "no connection b/a"}') as operator:
        clean = clean_environment()
        code, sentences = initialise({**clean, **client_environment(None, clean), CONNECTION_URL: operator.url})
    assert code == f"{NO_DEVICE} {NO_DEVICE}"
    assert len(sentences) == 1
    assert "404" in sentences[0]
    assert "no connection b/a" in sentences[0]
    assert operator.paths == ["/api/connection?name=a&namespace=b"]


# Workers


def test_worker_without_a_gpu() -> None:
    """The driver loads but has no device; the worker ends before it says ready."""
    command = [sys.executable, "-m", "tensor_fusion.worker", "-p", "0", "--host", "127.0.0.1", "--gpu", "sim"]
    code, output, errors = fail(command, clean_environment(TF_SIM_FAULTS="cuInit:1+=100"))
    assert (code, output) == (1, "")
    assert "error 100 (CUDA_ERROR_NO_DEVICE)" in errors


# Neighbours


def shout(worker: Worker, data: bytes, reset: bool = False) -> None:
    """Send bytes to the port and go away, politely or by a reset."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as connection:
        try:
            connection.sendall(data)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(5)
                while connection.recv(65536):
                    pass
        except OSError:
            pass  # hung up on, at whatever point


def hostile_client(worker: Worker, data: bytes) -> None:
    """A client with a good greeting that then sends bytes which are no frames; the session hangs up."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as connection:
        connection.sendall(Greeting.build(Teleport().schema, program="hostile"))
        assert read_welcome(connection).status == Status.ACCEPTED
        try:
            connection.sendall(data)
            connection.settimeout(10)
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass


@pytest.fixture
def half_open(worker: Worker) -> Iterator[list[socket.socket]]:
    """Connections that say nothing, or stop in the middle of a greeting."""
    beginning = Greeting.build(Teleport().schema)
    connections = []
    for i in range(60):
        connection = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
        connection.sendall(beginning[: i * 4])
        connections.append(connection)
    yield connections
    for connection in connections:
        connection.close()


def test_a_session_goes_first_when_memory_runs_out(worker: Worker) -> None:
    with worker.console():
        (session,) = worker.sessions()
        score = {pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (session.pid, worker.process.pid)}
    assert score[session.pid] == 1000 > score[worker.process.pid]


def test_the_log_is_not_the_clients(tmp_path: Path) -> None:
    """A client's name steers no terminal and makes no line of its own, nor do its failing calls fill the disk."""
    log = tmp_path / "log"
    operations = (
        line.split() for line in Path(__file__).parent.parent.joinpath("api/opcodes.lock").read_text().splitlines()
    )
    number = next(int(words[0]) for words in operations if words[1:] == ["memory_free"])
    frame = struct.pack("<IHHIIQ", 24, number, 0, 1, 0, 1)
    with Worker(TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as connection:
            connection.sendall(Greeting.build(Teleport().schema, program="a\n2026 ERROR forged \x1b[31m\x7f"))
            assert read_welcome(connection).status == Status.ACCEPTED
            (session,) = worker.sessions()
            for _ in range(5):
                connection.sendall(frame * 1000)
            assert eventually(lambda: "a?2026 ERROR forged" in " ".join(session.cmdline()))
            assert "\x1b" not in " ".join(session.cmdline())
        assert eventually(lambda: not worker.sessions())
    text = log.read_text()
    assert "serving a?2026 ERROR forged ?[31m?" in text
    assert "\x1b" not in text
    assert not any(line.startswith("2026 ERROR") for line in text.splitlines())
    assert 0 < text.count("memory_free") < 1000


def test_junk_on_the_port_while_a_good_client_runs(worker: Worker, half_open: list[socket.socket]) -> None:
    source = random.Random(7)
    greeting = Greeting.build(Teleport().schema)
    with worker.start("steady") as good:
        assert good.line() == "steady"
        turn, begun = 0, time.monotonic()
        while turn < 12 or time.monotonic() < begun + 4:
            shout(worker, source.randbytes(source.randrange(1, 5000)), reset=turn % 2 == 0)
            shout(worker, b"GET / HTTP/1.1\r\nHost: worker\r\nConnection: keep-alive\r\n\r\n")
            shout(worker, b"POST /api HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000, reset=turn % 3 == 0)
            shout(worker, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + source.randbytes(512))
            broken = bytearray(greeting)
            broken[source.randrange(len(broken) // 4)] ^= 1 << source.randrange(8)
            shout(worker, bytes(broken))
            shout(
                worker,
                Greeting.build(
                    Teleport().schema,
                    role=Role.DATA,
                    session_id=source.getrandbits(63),
                    session_key=source.getrandbits(63),
                    data_index=source.randrange(8),
                ),
            )
            hostile_client(worker, b"\xff" * 64 + source.randbytes(4000))
            turn += 1
        assert good.end() == 0, good.errors()
        told = re.fullmatch(r"right after (\d+) rounds, longest (\d+) ms", good.line())
        assert told
        # It went on throughout: a round takes 30 ms on a quiet machine, and what could hold it up are deadlines of 5 s
        # and more.
        assert int(told[2]) < 3000, told[0]
    assert eventually(lambda: not worker.sessions())
    assert initialise(worker.env) == ("0 0", [])


def test_half_open_connections_are_dropped(worker: Worker, half_open: list[socket.socket]) -> None:
    assert initialise(worker.env) == ("0 0", [])
    for connection in half_open:
        connection.settimeout(5)
        try:
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass  # closed with unread bytes, which TCP makes a reset


# Calls that fail


def started(worker: Worker, **variables: str) -> Program:
    console = worker.console(**variables)
    assert console.code("alloc 0 4096") == 0
    return console


def test_failure_of_a_launch_is_reported_once(program: Path) -> None:
    faults = {"TF_SIM_FAULTS": "cuLaunchKernel:3=719"}
    with Worker(program=program, **faults) as worker, started(worker, TF_ENABLE_LOG="1") as client:
        for _ in range(3):
            assert client.code("launch good 0") == 0
        assert client.code("sync") == 719
        client.kill()
        errors = client.errors()
    told = [line for line in errors.splitlines() if "failed on the worker" in line]
    assert len(told) == 1, errors
    assert re.search(r"launch \(frame \d+\)", told[0])
    assert "719 (CUDA_ERROR_LAUNCH_FAILED)" in told[0]


def test_failure_that_breaks_nothing_is_reported_once(program: Path) -> None:
    with Worker(program=program, TF_SIM_FAULTS="cuLaunchKernel:3=701") as worker, started(worker) as client:
        for _ in range(3):
            assert client.code("launch good 0") == 0
        assert client.code("sync") == 701
        assert client.code("sync") == 0
        assert client.code("launch good 0") == 0
        assert client.code("sync") == 0
        assert client.ask("read 0") == "0 5"
        assert client.end() == 0


def test_waits_are_cheap_again_after_a_failure(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    with Worker(program=program, TF_SIM_FAULTS="cuLaunchKernel:1=701") as worker:
        assert worker.run("corners", "waits-after-a-failure", TF_STATS_PATH=str(path)) == "right\n"
    functions = json.loads(path.read_text())["by_function"]
    assert functions["cuStreamSynchronize"]["round_trips"] < 5


@pytest.mark.parametrize(
    ("check", "faults"),
    [
        ("order", "cuCtxGetLimit:100=999"),  # none of these is an answer that was not given
        ("limit", "cuCtxGetLimit:3=999"),  # one is asked for itself, then what all were
        ("module", "cuFuncGetParamInfo:2=999"),
        ("library", ";".join(f"cuKernelGetParamInfo:{n}=999" for n in (2, 3, 4, 5))),
        # 22 questions at the load: 15 parameters, and the end of seven lists
        ("launch", "cuFuncGetParamInfo:24=999"),
        ("graph", "cuGraphNodeGetType:1=999"),
        ("child", "cuGraphNodeGetType:1=999"),
    ],
)
def test_an_error_is_not_an_answer(program: Path, check: str, faults: str) -> None:
    with Worker(program=program, TF_SIM_FAULTS=faults) as worker:
        assert worker.run("failures", check) == "right\n"


# The 192nd asks whether the device can map memory.
@pytest.mark.parametrize(
    ("warm", "faults"),  # only a warm session has a context whose limits are told with the device
    [("0", "cuDeviceGetAttribute:50=999"), ("0", "cuDeviceGetAttribute:192=999"), ("1", "cuCtxGetLimit:3=999")],
)
def test_a_device_is_described_or_there_is_none(program: Path, warm: str, faults: str) -> None:
    """One of a hundred attributes is not told: the driver does not start, instead of having that for an answer."""
    with Worker("--warm", warm, program=program, TF_SIM_FAULTS=faults) as worker:
        client = worker.start("console")
        with client:
            assert client.line() == "console"
            assert client.code("init") == 999
            assert client.end() == 0


def test_a_device_without_a_place_is_not_left_out() -> None:
    """NVML shows the devices of CUDA, by their place on the bus: one that is not told is no device less."""
    script = """
import ctypes
nvml, count = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_uint(77)
print(nvml.nvmlInit_v2(), nvml.nvmlInit_v2(), nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)), count.value)
"""
    with Worker(TF_SIM_FAULTS="cuDeviceGetPCIBusId:1=999") as worker:
        done = subprocess.run(
            [sys.executable, "-c", script], env=worker.env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "999 0 0 1\n", done.stderr


def test_failure_that_breaks_every_context_of_a_device(program: Path) -> None:
    with Worker(program=program, TF_SIM_FAULTS="cuLaunchKernel:1=700,sticky") as worker:
        assert worker.run("corners", "error-of-another-context") == "right\n"


def test_sticky_failure_is_reported_for_ever(program: Path) -> None:
    with (
        Worker(program=program, TF_SIM_FAULTS="cuLaunchKernel:3=700,sticky") as worker,
        started(worker) as client,
        started(worker) as other,
    ):
        for _ in range(3):
            assert client.code("launch good 0") == 0
        for command in (
            "sync",
            "sync",
            "launch good 0",
            "read 0",
            "alloc 1 4096",
            "info",
            "sync",
            "launch good 0",
            "free 0",
        ):
            assert client.code(command) == 700, command
        assert other.code("launch good 0") == 0  # what breaks one client's context is nobody else's
        assert other.ask("read 0") == "0 5"
        assert client.end() == 0
        assert other.end() == 0


def test_illegal_address_is_reported_for_ever(worker: Worker) -> None:
    """The same without injection: a kernel writes where nothing is."""
    with started(worker) as client:
        assert client.code("launch bad 0") == 0
        for _ in range(3):
            assert client.code("sync") == 700
        assert client.code("read 0") == 700
        assert client.end() == 0


@pytest.mark.parametrize("error", [701, 700])
def test_strict_mode_reports_a_failing_launch_at_the_launch(program: Path, error: int) -> None:
    faults = {"TF_SIM_FAULTS": f"cuLaunchKernel:3={error}" + (",sticky" if error == 700 else "")}
    with Worker(program=program, **faults) as worker, started(worker, TF_STRICT="1") as client:
        assert client.code("launch good 0") == 0
        assert client.code("launch good 0") == 0
        assert client.code("launch good 0") == error
        assert client.code("launch good 0") == (700 if error == 700 else 0)
        assert client.code("sync") == (700 if error == 700 else 0)


def test_impossible_launch_fails_at_the_launch_and_breaks_nothing(worker: Worker) -> None:
    with started(worker) as client:
        assert client.code("launch empty 0") == 1
        assert client.code("launch good 0") == 0
        assert client.ask("read 0") == "0 5"
        assert client.end() == 0


@pytest.mark.parametrize("function", ["cuMemCreate", "cuMemMap", "cuMemSetAccess"])
def test_out_of_memory_at_the_second_allocation(program: Path, function: str) -> None:
    with (
        Worker(program=program, TF_SIM_FAULTS=f"{function}:2=2", TF_GPU_MEMORY_LIMIT="64") as worker,
        worker.console() as client,
    ):
        free = client.info()[0]
        size = 8 << 20
        assert client.code(f"alloc 0 {size}") == 0
        assert client.code(f"alloc 1 {size}") == 2
        assert client.info()[0] == free - size, "the failed allocation still counts"
        assert client.code(f"alloc 1 {size}") == 0
        for i in (0, 1):
            assert client.code(f"launch good {i}") == 0
            assert client.ask(f"read {i}") == "0 5"
            assert client.code(f"free {i}") == 0
        assert client.code("sync") == 0
        assert client.info()[0] == free
        assert client.end() == 0


def test_module_that_is_none(worker: Worker) -> None:
    script = CONTEXT + (
        "for image in (b'junk', b'', b'\\x7fELF' + bytes(500), bytes([0x50, 0xed, 0x55, 0xba]) + b'\\xff' * 500):\n"
        "    print(cuda.cuModuleLoadData(ctypes.byref(p), image))\n"
        "print(cuda.cuModuleLoadData(ctypes.byref(p), b'.version 99.0\\n.target sm_90\\n'))\n"
        "print(cuda.cuCtxSynchronize())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=worker.env, capture_output=True, text=True, timeout=60, check=False
    )
    # Invalid image, unsupported PTX version; and the context is as good as before.
    assert done.stdout.split() == ["200", "200", "200", "200", "222", "0"], done.stderr


def test_every_function_is_served_or_refused_as_a_driver_does() -> None:
    table = json.loads((native_folder() / "coverage.json").read_text())["cuda"]["functions"]
    assert [name for name, line in table.items() if line["kind"] == "unsupported"] == []


def test_refused_functions_answer_as_a_driver_does(worker: Worker) -> None:
    """Their code once the driver's checks have found nothing, then named once; 3 before cuInit."""
    table = json.loads((native_folder() / "coverage.json").read_text())["cuda"]["functions"]
    refused = {name: line["detail"] for name, line in sorted(table.items()) if line["kind"] == "refused"}
    assert len(refused) > 90
    errors_file = Path(__file__).parent.parent / "api/errors.json"
    codes = {pair[0]: int(code) for code, pair in json.loads(errors_file.read_text())["cuda"].items()}
    ask = f"for n in {list(refused)!r}: print(n, getattr(cuda, n)(*a))\n"
    before = f"import ctypes\ncuda = ctypes.CDLL('libcuda.so.1')\na = [None] * 12\n{ask}"
    # Memory is no handle of ours, and 0 is none but for a stream: what takes one refuses it, the rest says its code.
    script = f"{CONTEXT}a = [ctypes.create_string_buffer(4096)] * 2 + [0] * 10\n{ask}{ask}a = [None] * 12\n{ask}"

    def answers(text: str) -> tuple[list[tuple[str, int]], str]:
        done = subprocess.run(
            [sys.executable, "-c", text], env=worker.env, capture_output=True, text=True, timeout=60, check=True
        )
        rows = [line.split() for line in done.stdout.splitlines()]
        return [(name, int(code)) for name, code in rows], done.stderr

    early = [(name, code) for name, code in answers(before)[0] if code != 3]
    assert {name[:5] for name, code in early if code == codes[refused[name]]} == {"cuEGL", "cuMem", "cuPro"}
    assert len(early) == len({name for name, code in early if code == codes[refused[name]]}), "3, or asked at any time"
    found, errors = answers(script)
    wrong = {(name, code) for name, code in found if code not in (codes[refused[name]], 1, 101, 201, 400)}
    assert not wrong, "no success, and no other code than that of its line or of a check"
    refusing = {name for name, code in found if code == codes[refused[name]]}
    assert len(refusing) > 60
    told = re.findall(r"(\w+) is not supported here and returns (\w+): (.+)", errors)
    named = {name: code for name, code, _ in told}
    assert len(told) == len(named), "said once"
    assert all(refused[name] == code and table[name]["reason"] == why for name, code, why in told)
    silent = {name for name in refusing - set(named) if codes[refused[name]] not in (1, 101, 201, 400)}
    assert not silent, silent


def test_no_file_of_ours_is_left_behind(program: Path, tmp_path: Path) -> None:
    """Neither side writes anywhere that it was not told to."""
    home = tmp_path / "home"
    home.mkdir()
    variables = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    with Worker(program=program, **variables) as worker:
        assert worker.run("compute", **variables)
    assert list(home.iterdir()) == []
