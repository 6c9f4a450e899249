"""Start the worker command on the stand-in session, and talk to it as a client would."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

import tensor_fusion
from tensor_fusion.worker import hello
from tensor_fusion.worker.protocol import (
    SECRET_BYTES,
    SECRET_OFFSET,
    WELCOME_BYTES,
    Greeting,
    Role,
    Status,
    Welcome,
)

HERE = Path(__file__).parent
SCHEMA = bytes(range(16))


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(HERE / "fake_worker.py"), *arguments]


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "TENSOR_FUSION_"))}
    # Wherever this process found the package, installed or in src/, the worker is to find the same one.
    paths = [str(Path(tensor_fusion.__file__).parent.parent), clean.get("PYTHONPATH", "")]
    # No test writes to the user's image cache, or depends on what is there.
    own = {"PYTHONPATH": ":".join(filter(None, paths)), "TF_IMAGE_CACHE_PATH": ""}
    return {**clean, **own, **variables}


def fails(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run a worker that must not start; its exit code and standard error."""
    result = subprocess.run(
        command(*arguments), env=environment(**variables), capture_output=True, text=True, timeout=30, check=False
    )
    assert "ready" not in result.stdout
    return result.returncode, result.stderr


def suspend(process: subprocess.Popen[str]) -> None:
    """SIGSTOP, and wait: it reaches the threads one after the other."""
    process.send_signal(signal.SIGSTOP)

    def stopped() -> bool:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{process.pid}/task").iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    assert eventually(stopped)


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


class Client:
    """One control connection that has been welcomed."""

    def __init__(self, connection: socket.socket, welcome: Welcome) -> None:
        self.connection = connection
        self.welcome = welcome
        self._file = connection.makefile("rw")

    def ask(self, line: str) -> str:
        self._file.write(line + "\n")
        self._file.flush()
        return self._file.readline().strip()

    def close(self) -> None:
        self._file.close()
        self.connection.close()


class Worker:
    """A worker process; leaving the context stops it and proves that nothing of it is left."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        if "--gpu" not in arguments:
            arguments = ("--gpu", "sim", *arguments)
        self.process = subprocess.Popen(
            command("-p", "0", "--host", "127.0.0.1", *arguments),
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.ready = self.process.stdout.readline()
        if not self.ready.startswith("ready "):
            _, errors = self.process.communicate(timeout=20)
            raise AssertionError(f"the worker did not get ready: {self.ready!r} {errors}")
        self.port = int(self.ready.split()[2].rpartition(":")[2])
        self.output = ""
        self.errors = ""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            left = self.children()
            self.stop()
            assert self.process.returncode == 0 or kind, (self.process.returncode, self.errors)
            assert eventually(lambda: not [child for child in left if alive(child)]), left

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            self.output, self.errors = self.process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, greeting: bytes) -> tuple[socket.socket, Welcome]:
        connection = self.connect()
        first, psk = opening(greeting)
        connection.sendall(first)
        return connection, read_welcome(connection, psk)

    def refuse(self, greeting: bytes) -> Welcome:
        """Send a greeting that must be refused; the worker closes the connection after its answer."""
        connection, welcome = self.exchange(greeting)
        with connection:
            assert welcome.status != Status.ACCEPTED
            assert connection.recv(1) == b""
        return welcome

    def client(self, program: str = "test", **fields: object) -> Client:
        greeting = Greeting.build(SCHEMA, program=program, **fields)  # type: ignore[arg-type]
        connection, welcome = self.exchange(greeting)
        assert welcome.status == Status.ACCEPTED, welcome.sentence
        return Client(connection, welcome)

    def data_greeting(self, client: Client, index: int, key: int | None = None, secret: str = "") -> bytes:
        return Greeting.build(
            SCHEMA,
            role=Role.DATA,
            session_id=client.welcome.session_id,
            session_key=client.welcome.session_key if key is None else key,
            data_index=index,
            secret=secret,
        )


def secret_of(greeting: bytes) -> bytes:
    return greeting[SECRET_OFFSET:][:SECRET_BYTES].rstrip(b"\0")


def opening(greeting: bytes) -> tuple[bytes, bytes]:
    """What a client sends that has this greeting, and the key of its connection: with a secret, it is in TLS."""
    secret = secret_of(greeting)
    if not secret:
        return greeting, b""
    first = hello.build(secret, greeting)
    return first, hello.derive_psk(secret, hello.parse(first).identity)


def read_welcome(connection: socket.socket, psk: bytes = b"") -> Welcome:
    """Of the supervisor, or of the stand-in session, which speaks no TLS: before it come a byte as in TLS and a hash of
    the key that the session got."""
    raw = connection.recv(1)
    assert raw, "the connection ended without a welcome"
    if raw == hello.HANDSHAKE:
        proof = b""
        while len(proof) < 32:
            proof += connection.recv(32 - len(proof))
        assert proof == hashlib.sha256(psk).digest()
        raw = b""
    while len(raw) < WELCOME_BYTES:
        part = connection.recv(WELCOME_BYTES - len(raw))
        assert part, f"the connection ended after {len(raw)} bytes of welcome"
        raw += part
    welcome = Welcome.parse(raw)
    assert welcome
    return welcome


def alive(process: psutil.Process) -> bool:
    """Whether it runs. A dead orphan is none, even where the machine's first process, a shell, does not fetch it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
