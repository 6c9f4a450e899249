"""Host functions: what a program may call in them, and what becomes of those that the driver refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from stack.harness import ROOT, Worker, whole_stack

from tensor_fusion.apigen.model import load

pytestmark = [*whole_stack, pytest.mark.usefixtures("both_transports")]
pytest_plugins = ["stack.fixtures"]


def test_nothing_is_permitted_in_a_host_function(program: Path) -> None:
    """Every function of the library gives 800 there, but those that need no driver."""
    api = next(api for api in load(ROOT / "api").apis if api.name == "cuda")
    names = [name for name in api.exports if not api.resolve(api.lines[name]).anytime]
    with Worker(program=program) as worker:
        assert worker.run("callbacks", "forbidden", *names) == "right\n"


REFUSED = "cuLaunchHostFunc:1=999;cuStreamAddCallback:1=999"
BROKEN = "cuLaunchKernel:3=700,sticky"


@pytest.mark.parametrize("strict", ["0", "1"])
@pytest.mark.parametrize(
    ("check", "faults"),
    [
        ("refused", REFUSED),
        ("refused-callback", REFUSED),
        ("refused-beside-a-capture", REFUSED),
        ("capture-not-told", "cuStreamGetCaptureInfo_v2:2=999"),
        ("broken", BROKEN),
        ("broken-and-full", BROKEN),
        ("another-device", BROKEN),
    ],
)
def test_a_refused_function_holds_nobody_up(program: Path, check: str, faults: str, strict: str) -> None:
    with Worker(program=program, TF_SIM_FAULTS=faults, TF_SIM_DEVICES="2") as worker:
        assert worker.run("callbacks", check, TF_STRICT=strict) == "right\n"


@pytest.mark.parametrize("strict", ["0", "1"])
def test_only_the_caller_waits_for_a_word_of_another_thread(program: Path, strict: str) -> None:
    """A stream stands at a word that another thread writes later; this one is in a call that waits for the stream."""
    with Worker(program=program) as worker:
        assert worker.run("words", TF_STRICT=strict) == "right\n"


@pytest.mark.parametrize(
    "check", ["waiting-calls", "loads-beside-functions", "streams-of-a-context-gone", "room-of-each-context"]
)
@pytest.mark.parametrize("strict", ["0", "1"])
def test_calls_that_wait_for_the_gpu_let_functions_end(program: Path, check: str, strict: str) -> None:
    """The driver waits in them; the thread that hears of the functions' ends must not. JAX loads code behind them."""
    with Worker(program=program) as worker:
        assert worker.run("callbacks", check, TF_STRICT=strict) == "right\n"


@pytest.mark.parametrize("strict", ["0", "1"])
def test_what_is_given_back_between_functions_waits_for_nobody(program: Path, strict: str) -> None:
    """The thread that runs functions gives it back, and its answer may come behind what waits for the next function."""
    with Worker(program=program) as worker:
        assert worker.run("callbacks", "graphs-end-between-functions", TF_STRICT=strict) == "right\n"


def test_only_the_caller_waits_for_a_launch(program: Path) -> None:
    """A launch in which the driver waits is asked for its result; what other threads post meanwhile is not."""
    with Worker(program=program) as worker:
        assert worker.run("callbacks", "only-the-caller-waits") == "right\n"


def test_functions_run_while_their_program_sends(program: Path) -> None:
    """The session tells of a function between two frames, not when there are none."""
    with Worker(program=program) as worker:
        assert worker.run("callbacks", "runs-while-its-program-sends") == "right\n"
