"""The GPU run's own machinery, proved without a GPU: a wheel made here, a worker that only says `ready`, toy programs.

What matters is that the run can fail: a difference, a hang, a crash, a missed figure and the wrong driver library must
each turn into a row that is not ok, while the other rows stand.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run as runner
import suite
from compare import answers, read_expectations
from harness import Metric, Program, alternating, run_process

WORKER = """
import os, subprocess, sys, time
def main():
    subprocess.Popen([sys.executable, "-c", "import os, time; os.setsid(); time.sleep(601)"])
    time.sleep(0.3)
    print("ready on port", sys.argv[sys.argv.index("-p") + 1], flush=True)
    time.sleep(600)
"""
TOOL = """
import os, sys
from pathlib import Path
def main():
    folder = Path(__file__).parent / "lib"
    if sys.argv[1] == "lib-path":
        print(folder)
        return
    env = dict(os.environ, TENSOR_FUSION_OPERATOR_CONNECTION_INFO=sys.argv[3], LD_LIBRARY_PATH=str(folder))
    os.execvpe(sys.argv[5], sys.argv[5:], env)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / "tensor_fusion-0.0.1-py3-none-any.whl"
    info = "tensor_fusion-0.0.1.dist-info"
    entries = {
        "fake_fusion/__init__.py": "",
        "fake_fusion/worker.py": WORKER,
        "fake_fusion/tool.py": TOOL,
        "fake_fusion/lib/libcuda.so.1": "",
        "fake_fusion/lib/libnvidia-ml.so.1": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tensor-fusion\nVersion: 0.0.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntensor-fusion = fake_fusion.tool:main\n"
        "tensor-fusion-worker = fake_fusion.worker:main\n",
    }
    record = "".join(f"{name},,\n" for name in entries) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**entries, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def script(body: str) -> tuple[str, ...]:
    """A program that knows its side; `line(digest, **metrics)` prints the result as the real ones do."""
    prelude = """
import json, os, sys, time
remote = "TENSOR_FUSION_OPERATOR_CONNECTION_INFO" in os.environ
ours = os.environ.get("LD_LIBRARY_PATH", "").split(":")[0] + "/libcuda.so.1"
library = ours if remote else "/usr/lib/libcuda.so.1"
def line(digest, libraries=None, **metrics):
    print(json.dumps({"digest": digest, "metrics": metrics, "libraries": libraries or [library]}))
"""
    # Braces are the runner's place-holders.
    return ("{python}", "-c", (prelude + body).replace("{", "{{").replace("}", "}}"))


PROGRAMS = (
    Program("same", script("line('abc')")),
    Program("by_run", script("line('abc')"), inject="run"),
    Program("differs", script("line('remote' if remote else 'native')")),
    Program("wrong_driver", script("line('abc', ['/usr/lib/libcuda.so.1'])")),
    Program("crashes", script("sys.stderr.write('the last words\\n'); sys.exit(9 if remote else line('abc'))")),
    Program(
        "hangs", script("import faulthandler; faulthandler.enable()\nif remote: time.sleep(60)\nline('a')"), timeout_s=2
    ),
    Program("many_gpus", script("sys.exit(1)"), gpus=1000),
    Program("fast", script("line('a', t=1.0)"), timed=True, metrics=(Metric("t", "s", "ratio_max", 1.1),)),
    Program("slow", script("line('a', t=9.0 if remote else 1.0)"), timed=True, metrics=(Metric("t", "s", "max", 5.0),)),
    Program("absent", script("line('a')"), timed=True, metrics=(Metric("t", "s", "max", 5.0),)),
    Program("text", script("print('a = 1'); print('b =', 2 if remote else 3); line('')"), kind="text"),
    Program(
        "checks", script("print(json.dumps({'checks': [{'name': 'x', 'ok': False, 'detail': 'y'}]}))"), kind="checks"
    ),
)


