"""The fixtures of tests/test_stack*.py: the test program, built once, and a worker for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.harness import HERE, TRANSPORT, Worker, generate_headers, link_with_driver


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_headers(tmp_path_factory.mktemp("headers"))


@pytest.fixture(scope="session")
def program(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_with_driver(tmp_path_factory.mktemp("stack") / "program", sorted(HERE.glob("*.c")), headers)


@pytest.fixture
def worker(program: Path, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """Over the transport that the test names as a parameter, else that of TF_TEST_TRANSPORT."""
    with Worker(program=program, transport=getattr(request, "param", TRANSPORT)) as running:
        yield running
