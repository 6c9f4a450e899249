"""Real processes for the whole-stack tests: the worker command, programs that use its GPU, and their ends.

Every process is started in the environment of a user: no TF_* or LD_* variable but those that a test sets.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from worker_harness import environment, eventually

from tensor_fusion import apigen
from tensor_fusion.abi import native_folder
from tensor_fusion.client.files import client_environment, client_folder
from tensor_fusion.config import CONNECTION_INFO

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NEEDED = ("client/libteleport.so.1", "client/libcuda.so.1", "bin/tensor-fusion-session", "lib/libtf-simgpu.so")
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
LOST = 46  # what every call gives when the worker is gone
LOSS_SECONDS = 3.0
MIB = 1 << 20
# The same tests over shared memory, and with a secret, which is TLS.
SECRET = "harness-secret-4711"
TRANSPORT = os.environ.get("TF_TEST_TRANSPORT", "native")
# And in another jail than the default.
JAIL = ["--jail", os.environ["TF_TEST_JAIL"]] if "TF_TEST_JAIL" in os.environ else []
# And while their system calls are recorded (tools/record_syscalls.py).
RECORDED = {"LD_PRELOAD": os.environ["TF_TEST_PRELOAD"]} if "TF_TEST_PRELOAD" in os.environ else {}
_numbers = itertools.count()
# How a program in Python begins that has 1 MiB of device memory at `address`. What goes wrong it says, and ends with 3
WITH_MEMORY = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def must(code):
    if code:
        print("gave", code, flush=True)
        sys.exit(3)
context, address, by, size = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.byref, ctypes.c_size_t
must(cuda.cuInit(0))
must(cuda.cuDevicePrimaryCtxRetain(by(context), 0))
must(cuda.cuCtxSetCurrent(context))
must(cuda.cuMemAlloc_v2(by(address), size(1 << 20)))
"""
# Python itself may lie where only root reads: what the worker needs of it is read before.
BECOME = """
import encodings.idna, importlib.metadata, os, sys
from tensor_fusion.worker.main import main, product_version
product_version()
number = int(sys.argv[1])
os.setgroups([]); os.setgid(number); os.setuid(number)
sys.exit(main(sys.argv[2:]))
"""

whole_stack = [
    pytest.mark.skipif(
        not all((native_folder() / name).is_file() for name in NEEDED),
        reason=f"the native files are not in {native_folder()}; install the package or set TF_NATIVE_DIR",
    ),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
]


def clean_environment(**variables: str) -> dict[str, str]:
    native = {"TF_NATIVE_DIR": os.environ["TF_NATIVE_DIR"]} if "TF_NATIVE_DIR" in os.environ else {}
    kept = {name: value for name, value in environment().items() if not name.startswith("LD_")}
    return {**kept, **native, **variables}


def generate_headers(folder: Path) -> Path:
    """Put tpg_cuda.h, which stands in for NVIDIA's cuda.h, into `folder`."""
    command = [sys.executable, "-m", apigen.__name__, "--api", str(ROOT / "api"), "--out", str(folder)]
    subprocess.run(command, env=clean_environment(), check=True, timeout=60)
    return folder


def link_with_driver(out: Path, sources: Sequence[Path], headers: Path) -> Path:
    """A program for the driver API, built as any user would: -lcuda, found in the client folder."""
    assert COMPILER
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-sign-conversion"]
    folder = str(client_folder())
    link = [f"-L{folder}", f"-Wl,-rpath-link,{folder}", "-lcuda", "-pthread"]
    command = [COMPILER, *flags, f"-I{headers}", *map(str, sources), "-o", str(out), *link]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return out


