"""The fixtures of tests/test_stack*.py: the test program, built once for all processes, and a worker for each test."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stack import harness
from stack.harness import HERE, Worker, generate_headers, link_with_driver


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the processes that run tests fills, for all of them."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / f"once-{name}"
    with (shared / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared))
            make(new)
            new.rename(folder)  # whole, or not there: the next one that needs it meets the same fault
    return folder


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "headers", generate_headers)


@pytest.fixture(scope="session")
def program(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> Path:
        return link_with_driver(folder / "program", sorted(HERE.glob("*.c")), headers)

    return made_once(tmp_path_factory, "stack", make) / "program"


@pytest.fixture(params=["tls"] if harness.TRANSPORT == "tls" else ["native", "shmem"])
def both_transports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker of the test serves over the one, then over the other; with TF_TEST_TRANSPORT=tls over TLS alone."""
    monkeypatch.setattr(harness, "TRANSPORT", request.param)


@pytest.fixture(scope="module", params=["native", "shmem"])
def python_worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """One for all tests of a file, over the one and then over the other; its program is Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TRANSPORT", request.param)
        with Worker(program=Path(sys.executable)) as running:
            yield running


@pytest.fixture
def worker(program: Path) -> Iterator[Worker]:
    with Worker(program=program) as running:
        yield running
