"""transports.py without a GPU: the product's workers on the simulated GPU, a stand-in for the process with PyTorch.

What matters is that no sample is lost: not by a part that fails, not by a process that ends, not by the time.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "programs"))

import run as runner
import transports
import turn_samples
import turns
from common import Digest
from simulated import installed_product
from turn_samples import Budget, Samples

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")

# Answers as turns.py does. `copies` ends the remote process once; `events` fails everywhere; `load` is slow as long as
# nothing was compiled into the folder that CUDA_CACHE_PATH names.
STAND_IN = """
import json, os, sys
from pathlib import Path
remote = "TENSOR_FUSION_OPERATOR_CONNECTION_INFO" in os.environ
library = os.environ["LD_LIBRARY_PATH"].split(":")[0] + "/libcuda.so.1"
cache, ended = Path(os.environ["CUDA_CACHE_PATH"]), Path(sys.argv[1]).parent / "ended"
def say(**value):
    print(json.dumps({"libraries": [library], **value}), flush=True)
say(imported=True)
for line in sys.stdin:
    part = json.loads(line)["do"]
    if part == "copies" and remote and not ended.exists():
        ended.touch()
        sys.exit("the last words of copies")
    if part == "graph" and not remote:
        sys.exit("never again")
    if part == "events":
        say(error="KeyError: events")
    elif part == "load":
        compiled = (cache / "kernel").exists()
        (cache / "kernel").touch()
        say(metrics={"first_generate_s": 7.0 if compiled else 30.0}, digest="ids")
    else:
        say(metrics={part + "_us": 2.0 if remote else 1.0}, digest="same", raw={part: [1.0, 2.0]})
"""

Outcome = tuple[int, dict[str, Any], str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("transports")
    (folder / "work").mkdir()
    (folder / "stand_in.py").write_text(STAND_IN)
    patch = pytest.MonkeyPatch()
    patch.setattr(transports, "TURNS", folder / "stand_in.py")
    patch.setattr(runner, "prepare_model", lambda state: None)
    product = installed_product(folder / "product")
    words = ["--wheel", str(product), "--out", str(folder / "out"), "--work", str(folder / "work"), "--gpu", "sim"]
    words += ["--pairs", "2", "--sides", "native,shmem"]
    words += ["--parts", "launch_cost,first_use,first_generate,generate,small,copies,events,graph"]
    code = transports.main(words)
    patch.undo()
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "summary.txt"]
    return code, json.loads((out / "results.json").read_text()), (out / "summary.txt").read_text()


def samples(outcome: Outcome, part: str) -> list[tuple[int, str]]:
    return [(answer["turn"], answer["side"]) for answer in outcome[1]["samples"] if answer["part"] == part]


@needs_gcc
@pytest.mark.parametrize("part", ["launch_cost", "first_use", "generate", "small"])
def test_every_turn_is_kept_in_its_order(outcome: Outcome, part: str) -> None:
    assert samples(outcome, part) == [(0, "native"), (0, "shmem"), (1, "shmem"), (1, "native")]


@needs_gcc
def test_single_samples_are_kept(outcome: Outcome) -> None:
    small = [answer for answer in outcome[1]["samples"] if answer["part"] == "small"]
    assert [answer["raw"] for answer in small] == [{"small": [1.0, 2.0]}] * 4
    assert sorted(answer["at_s"] for answer in small) == [answer["at_s"] for answer in small]


@needs_gcc
def test_a_process_that_ends_costs_one_sample(outcome: Outcome) -> None:
    assert samples(outcome, "copies") == [(0, "native"), (1, "shmem"), (1, "native")]
    assert any("copies shmem 0" in error and "the last words" in error for error in outcome[1]["errors"])
    assert any("started again" in note for note in outcome[1]["notes"])


@needs_gcc
def test_a_side_that_ends_again_and_again_is_started_again_once(outcome: Outcome) -> None:
    assert samples(outcome, "graph") == [(0, "shmem"), (1, "shmem")]
    assert len([error for error in outcome[1]["errors"] if error.startswith("graph native")]) == 2
    assert len([note for note in outcome[1]["notes"] if note.startswith("native: its process had ended")]) == 1


@needs_gcc
def test_a_part_that_fails_is_not_ok(outcome: Outcome) -> None:
    code, results, summary = outcome
    assert code == 1
    assert samples(outcome, "events") == []
    assert ["events", "samples", "", "", "", "", "", "none", "NO"] in results["rows"]
    assert "ERROR events native 0: KeyError: events" in summary


@needs_gcc
def test_the_first_process_compiles_and_the_second_does_not(outcome: Outcome) -> None:
    found = [a for a in outcome[1]["samples"] if a["part"] == "first_generate"]
    assert [(a["side"], a["metrics"]) for a in found] == [
        ("native", {"cold_first_generate_s": 30.0}),
        ("shmem", {"cold_first_generate_s": 30.0}),
        ("native", {"warm_first_generate_s": 7.0}),
        ("shmem", {"warm_first_generate_s": 7.0}),
    ]


def test_time_ends_between_turns() -> None:
    budget = Budget(1000.0)
    taken = []
    for turn, side in budget.turns("part", ("native", "shmem"), 5):
        taken.append((turn, side))
        if turn == 1:
            budget.seconds = -1.0
    assert taken == [(0, "native"), (0, "shmem"), (1, "shmem"), (1, "native")]
    assert budget.notes == ["part: stopped after 2 of 5 turns, the time was used up"]


def test_a_part_without_time_is_named(tmp_path: Path) -> None:
    place = SimpleNamespace(options=SimpleNamespace(out=tmp_path, work=tmp_path), close=lambda: None)
    run = transports.Turns(place, ("native",), ("small",), 5, Budget(-1.0))  # type: ignore[arg-type]
    run.attempt("small", lambda: pytest.fail("begun without time"))
    assert run.budget.notes == ["small: not begun, the time was used up"]
    assert "NOTE small: not begun" in (tmp_path / "summary.txt").read_text()
    assert not run.save()


def test_a_figure_that_must_be_reached_must_be_there() -> None:
    found = Samples()
    found.add("small", "native", {"metrics": {"sum_item_us": 10.0}, "digest": "a"}, "")
    lines, good = turn_samples.rows(found, ["small"], turn_samples.QUICK_SIDES)
    assert not good and lines[-1][-1] == "NO"
    found.add("small", "shmem", {"metrics": {"sum_item_us": 12.0}, "digest": "a"}, "")
    assert turn_samples.rows(found, ["small"], turn_samples.QUICK_SIDES)[1]
    found.add("small", "shmem", {"metrics": {"sum_item_us": 12.0}, "digest": "b"}, "", 1)
    assert not turn_samples.rows(found, ["small"], turn_samples.QUICK_SIDES)[1]


def test_every_part_is_one_that_the_program_knows() -> None:
    for part in turn_samples.PARTS:
        if part not in (*turn_samples.C_PARTS, "first_generate", "four"):
            assert callable(getattr(turns.Turns, part)), part
    for bound in turn_samples.BOUNDS:
        assert bound.side in turn_samples.PARTS[bound.part]


class Tensor:
    """As much of a tensor, and of an event, as the parts that time small things touch."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: self

    def item(self) -> float:
        return 3.0

    def tobytes(self) -> bytes:
        return b"bytes"

    def elapsed_time(self, other: object) -> float:
        return 0.5


