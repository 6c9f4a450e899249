"""bounds.py on the simulated GPU: every part gives rows, what is not there is said, and what is wrong is noticed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bounds
import suite
from simulated import installed_product

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")

Outcome = tuple[int, dict[str, Any], str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("bounds")
    product = installed_product(folder / "product")
    words = ["--wheel", str(product), "--out", str(folder / "out"), "--work", str(folder / "work"), "--gpu", "sim"]
    code = bounds.main([*words, "--quick", "--seconds", "100", "--most-mib", "16"])
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "summary.txt"]
    return code, json.loads((out / "results.json").read_text()), (out / "summary.txt").read_text()


@needs_gcc
def test_every_part_gives_rows_of_samples(outcome: Outcome) -> None:
    code, results, summary = outcome
    assert code == 0, summary[-3000:]
    assert {row["part"] for row in results["rows"]} == set(bounds.PARTS)
    for row in results["rows"]:
        lengths = {len(values) for values in row["ns"].values()}
        assert len(lengths) == 1 and lengths.pop() >= 2, row
        assert row["wrong"] == 0, row["variant"]


@needs_gcc
def test_what_is_not_there_is_said_by_name(outcome: Outcome) -> None:
    _, results, summary = outcome
    for name in ("own store, word", "own store of both"):
        assert any(sentence.startswith(f"readback {name}: not there") for sentence in results["absent"])
        assert name not in {row["variant"] for row in results["rows"]}
        assert f"readback {name}: not there" in summary
    memory = {row["source"] for row in results["rows"] if row["part"] == "copies"}
    absent = {sentence.split()[1].rstrip(":") for sentence in results["absent"] if sentence.startswith("copies ")}
    assert memory | absent >= {"hostalloc", "shm", "shm_large", "shm_thp", "memfd_thp", "memfd_hugetlb"}


@needs_gcc
def test_both_sides_of_the_stack_take_turns(outcome: Outcome) -> None:
    rows = [row for row in outcome[1]["rows"] if row["part"] == "stack"]
    turns = {(row["turn"], row["side"]) for row in rows}
    assert turns == {(0, "native"), (1, "shmem"), (2, "shmem"), (3, "native")}
    steps = {side: [r["variant"] for r in rows if r["side"] == side] for side in ("native", "shmem")}
    assert sorted(steps["native"]) == sorted(steps["shmem"])


def row(wrong: int, variant: str = "copy, sync") -> str:
    return json.dumps({"row": {"part": "readback", "variant": variant, "wrong": wrong, "ns": {"total": [1, 2]}}})


def test_wrong_values_and_missing_ends_are_noticed() -> None:
    found = bounds.Found()
    assert found.add(row(0) + "\n" + row(2)[:-20], "native", 0) is None
    assert len(found.rows) == 1 and not found.wrong()
    assert found.add(row(2) + '\n{"end": "x", "libraries": []}', "native", 0)
    assert found.wrong() == ["readback native copy, sync: 2 values were not the ones sent"]


def test_a_series_of_one_sample_or_none_has_a_table() -> None:
    assert bounds.quartiles([7.0]) == (7.0, 7.0, 7.0)
    empty = {"stream": "own", "mode": "mixed", "bytes": 4, "variant": "copy, sync", "wrong": 0, "ns": {}}
    assert "copy, sync" in bounds.readback_tables([empty])[0]
    assert bounds.calls_tables([{"variant": "x", "ns": {}}]) == []


@pytest.mark.parametrize("target", [".version 6.0\n.target sm_52\n", ".version 6.4\n.target sm_75\n"])
def test_the_own_kernels_compile(target: str, tmp_path: Path) -> None:
    text = (suite.PROGRAMS_FOLDER / "bounds_readback.c").read_text()
    assert target.replace("\n", "\\n") in text
    literals = re.findall(r'^    "((?:[^"\\]|\\.)*)";?$', text[text.index("store_text[] =") :], re.M)
    body = "".join(literals).encode().decode("unicode_escape")
    assert body.count(".visible .entry") == 2
    (tmp_path / "store.ptx").write_text(target + body)
    command = ["ptxas", "--gpu-name", "sm_90", str(tmp_path / "store.ptx"), "-o", str(tmp_path / "store.cubin")]
    subprocess.run(command, check=True)
