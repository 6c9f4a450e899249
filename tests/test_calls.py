"""Single calls with good and bad arguments (tests/calls): the simulated GPU's answers, and those through the stack.

By default one call of SAMPLE and all that the stack answers by itself; TF_CALLS=all makes every one, in some minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from calls.fuzz import (
    HERE,
    LEFT_OUT,
    Faults,
    all_cases,
    answers_of,
    ask,
    ask_beside,
    by_state,
    compile_calls,
    differences,
    driver_answers,
    either_is_right,
    read_answers,
    read_expected,
    served,
    stands_for,
)
from stack.harness import COMPILER, Worker, whole_stack

from tensor_fusion.abi import native_folder

pytestmark = whole_stack
EVERY = os.environ.get("TF_CALLS") == "all"
SAMPLE = 23  # a prime, so that the sample is spread over functions and arguments
EXPECTED = HERE / "simulated.expect"
# By itself: without a session's help, and so in no time.
QUICK = ("before", "destroyed")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER
    return compile_calls(tmp_path_factory.mktemp("calls"), COMPILER)


@pytest.fixture(scope="module")
def cases() -> list[str]:
    return [c for i, c in enumerate(all_cases()) if EVERY or i % SAMPLE == 0 or c.startswith(QUICK)]


def generated(library: Path) -> set[str]:
    """What stands for another function, whose answers are compared, or is refused: weak definitions."""
    nm = shutil.which("nm")
    assert nm, "the compiler comes with it"
    listed = subprocess.run([nm, "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    rows = [line.split()[1:] for line in listed.stdout.splitlines()]
    weak = {name for kind, name in rows if kind == "W"}
    assert len(weak) > 150
    return weak


@pytest.fixture(scope="module")
def driver() -> str:
    return str(native_folder() / "lib/libtf-simgpu.so")


def asked(binary: Path, driver: str, cases: Sequence[str]) -> dict[str, str]:
    """What the simulated GPU says of its own."""
    weak = generated(Path(driver))
    answers = answers_of(by_state(binary, driver, cases))
    return {case: "missing" if case.split()[1] in weak else answer for case, answer in answers.items()}


@pytest.fixture(scope="module")
def simulated(binary: Path, driver: str, cases: Sequence[str]) -> dict[str, str]:
    return asked(binary, driver, cases)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_answers_through_the_stack(
    binary: Path, driver: str, cases: Sequence[str], simulated: dict[str, str], transport: str
) -> None:
    """As the simulated GPU's own, but for what is listed with its reason; nothing hangs or loses the worker."""
    expected = read_expected(EXPECTED)
    with Worker(transport=transport) as worker:
        answers = answers_of(by_state(binary, "libcuda.so.1", cases, worker.env))
        assert list(answers) == list(simulated)
        found = differences(simulated, answers)
        # Of a call with two faults that the list does not have: what each of them gives, which the sample may lack.
        unknown = [case for key in found if key not in expected for case in found[key]]
        faults = Faults()
        alone = list(dict.fromkeys(one for case in unknown for one in faults.one_by_one(case) if one not in simulated))
        judge = simulated | asked(binary, driver, alone)
        answers |= answers_of(by_state(binary, "libcuda.so.1", alone, worker.env))
    found = {key: [c for c in same if c in simulated] for key, same in differences(judge, answers).items()}
    unknown = [f"{key}  {found[key][0]}" for key in found if found[key] and key not in expected]
    assert not unknown, "\n".join(unknown[:40])
    lost = [f"{case} = {answer}" for case, answer in answers.items() if answer.startswith(("46", "hangs"))]
    assert not lost, "\n".join(lost[:40])


def test_the_simulated_gpu_answers_as_the_driver(binary: Path, driver: str, tmp_path: Path) -> None:
    """But for what is listed with its reason: every call that a driver was asked, in processes as there."""
    judge, expected = driver_answers(), read_expected(HERE / "driver.expect")
    assert len(judge) > 10_000
    assert ask_beside(binary, driver, list(judge), tmp_path / "answers") == []
    weak, answers = generated(Path(driver)), read_answers(tmp_path / "answers")
    found = differences({case: answer for case, answer in judge.items() if case.split()[1] not in weak}, answers)
    unknown = [f"{key}  {cases[0]}" for key, cases in found.items() if key not in expected]
    assert not unknown, "\n".join(unknown[:40])
    assert not set(expected) - set(found), "these lines are about nothing any more"


