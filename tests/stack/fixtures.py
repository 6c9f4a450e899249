"""The fixtures of tests/test_stack*.py: the test program, built once, and a worker for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import harness
from stack.harness import HERE, Worker, generate_headers, link_with_driver


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_headers(tmp_path_factory.mktemp("headers"))


@pytest.fixture(scope="session")
def program(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_with_driver(tmp_path_factory.mktemp("stack") / "program", sorted(HERE.glob("*.c")), headers)


@pytest.fixture(params=["native", "shmem"])
def both_transports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker of the test serves over the one, then over the other."""
    monkeypatch.setattr(harness, "TRANSPORT", request.param)


@pytest.fixture
def worker(program: Path) -> Iterator[Worker]:
    with Worker(program=program) as running:
        yield running
