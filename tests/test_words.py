"""What commands say: words as they are for one of something, characters that the terminal can show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stack.harness import clean_environment

from tensor_fusion.cli import bench_report, report
from tensor_fusion.terminal import counted
from tensor_fusion.timeline import Recorded
from tensor_fusion.timeline_worker import Session


def test_a_number_with_its_word() -> None:
    assert [counted(number, "call") for number in (0, 1, 2000)] == ["0 calls", "1 call", "2,000 calls"]
    assert [counted(number, "launch", "launches") for number in (1, 2)] == ["1 launch", "2 launches"]


def test_a_timeline_of_one_call() -> None:
    recorded = Recorded(Path("t.json"), calls=1, frames=1, processes=1)
    recorded.sessions.append(Session(7, 0, None, frames=1, gpu=1, lost=1))
    assert list(recorded.notices()) == [
        "t.json: 1 call and 1 frame of 1 process.",
        "The worker executed 1 frame of them, and its GPU worked 1 time.",
        "Missing of the worker: 1 record, which came faster than could be sent.",
    ]
    recorded = Recorded(Path("t.json"), calls=2, frames=2000, processes=2)
    assert list(recorded.notices()) == ["t.json: 2 calls and 2,000 frames of 2 processes."]


def test_a_census_of_one_round_trip(capsys: pytest.CaptureFixture[str]) -> None:
    counters = {"round_trips": 1, "frames": 1, "blocked_ns": 1000, "bytes_sent": 1, "bytes_received": 1}
    process = {"program": "app", "pid": 7, **counters, "by_function": {}}
    bench_report.census(
        {
            "processes": [process],
            "unsupported": {"cuOne": 1, "cuTwo": 2},
            "damaged": 1,
            "transport": "TCP, loopback",
            "exit_code": 0,
        }
    )
    said = " ".join(capsys.readouterr().err.split())
    assert "app, process 7: 1 round trip in 1 call sent, " in said
    assert "cuOne is not supported and was refused 1 time." in said
    assert "cuTwo is not supported and was refused 2 times." in said
    assert "the statistics of 1 process." in said


DEMO = {
    "devices": ["Simulated"],
    "memory_bytes": 1 << 30,
    "cuda_version": "13.0",
    "simulated": True,
    "transport": "TCP, 127.0.0.1:1",
    "start_seconds": 0.1,
    "results": {"saxpy": True},
    "statistics": {"calls": 1, "frames": 1, "round_trips": 1},
    "launch": {"round_trips": 1, "launches": 1, "launches_per_s": 1.0},
    "bandwidth": {"h2d_gb_per_s": 1.0, "d2h_gb_per_s": 1.0},
}


def test_a_demo_of_one_launch(capsys: pytest.CaptureFixture[str]) -> None:
    report.demo(DEMO)
    said = " ".join(capsys.readouterr().out.split())
    assert " 1 in 1 frame " in said and " 1 in all, 1 for 1 launch " in said


LATIN = {"PYTHONIOENCODING": "latin-1"}
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SAID = """
import sys
from tensor_fusion.cli import main, report
from tensor_fusion.terminal import complain
from test_words import DEMO

def say(**_):
    report.demo(DEMO)
    complain("3 \\u00b5s \\u2013 run \\u2026 \\u00fc")

main.app = say
main.main(["demo"])
"""


@pytest.mark.parametrize(
    ("variables", "line", "dash"),
    [
        (LATIN, "3 µs - run ... ü", "-"),
        (PLAIN_C, "3 us - run ... \\xfc", "-"),
        ({"PYTHONUTF8": "1"}, "3 µs – run … ü", "—"),
    ],
    ids=["latin-1", "C", "UTF-8"],
)
def test_what_a_terminal_cannot_show_is_said_in_other_characters(
    variables: dict[str, str], line: str, dash: str
) -> None:
    env = clean_environment(**variables)
    env["PYTHONPATH"] = f"{Path(__file__).parent}:{Path(__file__).parent / 'gpu'}:{env.get('PYTHONPATH', '')}"
    done = subprocess.run([sys.executable, "-c", SAID], env=env, capture_output=True, timeout=60, check=False)
    encoding = "latin-1" if variables is LATIN else "utf-8"
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode(encoding).rstrip("\n") == line
    assert f" {dash} SIMULATED" in " ".join(done.stdout.decode(encoding).split())
