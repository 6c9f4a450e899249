"""A worker on this machine and the guest that uses it, over either transport."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.harness import MIB, Worker, clean_environment

from tensor_fusion.config import CONNECTION_INFO
from vm.machine import HOST, SHARED_DEVICE, GuestProgram, Machine

CLIENT = "/opt/tensor-fusion-client"
PROGRAM = "/opt/program"
PYTHON_FILES = "/opt/python"
USER = 1000
SEGMENT_MB = 64


class SharedWorker(Worker):
    """A worker on a shared segment; as Worker is one behind a port."""

    def __init__(self, name: str, *options: str, **variables: str) -> None:
        words = ["-n", "shmem", "-m", name, "-M", str(SEGMENT_MB), "--gpu", "sim", "--warm", "0", *options]
        self.program = None
        self.ended_by = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensor_fusion.worker", *words],
            env=clean_environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        ready = self.process.stdout.readline()
        assert ready.startswith(f"ready shmem {name} {SEGMENT_MB} MB"), ready


class Stack:
    """The guest and how its programs reach a worker over one transport."""

    def __init__(self, machine: Machine, transport: str, segment: Path) -> None:
        self.machine = machine
        self.transport = transport
        self.segment = segment
        self.port = 0

    def worker(self, **variables: str) -> Worker:
        """A worker for the guest; one after another has the same address."""
        if self.transport == "shmem":
            return SharedWorker(f"/{self.segment.name}", **variables)
        worker = Worker("-p", str(self.port), program=None, **variables)
        self.port = worker.port
        return worker

    @property
    def connection(self) -> str:
        if self.transport == "shmem":
            return f"shmem+{SHARED_DEVICE}/resource2+{SEGMENT_MB}+0"
        return f"native+{HOST}+{self.port}+0"

    @property
    def env(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": CLIENT, CONNECTION_INFO: self.connection}

    def start(self, *words: str, user: int = 0) -> GuestProgram:
        return self.machine.start(PROGRAM, *words, user=user, env=self.env)

    def run(self, *words: str, user: int = 0) -> str:
        return self.machine.run(PROGRAM, *words, user=user, env=self.env)

    def python(self, text: str) -> str:
        return self.machine.run("python3", "-c", text, env={**self.env, "PYTHONPATH": PYTHON_FILES})

    def console(self) -> GuestProgram:
        console = self.start("console")
        assert console.line() == "console"
        assert console.code("init") == 0
        return console


@contextmanager
def make_segment(name: str) -> Iterator[Path]:
    """A file in /dev/shm for the guest to map; a worker takes it over."""
    path = Path(f"/dev/shm/{name}-{os.getpid()}")
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o660)
        os.ftruncate(file.fileno(), SEGMENT_MB * MIB)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