@pytest.fixture(scope="module")
def outcome(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    patch.setattr(suite, "programs", lambda: PROGRAMS)
    for name in [name for name in os.environ if name.startswith(("TF_", "TENSOR_FUSION_"))]:
        patch.delenv(name)
    arguments = ["--wheel", str(wheel), "--out", str(folder / "out"), "--work", str(folder / "work"), "--pairs", "2"]
    code = runner.main(arguments)
    patch.undo()
    return code, json.loads((folder / "out" / "results.json").read_text()), folder


def rows(outcome: tuple[int, dict[str, Any], Path], program: str) -> list[dict[str, Any]]:
    return [row for row in outcome[1]["rows"] if row["program"] == program]


def test_what_needs_more_gpus_is_left_out_by_name(outcome: tuple[int, dict[str, Any], Path]) -> None:
    (row,) = rows(outcome, "many_gpus")
    assert row["ok"]
    assert row["note"].startswith("left out: it needs 1000 GPUs")


@pytest.mark.parametrize("program", ["same", "by_run", "fast"])
def test_what_is_well_is_ok(outcome: tuple[int, dict[str, Any], Path], program: str) -> None:
    assert rows(outcome, program)
    assert all(row["ok"] for row in rows(outcome, program)), rows(outcome, program)


@pytest.mark.parametrize("program", ["differs", "wrong_driver", "crashes", "hangs", "slow", "absent", "text", "checks"])
def test_what_is_wrong_is_not_ok(outcome: tuple[int, dict[str, Any], Path], program: str) -> None:
    assert outcome[0] == 1
    assert rows(outcome, program)
    assert not all(row["ok"] for row in rows(outcome, program)), rows(outcome, program)


def test_last_words_are_in_the_summary(outcome: tuple[int, dict[str, Any], Path]) -> None:
    assert "the last words" in (outcome[2] / "out" / "summary.txt").read_text()


def test_a_hang_leaves_the_stacks(outcome: tuple[int, dict[str, Any], Path]) -> None:
    assert "most recent call first" in (outcome[2] / "work" / "logs" / "hangs-0-remote.err").read_text()


def test_sides_alternate_and_are_all_kept(outcome: tuple[int, dict[str, Any], Path]) -> None:
    sides = [sample["side"] for sample in outcome[1]["samples"] if sample["program"] == "fast"]
    assert sides == ["native", "remote", "remote", "native"]
    assert alternating(3) == ["native", "remote", "remote", "native", "native", "remote"]


def commands() -> list[str]:
    """Command lines of every process but this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return found


def test_nothing_is_left_running(outcome: tuple[int, dict[str, Any], Path]) -> None:
    # The worker's own child has left the process group, as a session may.
    assert not [
        command for command in commands() if str(outcome[2]) in command or "os.setsid(); time.sleep(601)" in command
    ]


def test_a_timeout_ends_the_children_too(tmp_path: Path) -> None:
    body = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(77)']);"
    begun = time.monotonic()
    done = run_process([sys.executable, "-c", body + "time.sleep(77)"], dict(os.environ), 1.0, tmp_path / "log")
    assert done.timed_out
    assert time.monotonic() - begun < 20
    assert not [command for command in commands() if command.endswith("time; time.sleep(77)\0")]


def test_a_figure_that_is_missing_never_suffices() -> None:
    assert not Metric("x", "s", "max", 5.0).reached(1.0, None)
    assert not Metric("x", "s", "ratio_max", 5.0).reached(None, 1.0)
    assert Metric("x", "s", "ratio_min", 0.95).reached(100.0, 95.0)
    assert not Metric("x", "s", "ratio_min", 0.95).reached(100.0, 94.9)


def test_expectations_need_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "list.expect"
    path.write_text("# a comment\nmemory/managed # not yet\n")
    assert read_expectations(path) == {"memory/managed": "not yet"}
    path.write_text("memory/managed\n")
    with pytest.raises(ValueError, match="reason"):
        read_expectations(path)


def test_expectations_of_one_transport(tmp_path: Path) -> None:
    path = tmp_path / "list.expect"
    path.write_text("tcp: memory/pinned: value # no segment\nmemory/pinned: value # both\nshmem: a # b\n")
    assert read_expectations(path, "shmem") == {"memory/pinned: value": "both", "a": "b"}
    assert list(read_expectations(path, "tcp")) == ["memory/pinned: value"]


def test_answers_of_a_question_asked_twice_are_both_kept() -> None:
    assert answers("a = 1\na = 2\nnoise\n{}") == {"a": "1", "a (2)": "2"}


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran there is told all the same, but for the commit."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(suite, "REPOSITORY", Path("/nowhere"))
    assert runner.machine()["commit"] == "unknown"
