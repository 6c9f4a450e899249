"""Memory and copies: the allocator of the session by itself, and the whole stack on the simulated GPU.

`TF_TEST_SANITIZE=address,undefined` builds the test of the session's memory files with those sanitizers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
from native_code import includes, sources

from tensor_fusion.abi import native_file, native_folder
from tensor_fusion.client.files import client_environment

ROOT = Path(__file__).parent.parent
MIB = 1 << 20
NEEDED = ("client/libteleport.so.1", "client/libcuda.so.1", "bin/tensor-fusion-session", "lib/libtf-simgpu.so")
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wno-sign-conversion", "-fno-strict-aliasing"]
CASES = (
    "copies",
    "visible",
    "boxes",
    "allocations",
    "twins",
    "vmm",
    "pools",
    "threads",
    "in_step",
    "first_copy",
    "standing",
    "ordered_frees",
    "order",
    "stall",
    "local_pools",
    "managed",
    "managed_copies",
    "managed_large",
    "managed_order",
    "managed_attached",
    "managed_hints",
    "managed_signals",
    "managed_variables",
)
TCP = ("--host", "127.0.0.1", "-p", "0")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
whole_stack = pytest.mark.skipif(
    not all((native_folder() / name).is_file() for name in NEEDED),
    reason=f"the native files are not in {native_folder()}; install the package or set TF_NATIVE_DIR",
)


def compile_program(out: Path, sources: list[Path], *flags: str) -> Path:
    assert COMPILER
    command = [COMPILER, "-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", *WARNINGS, "-Werror", *map(str, sources), *flags]
    done = subprocess.run([*command, "-pthread", "-o", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    subprocess.run(
        [sys.executable, "-m", "tensor_fusion.apigen", "--api", str(ROOT / "api"), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    return out


def test_session_memory_by_itself(tmp_path: Path, generated: Path) -> None:
    """Allocation, limits, ranges and hostile arguments against a driver of a few lines that checks what it is told."""
    sanitize = os.environ.get("TF_TEST_SANITIZE")
    flags = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"] if sanitize else []
    flags.append("-Wno-unused-parameter")  # as the session's own build
    flags.append("-DTPW_BETWEEN_MOST=100000")  # copies within host memory go in several pieces
    folders = [*includes("base", "wire", "ring", "transport", "session"), f"-I{generated}"]
    names = ["memory", "arena", "twin", "twin_look", "vmm", "pool", "memset", "staging", "wait"]
    names += ["copy_in", "copy_out", "copy_device", "copy_host", "copy_pinned", "pinned", "segment_pin", "peer", "done"]
    parts = [*(ROOT / "tests/native").glob("test_arena*.c"), *sources("session", *names)]
    parts += [*sources("ring", "segment", "ring"), *sources("base", "quota", "log", "places", "time_lock")]
    program = compile_program(tmp_path / "test_arena", parts, *flags, *folders)
    done = subprocess.run([program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


class Worker:
    """A worker on the simulated GPU, with the real session; over TCP, unless a connection string says otherwise."""

    def __init__(self, *options: str, connection: str = "", **variables: str) -> None:
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("TF_", "TENSOR_FUSION_", "LD_"))}
        if "TF_NATIVE_DIR" in os.environ:
            clean["TF_NATIVE_DIR"] = os.environ["TF_NATIVE_DIR"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensor_fusion.worker", "--gpu", "sim", *(options or TCP)],
            env={**clean, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("ready"), line
        connection = connection or f"native+127.0.0.1+{line.split()[2].rpartition(':')[2]}+0"
        self.env = {**clean, **client_environment(connection, clean)}

    def run(self, program: Path, *cases: str, **variables: str) -> None:
        done = subprocess.run(
            [program, *cases], env={**self.env, **variables}, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(15)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as running:
        yield running


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, generated: Path) -> Path:
    client = native_file("client/libcuda.so.1")
    return compile_program(
        tmp_path_factory.mktemp("memory") / "test_memory",
        sorted((ROOT / "tests/native").glob("test_memory*.c")),
        f"-I{generated}",
        str(client),
        f"-Wl,-rpath,{client.parent}",
    )


@whole_stack
@pytest.mark.parametrize("case", CASES)
def test_case(worker: Worker, program: Path, case: str) -> None:
    worker.run(program, case)


@whole_stack
def test_strict_mode_gives_the_same(worker: Worker, program: Path) -> None:
    worker.run(program, "boxes", "pools", "ordered_frees", "twins", TF_STRICT="1")


@whole_stack
def test_twins_are_bounded_by_the_memory_of_a_session(program: Path) -> None:
    with Worker(TF_SESSION_MEMORY_LIMIT="512") as limited:
        limited.run(program, "twin_limit")


@whole_stack
def test_limit_to_the_byte(program: Path) -> None:
    with Worker(TF_GPU_MEMORY_LIMIT="64") as limited:
        limited.run(program, "limit")
        limited.run(program, "limit")  # what the first client held has come back
        limited.run(program, "kept")
        limited.run(program, "ordered_limit")
        limited.run(program, "managed_limit")
        limited.run(program, "graph_limit")


@whole_stack
def test_a_pool_gives_back_what_was_freed_without_a_stream(program: Path) -> None:
    with Worker() as free:
        free.run(program, "given_back")


@whole_stack
def test_limit_is_shared_by_the_clients_of_a_worker(program: Path) -> None:
    with Worker(TF_GPU_MEMORY_LIMIT="64") as limited:
        holder = subprocess.Popen(
            [program, "hold"], env=limited.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout
        assert holder.stdout.readline() == "holding\n"
        limited.run(program, "share")
        holder.communicate("go\n", timeout=20)
        assert holder.returncode == 0
