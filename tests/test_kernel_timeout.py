"""--kernel-timeout: who has a kernel that runs for longer is ended and told why, and nobody else is."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack.harness import LOST, ROOT, Program, Worker, whole_stack
from worker_harness import eventually

from tensor_fusion.abi import native_file

pytestmark = whole_stack

TIMEOUT = 702  # CUDA_ERROR_LAUNCH_TIMEOUT
NOT_READY = 600
FAULT = 700
FOR_EVER = 3_600_000
LONGER = 2.6  # seconds: longer than --kernel-timeout 1 lets anybody run


class Client(Program):
    """A client that makes the calls it is told."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(
            [sys.executable, ROOT / "tests/stack/apart/kernels.py", native_file("kernels.ptx")], worker.env
        )
        assert self.call("prepare") == 0

    def __enter__(self) -> Client:
        return self

    def call(self, name: str, *arguments: object) -> int:
        return int(json.loads(self.ask(json.dumps([name, *arguments]))))


@pytest.fixture(params=["native", "shmem"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    log: dict[str, Any] = {"TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(tmp_path / "log")}
    with Worker("--kernel-timeout", "1", transport=str(request.param), **log) as found:
        yield found


@pytest.fixture
def client(worker: Worker) -> Iterator[Callable[[], Client]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Client(worker))


def test_a_kernel_that_runs_for_ever_ends_its_client(
    worker: Worker, client: Callable[[], Client], tmp_path: Path
) -> None:
    bad, good = client(), client()
    sessions = worker.sessions()
    assert bad.call("spin", 1, FOR_EVER) == 0
    began = time.monotonic()
    bad.begin(json.dumps(["wait", 1]))
    assert good.call("spin", 1, 10) == 0 and good.call("wait", 1) == 0
    assert json.loads(bad.line()) == TIMEOUT
    assert 1 <= time.monotonic() - began < 10
    assert bad.call("info") == bad.call("spin", 2, 1) == bad.call("query", 2) == bad.call("wait", 0) == TIMEOUT
    assert good.call("spin", 1, 10) == 0 and good.call("wait", 1) == 0
    assert eventually(lambda: sum(session.is_running() and alive(session) for session in sessions) == 1)
    log = (tmp_path / "log").read_text()
    assert "one of its launches has run on device 0 for more than 1 s (--kernel-timeout)" in log
    assert eventually(lambda: "a kernel that ran for longer than --kernel-timeout" in (tmp_path / "log").read_text())
    bad.kill()
    assert "a kernel ran for longer than the worker (--kernel-timeout)" in bad.errors().replace("\n", " ")
    with Client(worker) as later:
        assert later.call("spin", 1, 10) == 0 and later.call("wait", 1) == 0


def alive(session: psutil.Process) -> bool:
    return session.status() != psutil.STATUS_ZOMBIE


def test_who_waits_for_nothing_and_who_polls(worker: Worker, client: Callable[[], Client]) -> None:
    silent, polling, graph = client(), client(), client()
    assert (
        silent.call("spin", 0, FOR_EVER) == polling.call("spin", 2, FOR_EVER) == graph.call("graph", 1, FOR_EVER) == 0
    )
    until = time.monotonic() + 10
    while (found := polling.call("query", 2)) == NOT_READY and time.monotonic() < until:
        time.sleep(0.05)
    assert found == TIMEOUT
    assert eventually(lambda: not worker.sessions(), 10)
    assert silent.call("info") == graph.call("wait", 1) == TIMEOUT, "they hear of it afterwards, too"


def test_a_wait_for_all_work_finds_launches(client: Callable[[], Client]) -> None:
    """Also in a stream that has been destroyed since."""
    one = client()
    for destroyed in (False, True):
        assert one.call("spin", 1, 600) == 0
        began = time.monotonic()
        assert not destroyed or one.call("destroy", 1) == 0
        assert one.call("synchronize") == 0
        assert time.monotonic() - began > 0.4


def test_a_queue_that_the_driver_takes_no_more_of(client: Callable[[], Client]) -> None:
    """The session stands in the driver, behind the kernel."""
    full = client()
    assert full.call("spin", 1, FOR_EVER) == 0
    assert full.call("spin", 1, 1, 4000) in (0, TIMEOUT)
    began = time.monotonic()
    assert full.call("wait", 1) == TIMEOUT
    assert time.monotonic() - began < 10


def test_many_short_kernels(client: Callable[[], Client]) -> None:
    """Together they take longer, and nothing is between them."""
    long, graphs = client(), client()
    assert long.call("spin", 1, 100, 30) == long.call("spin", 0, 100, 30) == 0
    assert [graphs.call("graph", 1, 500) for _ in range(6)] == [0] * 6
    assert long.call("wait", 1) == long.call("wait", 0) == graphs.call("wait", 1) == 0


def test_who_waits_for_the_client_is_no_kernel(client: Callable[[], Client]) -> None:
    """A host function, a word, an event; with launches before and behind each."""
    host, word, event, graph = (client() for _ in range(4))
    for one in (host, word, event, graph):
        assert one.call("spin", 1, 50) == one.call("spin", 2, 50) == 0
    at = word.call("word")
    assert host.call("host_function", 1, LONGER) == word.call("wait_for", 1, at) == 0
    assert event.call("host_function", 1, LONGER) == event.call("wait_for_stream", 2, 1) == 0
    assert graph.call("graph", 1, 50, LONGER) == 0
    for one, stream in ((host, 1), (word, 1), (event, 2), (graph, 1)):
        assert one.call("spin", stream, 50, 3) == 0
    time.sleep(LONGER)
    assert word.call("query", 1) == NOT_READY and word.call("write", 2, at) == 0
    for one, stream in ((host, 1), (word, 1), (event, 2), (graph, 1)):
        assert one.call("wait", stream) == 0


def test_beside_a_host_function_a_kernel_is_bounded(client: Callable[[], Client]) -> None:
    both = client()
    assert both.call("host_function", 1, 8) == both.call("spin", 2, FOR_EVER) == 0
    began = time.monotonic()
    assert both.call("wait", 2) == TIMEOUT
    assert time.monotonic() - began < 6


def test_a_kernel_that_failed_runs_no_more(client: Callable[[], Client]) -> None:
    """The GPU writes nothing behind it. Its client goes on hearing of that error, also who has not asked yet."""
    told, silent = client(), client()
    assert told.call("fault", 1) == silent.call("fault", 1) == 0
    assert told.call("wait", 1) == FAULT
    time.sleep(LONGER)
    assert told.call("wait", 1) == told.call("info") == silent.call("wait", 1) == FAULT


def test_without_the_option_kernels_run_as_long_as_they_like(tmp_path: Path) -> None:
    with Worker(transport="native") as worker, Client(worker) as client:
        assert client.call("spin", 1, int(1000 * LONGER)) == client.call("wait", 1) == 0


def test_a_worker_that_ends_is_lost_as_ever(worker: Worker, client: Callable[[], Client]) -> None:
    one = client()
    os.kill(worker.sessions()[0].pid, 9)
    assert eventually(lambda: one.call("info") == LOST)
