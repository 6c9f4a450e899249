"""A client that waits for a URL, a worker or its session: said on standard error, ended by Ctrl-C like any program."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service import Service, service, silent
from stack.harness import Worker, clean_environment
from worker_harness import eventually

from tensor_fusion.client.files import client_environment
from tensor_fusion.config import CONNECTION_URL

COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
UNAVAILABLE = 46
AT_ONCE = 0.2
# On a busy machine everything takes longer; a wait that is not ended takes many seconds.
AT_ONCE_WHEN_BUSY = 1.0

# Says what cuInit returned, how long after the signal, and whether the handler of the program came back.
PROGRAM = """
import ctypes, os, signal, sys, threading, time
cuda, libc = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL(None)
seen = []

def handler(number, frame):
    seen.append(number)

def disposition():
    action = (ctypes.c_char * 152)()
    assert libc.sigaction(signal.SIGINT, None, action) == 0
    return bytes(action)[:16] + bytes(action)[136:140]  # handler, mask as the kernel has it, flags

def interrupt(number):
    times.append(time.monotonic())
    os.kill(os.getpid(), number)

times = []
after = float(os.environ.get("AFTER", "0.5"))
"""
INTERRUPTED = """
number = signal.Signals[os.environ.get("SIGNAL", "SIGINT")]
signal.signal(number, handler)
before = disposition()
threading.Timer(after, interrupt, [number]).start()
result = cuda.cuInit(0)
took = time.monotonic() - times[0]
time.sleep(0.01)
print(result, seen == [number], disposition() == before, took)
"""


def start(source: str, env: dict[str, str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(source)],
        env={**env, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 30) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=seconds)
    return process.returncode, output, errors


def client(connection: str = "", **variables: str) -> dict[str, str]:
    clean = clean_environment(**variables)
    return {**clean, **client_environment(connection or None, clean)}


def not_yet(connection: socket.socket) -> None:
    connection.recv(4096)
    body = b'{"error": "no GPU is free"}'
    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
    connection.close()


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port that answers nobody: its queue is full, and the kernel drops what else comes."""
    started = Service(silent, accepts=False)
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", started.port))
    yield started.port
    for one in waiting:
        one.close()
    started.close()


@contextmanager
def stopped_session(transport: str) -> Iterator[str]:
    """A worker whose session takes its client and then says nothing, as one does whose driver starts for a minute."""
    with Worker("--warm", "1", transport=transport) as worker:
        assert eventually(lambda: bool(worker.sessions()))
        (session,) = worker.sessions()
        suspend_pid(session.pid)
        try:
            yield worker.connection
        finally:
            os.kill(session.pid, signal.SIGCONT)


