"""Pinned memory and copies over shared memory: the cases of test_memory, and what only a shared segment gives.

The whole stack in real processes: client libraries, worker, session and the simulated GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_memory import CASES, Worker, generated, program, whole_stack

__all__ = ["generated", "program"]  # fixtures

SHARED = (
    "shared_pointers",
    "shared_kernels",
    "shared_full",
    "shared_free",
    "shared_churn",
    "shared_elsewhere",
    "shared_captured",
    "shared_patience",
)
pytestmark = whole_stack


def shared_worker(megabytes: int, *options: str, **variables: str) -> Worker:
    name = f"/tf-test-pinned-{os.getpid()}-{megabytes}"
    connection = f"shmem+{name}+{megabytes}+0"
    return Worker("-n", "shmem", "-m", name, "-M", str(megabytes), *options, connection=connection, **variables)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with shared_worker(320) as running:
        yield running


@pytest.mark.parametrize("case", CASES)
def test_case(worker: Worker, program: Path, case: str) -> None:
    worker.run(program, case)


@pytest.mark.parametrize("case", SHARED)
def test_what_only_a_segment_gives(worker: Worker, program: Path, case: str) -> None:
    worker.run(program, case)


def test_pinned_memory_is_the_first_thing(program: Path) -> None:
    """A session that nobody had waiting is in no context when its client wants pinned memory before anything else."""
    with shared_worker(48, "--warm", "0") as running:
        for _ in range(4):  # the first may get the session that showed that the worker can serve
            running.run(program, "shared_pointers")


def test_strict_mode_gives_the_same(worker: Worker, program: Path) -> None:
    worker.run(program, "shared_kernels", "shared_free", "boxes", TF_STRICT="1")


@pytest.mark.parametrize("megabytes", [16, 40])
def test_a_small_segment_is_slower_not_wrong(program: Path, megabytes: int) -> None:
    """Nearly everything that is pinned lies outside an arena of a few megabytes."""
    with shared_worker(megabytes) as small:
        small.run(program, "copies", "visible", "boxes")
        small.run(program, "shared_full" if megabytes > 16 else "order")


def test_a_wait_tells_of_a_failure_that_another_thread_has_read(program: Path) -> None:
    with shared_worker(64, TF_SIM_FAULTS="cuMemsetD16Async:1+=1") as failing:
        failing.run(program, "shared_failures")


def test_the_limit_does_not_count_pinned_memory(program: Path) -> None:
    with shared_worker(64, TF_GPU_MEMORY_LIMIT="64") as limited:
        limited.run(program, "shared_pointers", "limit", "shared_free")
        limited.run(program, "shared_kernels", "limit")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_pinned_memory_outlives_the_worker(program: Path, how: signal.Signals) -> None:
    with shared_worker(64) as ending:
        holder = subprocess.Popen(
            [program, "shared_outlives"],
            env=ending.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout
        assert holder.stdout.readline() == "holding\n"
        ending.process.send_signal(how)
        ending.process.wait(15)
        errors = holder.communicate("go\n", timeout=30)[1]
        assert holder.returncode == 0, errors
    Path(f"/dev/shm/tf-test-pinned-{os.getpid()}-64").unlink(missing_ok=True)  # a killed worker leaves it


def test_processes_at_once_do_not_meet(worker: Worker, program: Path) -> None:
    """Three processes in one arena, one of them killed in the middle: every byte stays whose it is."""
    command = [str(program), *["shared_churn", "shared_free"] * 5]
    running = [subprocess.Popen(command, env=worker.env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    time.sleep(1)
    assert running[0].poll() is None
    running[0].kill()
    for process in running[1:]:
        errors = process.communicate(timeout=100)[1]
        assert process.returncode == 0, errors
    running[0].communicate(timeout=10)
    worker.run(program, "shared_full")  # and what they had has come back
