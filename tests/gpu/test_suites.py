"""suites.py without a GPU: small shell programs as strangers', the product's workers on the simulated GPU."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import suites
from simulated import installed_product
from suites import Outcome, losses, words_differ

REMOTE = '[ -n "$TENSOR_FUSION_OPERATOR_CONNECTION_INFO" ]'
JUNIT = (
    '<testsuites><testsuite><testcase classname="c" name="good" time="0.5"/><testcase classname="c" name="left_out">'
    "<skipped/></testcase>%s</testsuite></testsuites>"
)


def test_words_that_differ_natively_are_not_compared() -> None:
    assert words_differ([["took", "3", "ms"], ["took", "4", "ms"]], ["took", "9", "ms"]) == ""
    assert "'FAIL', natively 'PASS'" in words_differ([["1", "PASS"], ["2", "PASS"]], ["3", "FAIL"])
    assert words_differ([["PASS"]], ["PASS", "more"]) == "2 words, natively 1"
    assert words_differ([["a"], ["a", "b"]], ["c"]) == ""


def test_a_case_that_fails_natively_is_no_loss() -> None:
    native = [{"s/a": Outcome(True), "s/b": Outcome(True)}, {"s/a": Outcome(True), "s/b": Outcome(False)}]
    passing, lost, _ = losses(native, {"s/b": Outcome(False)})
    assert passing == ["s/a"]
    assert lost == {"s/a": "not run"}


def test_figures_that_one_native_run_printed_are_no_loss() -> None:
    native = {"s/time": Outcome(True, ["took", "3.5", "ms"]), "s/word": Outcome(True, ["3", "PASS"])}
    remote = {"s/time": Outcome(True, ["took", "1.25e-3", "ms"]), "s/word": Outcome(True, ["4", "FAIL"])}
    _, lost, figures = losses([native], remote)
    assert lost == {"s/word": "word 1 is 'FAIL', natively 'PASS'"}
    assert figures == {"s/time": "word 1 is '1.25e-3', natively '3.5'"}
    _, lost, figures = losses([native, native], remote)
    assert set(lost) == {"s/time", "s/word"}
    assert not figures


def test_a_wrong_suite_is_named(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text('[{"name": "x", "comand": "true"}]')
    with pytest.raises(ValueError, match=r"entry 0.*comand"):
        suites.read_suite(tmp_path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")
def test_losses_are_found_on_both_transports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "strangers"
    folder.mkdir()
    bad = '<testcase classname="c" name="bad"><failure message="wrong value 7"/></testcase>'
    good = bad.replace("failure", "system-out")
    report = f"if {REMOTE}; then printf '%s' '{JUNIT % bad}'; else printf '%s' '{JUNIT % good}'; fi"
    entries = [
        {"name": "same", "command": "echo PASS $RANDOM"},
        {"name": "other", "command": f"if {REMOTE}; then echo FAIL; else echo PASS; fi"},
        {"name": "ends", "command": f"! {REMOTE} || {{ echo last >&2; exit 7; }}"},
        {"name": "same.1", "command": "sleep 0.5; echo other words"},
        {"name": "never", "command": "exit 1"},
        {"name": "hangs", "command": f"! {REMOTE} || sleep 60", "timeout": 1},
        {"name": "tests", "command": report + " > {junit}", "jobs": 4},
    ]
    (folder / "suite.json").write_text(json.dumps(entries))
    product = installed_product(tmp_path / "product")
    out = tmp_path / "out"
    code = suites.main([str(folder), "--wheel", str(product), "--out", str(out), "--work", str(tmp_path / "work"),
                        "--gpu", "sim", "--jobs", "4", "--seconds", "100"])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 1
    results = json.loads((out / "results.json").read_text())
    for side in ("tcp", "shmem"):
        lost = results["lost"][side]
        assert set(lost) == {"strangers/other", "strangers/ends", "strangers/hangs", "strangers/tests/c::bad"}
        assert lost["strangers/ends"] == "ended with 7; last"
        assert lost["strangers/tests/c::bad"] == "wrong value 7"
        assert "no end within 1 s" in lost["strangers/hangs"]
        assert results["suites"][f"strangers/{side}"] == {"passes natively": 7, "passes": 3}
    assert "strangers" in printed
    assert (out / "summary.txt").read_text().startswith("suite")


def test_a_side_with_a_secret_reaches_its_worker(tmp_path: Path) -> None:
    folder = tmp_path / "strangers"
    folder.mkdir()
    asks = "import ctypes; n = ctypes.create_string_buffer(64); d = ctypes.CDLL('libcuda.so.1'); "
    asks += "assert d.cuInit(0) == d.cuDeviceGetName(n, 64, 0) == 0; print(n.value)"
    (folder / "suite.json").write_text(json.dumps([{"name": "name", "command": f'{{python}} -c "{asks}"'}]))
    product = installed_product(tmp_path / "product")
    out, work = tmp_path / "out", tmp_path / "work"
    code = suites.main([str(folder), "--wheel", str(product), "--out", str(out), "--work", str(work),
                        "--gpu", "sim", "--sides", "native,native,tls", "--seconds", "60"])  # fmt: skip
    assert code == 0, (out / "summary.txt").read_text()
    log = (work / "logs" / "worker-tls.log").read_text()
    assert "keys: 1 secret" in log  # such a worker takes no plain text
    assert "is served by session" in log
