"""What a command shows while it takes long: how far it is and how long it still takes, on a terminal and in a pipe."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from service import service, silent
from test_cli import in_terminal, without_colours
from worker_harness import environment, eventually

from tensor_fusion.abi import native_folder
from tensor_fusion.bench.compare import Remaining
from tensor_fusion.cli.progress import duration, fitted
from tensor_fusion.client.files import client_folder
from tensor_fusion.config import CONNECTION_URL

BENCH = ["bench", "--gpu", "sim", "--quick", "--pairs", "2", "--only", "null,launch"]
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "1 s"),
        (0.2, "1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (95, "1 min 35 s"),
        (1234, "20 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_that_is_too_long_loses_words_not_letters() -> None:
    what = "doctor: waiting for an answer of http://operator.example/a/b/c"
    assert fitted(what, ", for up to 8 s more", 200) == f"{what}, for up to 8 s more"
    assert fitted(what, ", for up to 8 s more", 60) == "doctor: waiting for an answer of ..., for up to 8 s more"
    assert fitted(what, ", for up to 8 s more", 40) == "doctor: waiting ..., for up to 8 s more"


def test_what_remains_is_known_from_what_was_measured() -> None:
    remaining = Remaining(["a", "b"], ["native", "remote"], pairs=2)
    assert remaining.seconds() is None
    remaining.took("a", "native", 4.0)
    assert remaining.seconds() == 7 * 4.0
    remaining.took("b", "native", 1.0)
    assert remaining.seconds() == 1 * 4.0 + 2 * 4.0 + 1 * 1.0 + 2 * 1.0
    for group, side in (("a", "remote"), ("b", "remote"), ("a", "native"), ("b", "native"), ("a", "remote")):
        remaining.took(group, side, 2.0)
    assert remaining.seconds() == 2.0
    remaining.took("b", "remote", 2.0)
    assert remaining.seconds() == 0


def written_anew(lines: list[str]) -> list[str]:
    """What stood in the line at the foot, one after the other."""
    return [
        part for line in lines for part in re.split(r"\r|\x1b\[[0-9]*[A-HJKl]|\x1b\[\?25[hl]", without_colours(line))
    ]


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, PLAIN_C], ids=["plain", "no colour", "LANG=C"])
def test_bench_on_a_terminal(variables: dict[str, str]) -> None:
    lines = in_terminal(native_folder(), 80, *BENCH, **variables)
    parts = [part for part in written_anew(lines) if part.startswith("bench: ")]
    steps = [part for part in parts if part.startswith("bench: pair ")]
    whole = re.compile(r"bench: pair [12] of 2: (null|launch), (native|remote), about \d+ s left")
    assert any(whole.fullmatch(step) for step in steps), parts
    assert all(part.isascii() and len(part) <= 80 for part in parts), parts
    # It is gone at the end, and the table is there.
    after = "\n".join(written_anew(lines)).rpartition("bench: pair")[2]
    assert "Results: equal bit for bit" in after


def test_bench_in_a_pipe_has_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tensor_fusion", *BENCH],
        env=environment(TF_NATIVE_DIR=str(native_folder()), FORCE_COLOR="1"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("bench: pair")]
    assert len(told) == 8 and told[0] == "bench: pair 1 of 2: launch, native"
    assert all(re.search(r", about \d+ s left$", line) for line in told[1:])
    assert "\x1b" not in done.stderr and "bench:" not in done.stdout


def asking(port: int, **streams: int) -> subprocess.Popen[bytes]:
    variables = {CONNECTION_URL: f"http://127.0.0.1:{port}/x", "LD_LIBRARY_PATH": str(client_folder())}
    env = environment(TF_NATIVE_DIR=str(native_folder()), TERM="xterm", **variables)
    env.pop("COLUMNS", None)
    words = [sys.executable, "-m", "tensor_fusion", "doctor"]
    return subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, **streams)  # type: ignore[call-overload,no-any-return]


def test_doctor_says_how_long_it_waits_and_ctrl_c_ends_it() -> None:
    """Also what it started: only the command gets the signal here, as of kill -INT."""
    ours, theirs = pty.openpty()
    with service(silent) as port:
        process = asking(port, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = b""
        until = time.monotonic() + 20
        while b" s more" not in seen and time.monotonic() < until:
            seen += os.read(ours, 4096)
        assert f"doctor: waiting for an answer of 127.0.0.1:{port}, for up to ".encode() in seen
        children = psutil.Process(process.pid).children()
        assert children
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(10) == 130
        assert time.monotonic() - begun < 2
        assert eventually(lambda: not any(child.is_running() for child in children))
        rest = os.read(ours, 4096)
    os.close(ours)
    assert b"Traceback" not in seen + rest


def test_doctor_in_a_pipe_says_nothing_of_waiting(tmp_path: Path) -> None:
    with service(silent) as port:
        with (tmp_path / "output").open("wb") as file:
            process = asking(port, stdout=file.fileno(), stderr=file.fileno())
        assert process.wait(30) == 1
    text = (tmp_path / "output").read_text()
    assert "waiting for" not in text and "\x1b" not in text
    assert "the client would go on waiting, 8 s are over here" in text


@pytest.mark.deep
def test_the_table_fits_a_terminal() -> None:
    def table(columns: int, groups: str) -> tuple[list[str], list[str]]:
        words = ["bench", "--gpu", "sim", "--quick", "--pairs", "2", "--only", groups]
        lines = [without_colours(line) for line in in_terminal(native_folder(), columns, *words)]
        return lines, [line for line in lines if line.startswith(("group ", "null ", "launch "))]

    _, wide = table(400, "null,launch")
    everything, narrow = table(80, "null,launch,copy")
    assert all(word in wide[0] for word in ("spread", "p99.9", "ratio", "trips"))
    assert len(narrow) == len(wide) == 3
    assert "ratio" in narrow[0] and "p99.9" not in narrow[0]
    assert all(len(line) <= 80 for line in narrow), narrow
    assert any(line.startswith("(Left out, for 80 columns: p99.9") for line in everything)
    copies = [line for line in everything if re.search(r"^ *([0-9]+ (B|KiB|MiB) +|size +unit)", line)]
    assert len(copies) > 20 and all(len(line) <= 80 for line in copies), copies
    assert sum(line.startswith("Copies: native / remote") for line in everything) > 1