def known_differences() -> set[str]:
    """Those of other names of the client, and of what each stands for: how the simulated GPU differs from the driver,
    and the stack from the simulated GPU."""
    known = {**read_expected(HERE / "driver.expect"), **read_expected(EXPECTED)}
    names: dict[str, list[str]] = {}
    for name, targets in stands_for().items():
        for target in targets:
            names.setdefault(target, []).append(name)
    found = set()
    for key in known:
        state, function, answers = key.split(" ", 2)
        found |= {f"{state} {name} {answers}" for name in names.get(function, [])}
    return found | set(read_expected(HERE / "names.expect"))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_other_names_of_the_client_answer_as_the_driver(
    binary: Path, driver: str, tmp_path: Path, transport: str
) -> None:
    """Per-thread, older and alias names, and what the client answers alone: the simulated GPU is no judge of them."""
    judge, weak, out = driver_answers(), generated(Path(driver)), tmp_path / "answers"
    cases = [case for case in judge if case.split()[1] in weak]
    assert len(cases) > 20_000
    cases = [case for i, case in enumerate(cases) if EVERY or i % SAMPLE == 0]
    expected = known_differences()
    with Worker(transport=transport) as worker:

        def found() -> dict[str, list[str]]:
            answers = read_answers(out)
            return differences({case: judge[case] for case in cases}, answers, judge)

        assert ask_beside(binary, "libcuda.so.1", cases, out, worker.env) == []
        unknown = [case for key, same in found().items() if key not in expected for case in same]
        faults = Faults()
        alone = list(dict.fromkeys(one for case in unknown for one in faults.one_by_one(case)))
        assert ask_beside(binary, "libcuda.so.1", alone, out, worker.env) == []
        last = found()
    unknown = [f"{key}  {same[0]}" for key, same in last.items() if key not in expected]
    assert not unknown, "\n".join(unknown[:40])
    if EVERY:
        stale = set(read_expected(HERE / "names.expect")) - set(last)
        assert not stale, f"these lines are about nothing any more: {sorted(stale)}"


# One of each kind in which a name of the client once answered otherwise than the driver.
WRONG_ONCE = (
    "current cuCheckpointProcessLock 1 Ob256",
    "none cuCheckpointProcessRestore -1 Ob256",
    "before cuCoredumpGetAttribute 5 M:host Oi8",
    "none cuCoredumpSetAttribute 2 M:host 0",
    "current cuCoredumpSetAttributeGlobal 3 0 Oi8",
    "current cuLogsDumpToMemory Op8 Ob256 Oi8 0",
    "none cuLogsDumpToMemory 0 Ob256 Oi8 -1",
    "current cuMemHostRegister M:host 4096 -1",
    "capture cuMemPrefetchBatchAsync Op8 Oi8 0 Ob256 Oi8 0 1 H:stream",
    "none cuMemDiscardBatchAsync Op8 Oi8 0 0 1",
    "none cuMemDiscardAndPrefetchBatchAsync Op8 Oi8 0 Ob256 Oi8 0 0 0",
    "destroyed cuMemcpyBatchAsync_v2_ptsz Op8 Op8 Oi8 0 Ob256 Oi8 0 0",
    "none cuMemcpy3DBatchAsync_v2_ptsz 0 Ob256 0 0",
)


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_names_that_once_answered_otherwise(binary: Path, transport: str) -> None:
    with Worker(transport=transport) as worker:
        answers = answers_of(ask(binary, "libcuda.so.1", WRONG_ONCE, worker.env))
    judge = driver_answers()
    assert answers == {case: judge[case] for case in WRONG_ONCE}


WRAPS = (
    "current cuGraphAddEmptyNode Op8 H:graph S:8(0.8=H:kernel_node) -1",
    "current cuGraphAddEmptyNode Op8 H:graph S:8(0.8=H:kernel_node) 0x2000000000000000",
    "current cuGraphAddDependencies H:graph S:8(0.8=H:kernel_node) S:8(0.8=H:memset_node) -1",
    "current cuStreamBeginCaptureToGraph H:stream H:graph S:8(0.8=H:kernel_node) 0 -1 1",
    "current cuGraphAddKernelNode_v2 Op8 H:graph S:8(0.8=H:kernel_node) -1 "
    "S:72(0.8=H:function;8.4=1;12.4=1;16.4=1;20.4=1;24.4=1;28.4=1;40.8=M:params)",
)


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_a_count_that_no_frame_holds_is_refused(binary: Path, transport: str) -> None:
    """Its size in bytes wraps: the frame was cut short, and the worker ended the client."""
    with Worker(transport=transport) as worker:
        answers = ask(binary, "libcuda.so.1", WRAPS, worker.env)
    assert [answer.partition(" = ")[2].split()[0] for answer in answers] == ["1"] * len(WRAPS)


