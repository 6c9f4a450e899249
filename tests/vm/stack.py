"""A worker on this machine and the guest that uses it, over either transport."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.harness import MIB, Worker, clean_environment

from tensor_fusion.client.vm import RULE_FILE, Instructions, instructions
from tensor_fusion.config import CONNECTION_INFO
from vm.machine import HOST, GuestProgram, Machine

NATIVE = "/opt/tensor-fusion"
CLIENT = f"{NATIVE}/client"
PROGRAM = "/opt/program"
PYTHON_FILES = "/opt/python"
USER, GROUP = 1000, "somebody"
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
            return shared_connection(self.machine, self.segment)
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

    def check(self, user: int = 0) -> list[tuple[str, bool, str]]:
        """What `tensor-fusion vm --check` finds in the guest, where only Python's standard library is."""
        env = {"PYTHONPATH": PYTHON_FILES, "TF_NATIVE_DIR": NATIVE}
        with self.machine.start("python3", "-m", "tensor_fusion.client.vmcheck", "--json", user=user, env=env) as asked:
            code = asked.wait()
            assert asked.output(), asked.errors()
            report = json.loads(asked.output())
        assert code == (0 if report["passed"] else 1)
        return [(one["name"], one["passed"], one["text"]) for one in report["checks"]]

    def console(self) -> GuestProgram:
        console = self.start("console")
        assert console.line() == "console"
        assert console.code("init") == 0
        return console


def printed(segment: Path) -> Instructions:
    """What `tensor-fusion vm` prints for it."""
    return instructions(f"/{segment.name}", SEGMENT_MB, GROUP)


@functools.cache
def shared_connection(machine: Machine, segment: Path) -> str:
    """The connection string that the printed lines for the client's environment lead to in the guest."""
    text = machine.run("sh", "-c", f'{printed(segment).client}\necho "${CONNECTION_INFO}"').strip()
    assert re.fullmatch(rf"shmem\+/sys/\S+/resource2\+{SEGMENT_MB}\+0", text), text
    return text


def resource(machine: Machine, segment: Path) -> str:
    """The file in the guest that is the segment."""
    return shared_connection(machine, segment).split("+")[1]


def forbid(machine: Machine, segment: Path) -> None:
    """Take the rights that a rule gave away."""
    file = resource(machine, segment)
    machine.run("sh", "-c", f"chown 0:0 {file}; chmod 0600 {file}")


def apply_rule(machine: Machine, segment: Path) -> None:
    """What a guest does at its start with the rule that is printed."""
    for text in (
        f"mkdir -p /etc/udev/rules.d && cat > {RULE_FILE} <<'END'\n{printed(segment).udev}\nEND",
        "pidof systemd-udevd || /lib/systemd/systemd-udevd --daemon",
        "udevadm control --reload && udevadm trigger --subsystem-match=pci && udevadm settle -t 20",
    ):
        machine.run("sh", "-c", text)


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
