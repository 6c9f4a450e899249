"""Uploads whose source is written by what stands before them in their stream: tests/stack/uploads.c."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stack.harness import LOSS_SECONDS, LOST, Worker, whole_stack

pytestmark = [*whole_stack, pytest.mark.usefixtures("both_transports")]
pytest_plugins = ["stack.fixtures"]

CHECKS = [
    "streams",
    "pageable",
    "caller",
    "downloads",
    "boxes",
    "places",
    "graphs",
    "sources",
    "threads",
    "many",
    "capture",
    "ends",
]
OUT_OF_MEMORY = 2


@pytest.mark.parametrize("check", CHECKS)
def test_uploads(worker: Worker, check: str) -> None:
    assert worker.run("uploads", check) == "right\n"


@pytest.mark.parametrize("check", ["streams", "boxes", "graphs", "threads", "ends"])
def test_uploads_while_posts_wait(worker: Worker, check: str) -> None:
    assert worker.run("uploads", check, TF_STRICT="1") == "right\n"


@pytest.mark.parametrize("check", ["streams", "caller", "boxes", "many", "ends"])
def test_a_driver_without_waits_for_memory(program: Path, check: str) -> None:
    """There host functions wait."""
    with Worker(program=program, TF_SIM_FAULTS="cuStreamWaitValue64_v2:1+=801") as worker:
        assert worker.run("uploads", check) == "right\n"


@pytest.mark.parametrize(
    "fault",
    [
        f"cuStreamWaitValue64_v2:1={OUT_OF_MEMORY}",
        f"cuStreamWriteValue64_v2:2={OUT_OF_MEMORY}",
        f"cuStreamWriteValue64_v2:3={OUT_OF_MEMORY}",
    ],
)
def test_a_refused_upload(program: Path, fault: str) -> None:
    """Its error is told, its source can be freed, its stream goes on."""
    with Worker(program=program, TF_SIM_FAULTS=fault) as worker:
        assert worker.run("uploads", "refused") == f"{OUT_OF_MEMORY}\nright\n"


@pytest.mark.parametrize("strict", ["0", "1"])
def test_refused_functions_are_outstanding_no_longer(program: Path, strict: str) -> None:
    faults = f"cuLaunchHostFunc:1=999;cuStreamAddCallback:1=999;cuStreamWaitValue64_v2:1+={OUT_OF_MEMORY}"
    with Worker(program=program, TF_SIM_FAULTS=faults) as worker:
        assert worker.run("uploads", "refused-functions", TF_STRICT=strict) == "right\n"


@pytest.mark.parametrize("check", ["function", "late", "streams", "threads", "memory"])
def test_more_than_a_stream_takes(worker: Worker, check: str) -> None:
    """tests/stack/behind.c"""
    assert worker.run("behind", check) == "right\n"


def test_a_session_that_ends_while_an_upload_stands(worker: Worker) -> None:
    with worker.start("uploads", "lost") as client:
        assert client.line() == "standing"
        time.sleep(0.2)
        (session,) = worker.sessions()
        killed_at = time.monotonic()
        session.kill()
        waited, freed = map(int, client.line(LOSS_SECONDS).split())
        assert time.monotonic() - killed_at < LOSS_SECONDS
        assert waited == LOST
        assert freed in {0, LOST}


def test_a_client_that_ends_while_an_upload_stands(worker: Worker) -> None:
    with worker.start("uploads", "lost") as client:
        assert client.line() == "standing"
        time.sleep(0.2)
    deadline = time.monotonic() + 5
    while worker.sessions() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not worker.sessions()
