"""What a session does before its client wants it: a context is made when something needs one, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest
from stack.harness import Worker, whole_stack
from worker_harness import eventually

pytestmark = [*whole_stack, pytest.mark.usefixtures("both_transports")]
pytest_plugins = ["stack.fixtures"]

MADE = "has its context after"


def contexts(log: Path) -> int:
    return log.read_text().count(MADE)


def loud(log: Path) -> dict[str, str]:
    return {"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "debug", "TF_LOG_PATH": str(log)}


def test_devices_are_told_without_a_context(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(program=program, **loud(log)) as worker:
        before = contexts(log)  # of the session that showed that the worker can serve
        assert before == 1
        with worker.start("console") as client:
            assert client.line() == "console"
            assert client.code("devices") == 0
            assert len(worker.sessions()) == 1
            assert contexts(log) == before
            assert client.code("init") == 0  # which makes a context
            assert contexts(log) == before + 1
            assert client.code("alloc 0 4096") == 0
            assert client.end() == 0


def test_a_warm_session_has_its_context(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker("--warm", "1", program=program, **loud(log)) as worker:
        assert eventually(lambda: len(worker.sessions()) == 1)
        with worker.console() as client:
            assert contexts(log) == 1
            assert client.code("alloc 0 4096") == 0
            assert client.end() == 0


def test_a_replacement_comes_when_the_clients_have_their_contexts(program: Path) -> None:
    for _ in range(20):
        with (
            Worker("--warm", "1", program=program) as worker,
            worker.console() as first,
            worker.start("console") as second,
        ):
            assert second.line() == "console"
            assert second.code("devices") == 0
            if len(worker.sessions()) != 2:
                continue  # a replacement was there before the second client, so nothing was put off
            assert not eventually(lambda: len(worker.sessions()) > 2, 2.0)  # its session is cold: it has no context yet
            assert second.code("init") == 0
            assert eventually(lambda: len(worker.sessions()) == 3), "no replacement was started"
            assert first.end() == 0
            assert second.end() == 0
            return
    raise AssertionError("the second client never came before a replacement")