def test_small_parts_keep_their_samples() -> None:
    timer = turns.Turns.__new__(turns.Turns)
    cuda = SimpleNamespace(Event=lambda **named: Tensor(), synchronize=lambda: None)
    timer.torch, timer.raw = SimpleNamespace(zeros=lambda *a, **n: Tensor(), cuda=cuda), {}
    assert set(timer.events(Digest())) == {"timed_step_us", "elapsed_time_us", "polled_step_us"}
    assert {name: len(values) for name, values in timer.raw.items()} == dict.fromkeys(timer.raw, turns.EVENTS)
    timer.raw = {}
    assert set(timer.small(Digest())) == {"add_us", "sum_item_us"}
    assert len(timer.raw["sum_item_us"]) == turns.SUMS


def test_speed_beside_an_older_wheel_is_paired_by_turn() -> None:
    found = Samples()
    for turn, (now, before) in enumerate([(1.0, 1.1), (2.0, 2.0), (3.0, 2.4)]):
        found.add("small", "tcp", {"metrics": {"add_us": now, "up_gbps": now}, "digest": ""}, "", turn)
        found.add("small", "before-tcp", {"metrics": {"add_us": before, "up_gbps": before}, "digest": ""}, "", turn)
    found.add("small", "tcp", {"metrics": {"add_us": 9.0}, "digest": ""}, "", 3)  # has no partner
    lines, good = turn_samples.paired_rows(found, ("native", "tcp", "before-tcp"))
    assert [line[6:] for line in lines] == [["1.000", "0.800 .. 1.100", "ok"], ["1.000", "0.909 .. 1.250", "ok"]]
    assert good
    for turn in range(3):
        found.add("null_call", "tcp", {"metrics": {"p50_us": 1.2}, "digest": ""}, "", turn)
        found.add("null_call", "before-tcp", {"metrics": {"p50_us": 1.1}, "digest": ""}, "", turn)
    lines, good = turn_samples.paired_rows(found, ("native", "tcp", "before-tcp"))
    assert lines[-1][-1] == "NO"
    assert not good


@needs_gcc
def test_two_wheels_run_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(transports, "TURNS", tmp_path / "stand_in.py")
    now, before = installed_product(tmp_path / "now"), installed_product(tmp_path / "older")
    words = ["--wheel", str(now), "--before", str(before), "--out", str(tmp_path / "out"), "--gpu", "sim"]
    words += ["--work", str(tmp_path / "work"), "--pairs", "2", "--parts", "launch_cost"]
    transports.main(words)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    sides = ["native", "shmem", "tcp", "before-shmem", "before-tcp"]
    assert [a["side"] for a in results["samples"]] == [*sides, *reversed(sides)]
    assert {line[2] for line in results["paired"]} == {"shmem", "tcp"}
