"""single_calls.py without a GPU: the simulated GPU in the driver's place, the product's workers on it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import single_calls
from simulated import installed_product


def test_rows_count_answers_and_differences() -> None:
    cases = ["none cuInit 1", "none cuInit 2", "none cuCtxSynchronize", "current cuInit 1"]
    native = {"none cuInit 1": "201", "none cuInit 2": "crashes", "current cuInit 1": "0 then hangs"}
    tcp = {"none cuInit 1": "1", "none cuInit 2": "0", "none cuCtxSynchronize": "0"}
    rows = {row[0]: row[1:] for row in single_calls.state_rows(cases, {"native": native, "tcp": tcp})}
    assert rows["none"] == ["3", "2", "1", "0", "3", "1"]
    assert rows["current"] == ["1", "1", "0", "0", "0", "0"]
    assert rows["all"] == ["4", "3", "1", "0", "3", "1"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")
def test_a_run_ends_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--wheel", str(installed_product(tmp_path / "product")), "--out", str(tmp_path / "out"), "--work",
             str(tmp_path / "work"), "--gpu", "sim", "--jobs", "2", "--only", "cuDeviceGetName"]  # fmt: skip
    assert single_calls.main(words) == 0
    calls = len((tmp_path / "out/native.txt").read_text().splitlines())
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].split() == ["all", *[str(calls)] * 2, "0", "0", str(calls), "0", str(calls), "0"]
    one = (tmp_path / "out/tcp.txt").read_text().splitlines()
    changed = [line.rpartition(" = ")[0] + " = 999" for line in one[:1]]
    (tmp_path / "out/tcp.txt").write_text("\n".join([*changed, *one[2:]]) + "\n")
    assert single_calls.main(words) == 1
    assert len((tmp_path / "out/tcp.txt").read_text().splitlines()) == calls
    assert "| 999  1 calls" in capsys.readouterr().out
