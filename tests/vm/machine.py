"""A virtual machine under software emulation, and the programs in it.

Nothing outlives a test run: QEMU dies with the process that started it, and a guest's program with its connection.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from vm.root import Root

BOOT_SECONDS = 60.0
MEMORY = "512M"
HOST = "10.0.2.2"  # what the guest calls the machine that QEMU runs on


class GuestProgram:
    """A program in the guest, with lines in and out; it is used as stack.harness.Program is."""

    def __init__(self, connection: socket.socket, argv: Sequence[str], env: dict[str, str], user: int) -> None:
        self.argv = list(argv)
        self.exit_code: int | None = None
        self._connection = connection
        self._frames = b""
        self._output = b""
        self._errors = b""
        self._send(b"R", json.dumps({"argv": self.argv, "env": env, "user": user}).encode())

    def _send(self, kind: bytes, data: bytes = b"") -> None:
        self._connection.sendall(struct.pack("<cI", kind, len(data)) + data)

    def _receive(self, seconds: float) -> bool:
        """Take in what has come, at most one frame; False when nothing came in time."""
        until = time.monotonic() + seconds
        while len(self._frames) < 5 or len(self._frames) < 5 + struct.unpack_from("<xI", self._frames)[0]:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._connection], [], [], left)[0]:
                return False
            part = self._connection.recv(1 << 18)
            assert part, f"the guest has hung up on {self.argv}"
            self._frames += part
        kind, size = struct.unpack_from("<cI", self._frames)
        data, self._frames = self._frames[5 : 5 + size], self._frames[5 + size :]
        if kind == b"O":
            self._output += data
        elif kind == b"F":
            self._errors += data
        else:
            assert kind == b"X", kind
            self.exit_code = int(data)
        return True

    def _until(self, reached: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not reached():
            if self.exit_code is not None or not self._receive(until - time.monotonic()):
                return reached()
        return True

    def line(self, seconds: float = 30.0) -> str:
        """The next line of output. Fails when there is none within `seconds`."""
        if not self._until(lambda: b"\n" in self._output, seconds):
            pytest.fail(f"{self.argv} said no line within {seconds} s; exit code {self.exit_code}: {self.errors()}")
        line, _, self._output = self._output.partition(b"\n")
        return line.decode()

    def ask(self, command: str, seconds: float = 30.0) -> str:
        self._send(b"I", f"{command}\n".encode())
        return self.line(seconds)

    def code(self, command: str, seconds: float = 30.0) -> int:
        """The CUresult of a console's command."""
        return int(self.ask(command, seconds).split()[0])

    def free(self) -> int:
        """Free bytes of device memory, as a console sees them."""
        result, free, *_ = map(int, self.ask("info").split())
        assert result == 0
        return free

    def running(self) -> bool:
        while self.exit_code is None and self._receive(0):
            pass
        return self.exit_code is None

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit code; negative after a signal."""
        if not self._until(lambda: self.exit_code is not None, seconds):
            pytest.fail(f"{self.argv} has not ended within {seconds} s: {self.errors()}")
        assert self.exit_code is not None
        return self.exit_code

    def end(self, seconds: float = 30.0) -> int:
        """Close its input and wait; its exit code."""
        self._send(b"E")
        return self.wait(seconds)

    def send_signal(self, number: int) -> None:
        self._send(b"S", str(int(number)).encode())

    def output(self) -> str:
        return self._output.decode()

    def errors(self) -> str:
        return self._errors.decode()

    def __enter__(self) -> GuestProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()


class Machine:
    """A running guest. `devices` are more arguments for QEMU, `extra` an archive that is unpacked over the root."""

    def __init__(self, root: Root, extra: Path, folder: Path, *devices: str) -> None:
        self.console = folder / "console.log"
        self._errors = folder / "qemu.log"
        disk = folder / "disk"
        with disk.open("wb") as out:
            for part in (root.disk, extra):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        # A socket pair for the machine protocol: its path cannot be too long, and it ends with either side.
        ours, theirs = socket.socketpair()
        command = [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY),
            *("-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{self.console}"),
            *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
            *("-nic", "user,model=virtio-net-pci"),
            *("-kernel", str(root.kernel), "-initrd", str(disk)),
            *("-append", f"console=ttyS0 panic=-1 quiet agent={port}"),
            *devices,
        ]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=[theirs.fileno()]
            )
        theirs.close()
        self._monitor = ours
        ours.settimeout(20)
        self._replies = ours.makefile("r")
        self._idle: socket.socket | None = None
        self._idle = self._accept(BOOT_SECONDS)
        self.command("qmp_capabilities")

    def _accept(self, seconds: float) -> socket.socket:
        """The agent's idle connection; one arrives whenever the one before it was used."""
        self._listener.settimeout(1)
        until = time.monotonic() + seconds
        while True:
            try:
                connection, _ = self._listener.accept()
                connection.settimeout(20)
                return connection
            except TimeoutError:
                if self.process.poll() is not None or time.monotonic() > until:
                    told = self.report()
                    self.close()
                    pytest.fail(f"the guest's agent has not called within {seconds:.0f} s\n{told}")

    def start(self, *argv: str, user: int = 0, env: dict[str, str] | None = None) -> GuestProgram:
        assert self._idle
        program = GuestProgram(self._idle, argv, env or {}, user)
        self._idle = None
        self._idle = self._accept(20)
        return program

    def run(self, *argv: str, user: int = 0, env: dict[str, str] | None = None, seconds: float = 60.0) -> str:
        """Run a program to its end; its output. Fails unless it succeeds."""
        with self.start(*argv, user=user, env=env) as program:
            code = program.end(seconds)
            assert code == 0, (code, program.output(), program.errors())
            return program.output()

    def command(self, name: str) -> object:
        """One command of QEMU's machine protocol; its result."""
        self._monitor.sendall(json.dumps({"execute": name}).encode() + b"\n")
        while True:
            reply = json.loads(self._replies.readline())
            if "return" in reply:
                return reply["return"]
            assert "error" not in reply, reply

    def status(self) -> str:
        reply = self.command("query-status")
        assert isinstance(reply, dict)
        return str(reply["status"])

    def report(self) -> str:
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        return f"qemu: {self._errors.read_text(errors='replace')}\nthe guest's console:\n{console[-20000:]}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        self._replies.close()
        self._monitor.close()
        self._listener.close()
        if self._idle:
            self._idle.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