def suspend_pid(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    assert eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")


PLACES = ("url-again", "url-silent", "connect", "welcome", "session", "session-shmem", "name")


@contextmanager
def waits_at(place: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a client that waits there for long."""
    if place.startswith("url"):
        with service(not_yet if place == "url-again" else silent) as port:
            yield client(**{CONNECTION_URL: f"http://127.0.0.1:{port}/x"})
    elif place == "nobody":
        with socket.socket() as held:  # bound, so that no other test gets the port; nobody listens
            held.bind(("127.0.0.1", 0))
            yield client(**{CONNECTION_URL: f"http://127.0.0.1:{held.getsockname()[1]}/x"})
    elif place == "connect":
        with full_backlog() as port:
            yield client(f"native+127.0.0.1+{port}+0")
    elif place == "welcome":
        with service(silent) as port:
            yield client(f"native+127.0.0.1+{port}+0")
    elif place == "name":
        if COMPILER is None:
            pytest.skip("no C compiler")
        source = folder / "slow.c"
        source.write_text(
            "#include <netdb.h>\n#include <unistd.h>\n"
            "int getaddrinfo(const char *h, const char *s, const struct addrinfo *i, struct addrinfo **l) {\n"
            "    (void)h, (void)s, (void)l;\n"
            "    if (!(i->ai_flags & AI_NUMERICHOST)) sleep(20);\n    return EAI_NONAME;\n}\n"
        )
        library = source.with_suffix(".so")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        yield client("native+gpu.example+1234+0", LD_PRELOAD=str(library))
    else:
        with stopped_session("shmem" if place.endswith("shmem") else "native") as connection:
            yield client(connection)


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_ends_the_wait(place: str, tmp_path: Path) -> None:
    """The program's own handler runs, comes back, and cuInit returns at once."""
    with waits_at(place, tmp_path) as env:
        code, output, errors = finish(start(INTERRUPTED, env))
    assert code == 0, errors
    result, handled, restored, took = output.split()
    assert (result, handled, restored) == (str(UNAVAILABLE), "True", "True"), errors
    assert float(took) < AT_ONCE_WHEN_BUSY
    assert "interrupted while it waited" in errors


def test_ctrl_c_ends_it_in_a_fifth_of_a_second(tmp_path: Path) -> None:
    took: list[float] = []
    with waits_at("url-silent", tmp_path) as env:
        while len(took) < 3 and min(took, default=1) > AT_ONCE:
            took.append(float(finish(start(INTERRUPTED, env))[1].split()[3]))
    assert min(took) < AT_ONCE, took


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_it_too(number: str, tmp_path: Path) -> None:
    with waits_at("url-again", tmp_path) as env:
        code, output, errors = finish(start(INTERRUPTED, env, SIGNAL=number))
    assert (code, output.split()[:2]) == (0, [str(UNAVAILABLE), "True"]), errors


def test_python_ends_with_a_keyboard_interrupt() -> None:
    with service(not_yet) as port:
        process = start("cuda.cuInit(0)\nprint('went on')", client(**{CONNECTION_URL: f"http://127.0.0.1:{port}/"}))
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        code, output, errors = finish(process, 5)
    assert (code, output) == (-signal.SIGINT, "")
    assert "KeyboardInterrupt" in errors


def test_a_handler_on_another_thread() -> None:
    """cuInit waits in a thread; the signal comes to the main thread, which only notes it."""
    with service(silent) as port:
        source = """
        signal.signal(signal.SIGINT, handler)
        results = []
        waiting = threading.Thread(target=lambda: results.append((cuda.cuInit(0), time.monotonic())))
        waiting.start()
        time.sleep(after)
        interrupt(signal.SIGINT)
        waiting.join()
        print(results[0][0], seen == [signal.SIGINT], results[0][1] - times[0])
        """
        code, output, errors = finish(start(source, client(f"native+127.0.0.1+{port}+0")))
    assert code == 0, errors
    result, handled, took = output.split()
    assert (result, handled) == (str(UNAVAILABLE), "True")
    assert float(took) < AT_ONCE_WHEN_BUSY


def test_threads_that_wait_for_the_same_are_ended_together() -> None:
    with service(silent) as port:
        source = """
        signal.signal(signal.SIGINT, handler)
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        calls = [cuda.cuInit, cuda.cuInit, nvml.nvmlInitWithFlags, nvml.nvmlInitWithFlags]
        results = []
        threads = [threading.Thread(target=lambda call=call: results.append(call(0))) for call in calls]
        [thread.start() for thread in threads]
        time.sleep(after)
        interrupt(signal.SIGINT)
        [thread.join() for thread in threads]
        print(sorted(results), time.monotonic() - times[0])
        """
        code, output, errors = finish(start(source, client(f"native+127.0.0.1+{port}+0")))
    assert code == 0, errors
    results, _, took = output.rpartition(" ")
    assert results == f"[9, 9, {UNAVAILABLE}, {UNAVAILABLE}]"
    assert float(took) < AT_ONCE_WHEN_BUSY


@pytest.mark.parametrize(("disposition", "ends"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_without_a_handler_nothing_changes(disposition: str, ends: bool) -> None:
    with service(not_yet) as port:
        source = f"signal.signal(signal.SIGINT, signal.{disposition})\nprint('ready', flush=True)\ncuda.cuInit(0)"
        process = start(source, client(**{CONNECTION_URL: f"http://127.0.0.1:{port}/"}))
        assert process.stdout and process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        if ends:
            assert finish(process, 5)[0] == -signal.SIGINT
        else:
            time.sleep(1)
            assert process.poll() is None
            process.kill()
            finish(process)


def test_a_handler_that_the_program_sets_meanwhile_stays() -> None:
    with service(silent) as port:
        source = """
        signal.signal(signal.SIGINT, handler)
        libc.signal.restype = libc.signal.argtypes = None
        own = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: seen.append("own"))
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        pointer = ctypes.cast(own, ctypes.c_void_p).value
        change = lambda: (libc.signal(signal.SIGINT, pointer), signal.raise_signal(signal.SIGTERM))
        threading.Timer(after, change).start()
        signal.signal(signal.SIGTERM, handler)
        result = cuda.cuInit(0)
        print(result, int.from_bytes(disposition()[:8], "little") == pointer)
        """
        code, output, errors = finish(start(source, client(f"native+127.0.0.1+{port}+0")))
    assert (code, output) == (0, f"{UNAVAILABLE} True\n"), errors


def test_another_try_after_ctrl_c() -> None:
    """At a prompt the worker may be started meanwhile."""
    with Worker(transport="native") as worker:
        reply = [503]

        def operator(connection: socket.socket) -> None:
            if reply[0] == 503:
                reply[0] = 200
                not_yet(connection)
                return
            connection.recv(4096)
            body = worker.connection.encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        with service(operator) as port:
            source = """
            signal.signal(signal.SIGINT, handler)
            threading.Timer(0.05, interrupt, [signal.SIGINT]).start()
            first = cuda.cuInit(0)
            print(first, cuda.cuInit(0))
            """
            env = client(**{CONNECTION_URL: f"http://127.0.0.1:{port}/"})
            code, output, errors = finish(start(source, env))
        assert (code, output) == (0, f"{UNAVAILABLE} 0\n"), errors


def test_no_handler_is_left_after_a_quick_start() -> None:
    with Worker(transport="native") as worker:
        source = """
        signal.signal(signal.SIGINT, handler)
        before = disposition()
        result = cuda.cuInit(0)
        print(result, disposition() == before)
        """
        assert finish(start(source, worker.env))[:2] == (0, "0 True\n")


# What is said


def lines(errors: str) -> list[str]:
    return [re.sub(r"^\S+ (\w+) +client\[\d+\]: ", r"\1 ", line) for line in errors.splitlines()]


def on_terminal(env: dict[str, str], seconds: float) -> str:
    """What the program writes to a terminal within that time."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "cuda.cuInit(0)"], env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    text, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and b"\n" not in text:
        try:
            text += os.read(ours, 4096)
        except BlockingIOError:
            time.sleep(0.02)
    process.kill()
    process.wait()
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("url-again", r"answered 503: no worker is ready yet \(no GPU is free\), for up to 15 minutes more"),
        ("nobody", r"Nobody answers at 127.0.0.1 port \d+, which \S+ names, for up to 60 seconds more"),
        ("url-silent", r"Waiting for an answer of http://127.0.0.1:\d+/x, for up to \d+ \w+ more"),
        ("connect", r"Waiting for 127.0.0.1 port \d+ to take a connection, for up to 5 seconds more"),
        ("welcome", r"Waiting for the welcome of a tensor-fusion-worker from 127.0.0.1 port \d+, for up to 10 seconds"),
        ("session", r"Waiting for the session of the GPU worker at 127.0.0.1 port \d+, for up to 90 seconds more"),
        ("session-shmem", r"Waiting for the session of the GPU worker at /dev/shm/\S+, for up to 90 seconds more"),
        ("name", r"Waiting for the address of 'gpu.example' from the name server, for up to 30 seconds more"),
    ],
)
def test_a_terminal_sees_what_is_waited_for(place: str, expected: str, tmp_path: Path) -> None:
    with waits_at(place, tmp_path) as env:
        said = on_terminal(env, 4)
    assert re.search(expected, said), said
    assert "Ctrl-C ends it" in said


def test_said_within_the_first_second(tmp_path: Path) -> None:
    with waits_at("welcome", tmp_path) as env:
        begin = time.monotonic()
        assert "Waiting for" in on_terminal(env, 5)
        assert time.monotonic() - begin < 2.0  # of which Python's own start is a part


def test_said_once_and_not_where_silence_was_asked_for(tmp_path: Path) -> None:
    with waits_at("url-again", tmp_path) as env:
        loud, quiet = start("cuda.cuInit(0)", env), start("cuda.cuInit(0)", env, TF_ENABLE_LOG="0")
        time.sleep(6.5)
        loud.kill()
        quiet.kill()
        said = finish(loud)[2]
        assert said.count("Waiting for a GPU worker") == 1, said
        assert finish(quiet)[2] == ""


# What is no worker


def told(serve: Callable[[socket.socket], None]) -> tuple[str, list[str], float]:
    with service(serve) as port:
        begin = time.monotonic()
        code, output, errors = finish(start("print(cuda.cuInit(0))", client(f"native+127.0.0.1+{port}+0")))
        assert code == 0, errors
        return output.strip(), [line.replace(str(port), "PORT") for line in lines(errors)], time.monotonic() - begin


def test_another_service_is_named_by_what_it_says() -> None:
    def ssh(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        time.sleep(20)

    code, said, took = told(ssh)
    assert code == str(UNAVAILABLE)
    assert said == [
        "ERROR What answers at 127.0.0.1 port PORT is no tensor-fusion-worker: it says 'SSH-2.0-OpenSSH_9.2p1'; check "
        "the port in the connection string."
    ]
    assert took < 5


def test_bytes_that_steer_a_terminal_are_not_shown() -> None:
    code, said, _ = told(lambda connection: connection.sendall(b"\x1b[31m\x00\x07red" * 200))
    assert code == str(UNAVAILABLE)
    assert "it says '?[31m'" in said[0] and "\x1b" not in said[0]


def test_a_service_that_hangs_up() -> None:
    def rude(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.close()

    code, said, took = told(rude)
    assert code == str(UNAVAILABLE)
    assert "takes connections but gave no welcome (it ended the connection)" in said[0]
    assert took < 5


def test_a_silent_service_is_named_within_five_seconds() -> None:
    with service(silent) as port:
        process = start("print(cuda.cuInit(0))", client(f"native+127.0.0.1+{port}+0"))
        begin = time.monotonic()
        assert process.stderr
        first = process.stderr.readline()
        assert time.monotonic() - begin < 5.5
        assert f"the welcome of a tensor-fusion-worker from 127.0.0.1 port {port}" in first
        code, output, errors = finish(process)
        assert (code, output) == (0, f"{UNAVAILABLE}\n")
        assert "gave no welcome (it was silent for 10 s)" in errors