class Program:
    """One role of the test program, in its own process, with lines in and out."""

    def __init__(self, command: Sequence[str | Path], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            list(map(str, command)), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._rest = b""

    def line(self, seconds: float = 20.0) -> str:
        """The next line of output. Fails when there is none within `seconds`."""
        assert self.process.stdout
        descriptor = self.process.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                pytest.fail(f"{self.process.args!r} said nothing for {seconds} s")
            part = os.read(descriptor, 65536)
            if not part:
                pytest.fail(f"{self.process.args!r} ended with {self.process.wait(5)}: {self.errors()}")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def begin(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()

    def ask(self, command: str, seconds: float = 20.0) -> str:
        self.begin(command)
        return self.line(seconds)

    def code(self, command: str, seconds: float = 20.0) -> int:
        """The CUresult of a console's command."""
        return int(self.ask(command, seconds).split()[0])

    def info(self) -> tuple[int, int, int]:
        """Free and total bytes of cuMemGetInfo, and what cuDeviceTotalMem says."""
        result, *sizes = map(int, self.ask("info").split())
        assert result == 0
        free, total, device = sizes
        return free, total, device

    def end(self, seconds: float = 20.0) -> int:
        """Close its input and wait; its exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(seconds)

    def errors(self) -> str:
        assert self.process.stderr
        return self.process.stderr.read().decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream and not stream.closed:
                stream.close()


class Worker:
    """A worker on the simulated GPU. Without warm sessions its children are exactly the sessions of its clients.

    The one that showed that the worker can serve may end a moment after `ready`: it is waited for.
    """

    segment: Path | None = None  # what a killed worker would leave behind
    user: int | None = None  # who it becomes before it begins, of a test that root runs

    def __init__(
        self, *options: str, program: Path | None = None, transport: str | None = None, **variables: str
    ) -> None:
        name = f"/tf-test-{os.getpid()}-{next(_numbers)}"
        shmem = (transport or TRANSPORT) == "shmem"
        tls = (transport or TRANSPORT) == "tls"
        self._keys = tempfile.NamedTemporaryFile("w") if tls else None  # noqa: SIM115 - as long as the worker
        if self._keys:
            self._keys.write(f"{SECRET}\n")
            self._keys.flush()
            variables = {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": self._keys.name, **variables}
        place = ["-n", "shmem", "-m", name, "-M", "128"] if shmem else ["-p", "0", "--host", "127.0.0.1"]
        words = [*place, "--gpu", "sim", "--warm", "0", *JAIL, *options]
        self.segment = Path(f"/dev/shm{name}") if shmem else None
        self.program = program
        self.ended_by: signal.Signals | None = None
        begin = ["-m", "tensor_fusion.worker"] if self.user is None else ["-c", BECOME, str(self.user)]
        self.process = subprocess.Popen(
            [sys.executable, *begin, *words],
            env=clean_environment(**{**RECORDED, **variables}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        ready = self.process.stdout.readline()
        assert ready.startswith("ready shmem" if shmem else "ready native 127.0.0.1:"), ready
        self.port = 0 if shmem else int(ready.split()[2].rpartition(":")[2])
        self.connection = f"shmem+{name}+128+0" if shmem else f"native+127.0.0.1+{self.port}+0"
        self.connection += f"+{SECRET}" if tls else ""
        clean = clean_environment()
        self.env = {**clean, **client_environment(self.connection, clean)}
        if "--warm" not in options:
            assert eventually(lambda: not self.sessions()), self.sessions()

    def start(self, *words: str, **variables: str) -> Program:
        assert self.program
        return Program([self.program, *words], {**self.env, **variables})

    def run(self, *words: str, **variables: str) -> str:
        """Run a role to its end; its output. Fails unless it succeeds."""
        assert self.program
        return succeed([self.program, *words], {**self.env, **variables})

    def console(self, **variables: str) -> Program:
        console = self.start("console", **variables)
        assert console.line() == "console"
        assert console.code("init") == 0
        return console

    def sessions(self) -> list[psutil.Process]:
        return [child for child in _children(self.process.pid) if _runs(child)]

    def end(self, how: signal.Signals) -> None:
        """Send a signal, once; what it leads to is checked at the end of the context."""
        self.ended_by = how
        self.process.send_signal(how)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.ended_by is None:
            self.end(signal.SIGTERM)
        code = self.process.wait(20)
        if self.segment and self.ended_by == signal.SIGKILL:
            self.segment.unlink(missing_ok=True)
        assert self.process.stdout
        self.process.stdout.close()
        assert kind or code == (-signal.SIGKILL if self.ended_by == signal.SIGKILL else 0)


def _children(pid: int) -> list[psutil.Process]:
    """As the kernel lists them, where it does: to look through all processes takes a hundred times as long."""
    lists = list(Path(f"/proc/{pid}/task").glob("*/children"))
    if not lists:
        return psutil.Process(pid).children()
    found = []
    for child in (int(word) for part in lists for word in part.read_text().split()):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            found.append(psutil.Process(child))
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # reaped since it was listed
        return False


def succeed(command: Sequence[str | Path], env: dict[str, str], seconds: float = 60.0) -> str:
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def fail(command: Sequence[str | Path], env: dict[str, str], seconds: float = 60.0) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that must not crash and must not hang."""
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode > 0, (done.returncode, done.stdout, done.stderr)
    return done.returncode, done.stdout, done.stderr


def connected_elsewhere(connection: str, **variables: str) -> dict[str, str]:
    """The environment of a program whose connection string a test makes up."""
    clean = clean_environment()
    return {**clean, **client_environment(None, clean), CONNECTION_INFO: connection, **variables}