GOOD = "current cuStreamQuery H:stream"
HANGS = "current cuStreamWaitValue32_v2 H:stream H:device 1 0"  # a word that nobody writes
CRASHES = "current cuMemcpy 16 H:device+8192 64"


def test_a_call_that_hangs_or_crashes_says_so(binary: Path, driver: str) -> None:
    """And the others are asked."""
    answers = ask(binary, driver, [GOOD, HANGS, CRASHES, GOOD], seconds=1)
    assert answers == [f"{GOOD} = 0", f"{HANGS} = 0 then hangs", f"{CRASHES} = crashes", f"{GOOD} = 0"]


def test_a_run_goes_on_where_it_ended(binary: Path, driver: str, tmp_path: Path) -> None:
    """Answers are written as they come; who is ended while a call hangs asks that one again, and none before it."""
    out = tmp_path / "answers"
    cases = [GOOD, "none cuStreamQuery H:stream", HANGS, "current cuCtxGetDevice Oi4"]
    assert ask_beside(binary, driver, cases, out, seconds=4, case_seconds=60) == []
    began = out.read_text()
    assert set(read_answers(out)) == set(cases[:2])
    assert ask_beside(binary, driver, cases, out, seconds=100, case_seconds=1) == []
    assert out.read_text().startswith(began)
    known = read_answers(out)
    assert (set(known), known[HANGS], len(out.read_text().splitlines())) == (set(cases), "0 then hangs", len(cases))


def test_a_process_survives_a_call_that_crashes(binary: Path, driver: str, tmp_path: Path) -> None:
    """What was asked behind it gets the answers of a process of its own."""
    cases = [c for c in all_cases("cuCtxGet") if c.startswith("current")]
    cases = [CRASHES, *cases[:20], HANGS, *cases[20:]]
    out = tmp_path / "answers"
    assert ask_beside(binary, driver, cases, out, case_seconds=1) == []
    assert read_answers(out) == answers_of(ask(binary, driver, cases, seconds=1))
    assert read_answers(out)[CRASHES] == "crashes"


def test_every_served_function_is_asked() -> None:
    asked = {case.split()[1] for case in all_cases()}
    assert set(served()) - asked == set(LEFT_OUT)
    assert len(all_cases()) > 75_000


def test_an_expected_difference_needs_a_verdict_and_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "expect"
    for wrong in ("", " # because", " # ours: ", " # nobody: because"):
        path.write_text(f"current cuInit = 0 | 1{wrong}\n")
        with pytest.raises(ValueError, match="expect:1: an expected difference needs"):
            read_expected(path)
    path.write_text("# heading\ncurrent cuInit = 0 | 1 # not asked: because\n")
    assert read_expected(path) == {"current cuInit = 0 | 1": "not asked: because"}


def test_a_call_with_two_faults_may_be_refused_for_either() -> None:
    good, one, two = "H:stream", "none cuStreamQuery D:stream", "current cuStreamQuery D:stream"
    assert Faults().one_by_one(one) == [f"none cuStreamQuery {good}", two]
    assert Faults().one_by_one(f"current cuStreamQuery {good}") == []
    assert either_is_right("201 -", "400 -", {"400 -", "0 1"})
    assert not either_is_right("201 -", "400 -", {"0 1"})  # nobody says 400 to any of its faults
    assert not either_is_right("201 -", "400 set", {"400 -"})  # an output was written
    assert not either_is_right("0", "400", {"400"})
    assert not either_is_right("400", "0", {"0"})
    assert not either_is_right("900 (capture 0, 2)", "1", {"1"})  # one of them breaks the capture
    judge = {one: "201", f"none cuStreamQuery {good}": "0", two: "400"}
    assert differences(judge, judge | {one: "400"}) == {}
    assert list(differences(judge, judge | {one: "1"})) == ["none cuStreamQuery = 201 | 1"]
    assert list(differences({one: "201"}, {one: "400"})) == ["none cuStreamQuery = 201 | 400"]
