"""The worker's log over a long life: moved away, too long, on one place; and what SIGHUP means."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from stack.harness import clean_environment
from worker_harness import Worker, command, environment, eventually, fails

from tensor_fusion.abi import native_folder

LINES = """
import ctypes, sys, time
library = ctypes.CDLL(sys.argv[1])
library.tp_log_setup(b"test")
for line in sys.stdin:
    library.tp_log_write(2, b"%s", line.strip().encode())
    print("written", flush=True)
"""


def test_sighup_makes_a_moved_log_anew(tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "moved"
    with Worker(TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        log.rename(moved)
        worker.process.send_signal(signal.SIGHUP)
        assert eventually(log.exists)
        assert eventually(lambda: "SIGHUP" in log.read_text())
        assert worker.client("after").ask("pid")
        assert eventually(lambda: "after@127.0.0.1" in log.read_text())
        assert "after" not in moved.read_text()


def test_lines_of_native_code_follow_the_path(tmp_path: Path) -> None:
    """A session lives for days; it has the file open, which somebody moves away."""
    log, moved = tmp_path / "log", tmp_path / "moved"
    env = clean_environment(TF_ENABLE_LOG="1", TF_LOG_PATH=str(log))
    library = str(native_folder() / "client/libteleport.so.1")
    with subprocess.Popen(
        [sys.executable, "-c", LINES, library], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout

        def write(text: str) -> None:
            assert process.stdin and process.stdout
            process.stdin.write(text + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "written\n"

        write("first")
        log.rename(moved)
        time.sleep(1.1)  # it looks once a second
        write("second")
        log.unlink()
        time.sleep(1.1)
        write("third")
        assert "third" in log.read_text() and "second" not in log.read_text()
        assert "first" in moved.read_text() and "second" not in moved.read_text()
        write("fourth")
        assert log.read_text().count("\n") == 2
        descriptors = [path.readlink() for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert descriptors.count(log) == 1  # and none of the others is left open
        assert moved not in descriptors


def test_a_worker_whose_log_has_no_folder_any_more_serves_on(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with Worker(TF_ENABLE_LOG="1", TF_LOG_PATH=str(folder / "log")) as worker:
        folder.rename(tmp_path / "elsewhere")
        for name in ("first", "second"):
            assert worker.client(name).ask("pid")
        worker.process.send_signal(signal.SIGHUP)
        assert worker.client("third").ask("pid")
        worker.stop()
        assert "The log cannot be written: No such file or directory; lines are missing." in worker.errors
        assert "Traceback" not in worker.errors


def test_a_long_log_is_moved_away(tmp_path: Path) -> None:
    log, before = tmp_path / "log", tmp_path / "log.1"
    before.write_text("of the time before")
    with Worker(TF_ENABLE_LOG="1", TF_LOG_PATH=str(log), TF_LOG_SIZE="1") as worker:
        with log.open("a") as file:
            file.write("x" * 1_100_000 + "\n")
        assert eventually(lambda: before.stat().st_size > 1_000_000 and log.exists() and log.stat().st_size < 1000)
        assert worker.client("after").ask("pid")
        assert eventually(lambda: "after@127.0.0.1" in log.read_text())


def test_size_that_is_no_number_is_a_sentence() -> None:
    code, errors = fails("--gpu", "sim", TF_LOG_SIZE="much")
    assert (code, errors) == (
        2,
        "tensor-fusion-worker: TF_LOG_SIZE is 'much'; use a number of MB, or 0 for no bound.\n",
    )


def test_sessions_write_to_where_the_worker_writes() -> None:
    """By default that is the standard output, with the lines of both in one format."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion.worker", "-p", "0", "--host", "127.0.0.1", "--gpu", "sim"],
        env=clean_environment(TF_ENABLE_LOG="1", TF_LOG_LEVEL="debug"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines: list[str] = []
    while not lines or not lines[-1].startswith("warm "):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    process.terminate()
    rest, errors = process.communicate(timeout=20)
    text = "".join(lines) + rest
    assert " worker[" in text and " session[" in text
    assert [line for line in errors.splitlines() if not line.startswith("NOTICE: ")] == []


# The terminal


def on_terminal() -> tuple[subprocess.Popen[str], int]:
    """A worker whose controlling terminal is one that this test can close."""
    ours, theirs = pty.openpty()

    def take() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command("-p", "0", "--host", "127.0.0.1", "--gpu", "sim"),
        env=environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=take,
    )
    os.close(theirs)
    assert process.stdout and process.stdout.readline().startswith("ready ")
    return process, ours


def test_the_end_of_its_terminal_ends_the_worker() -> None:
    process, terminal = on_terminal()
    os.close(terminal)
    assert process.wait(20) == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_sighup_alone_does_not(terminal: bool) -> None:
    if terminal:
        process, ours = on_terminal()
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0
        os.close(ours)
        return
    with Worker() as worker:
        worker.process.send_signal(signal.SIGHUP)
        assert worker.client().ask("pid")


def shown(sentence: str, columns: int) -> list[str]:
    """A line of our C, as a terminal of that width gets it; 0 columns for one that does not know its width."""
    library = ctypes.CDLL(str(native_folder() / "client" / "libteleport.so.1"))
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        library.tp_log_stderr(theirs)
        library.tp_log_write(4, b"%s", sentence.encode())
        library.tp_log_write(4, b"the-end")
        text = b""
        while not text.endswith(b"the-end\r\n"):
            assert select.select([ours], [], [], 20)[0], text
            text += os.read(ours, 4096)
    finally:
        library.tp_log_stderr(2)
        os.close(ours)
        os.close(theirs)
    lines = text.decode().splitlines()
    return lines[: max(at for at, line in enumerate(lines) if not line.startswith(" "))]  # all before the second's date


@pytest.mark.parametrize("columns", [40, 57, 80, 200])
@pytest.mark.parametrize(
    "sentence",
    [
        "a few words of one line and another " * 8,
        "a " + "long-word" * 24 + " stays whole, so that it can be copied, and " * 3,
        "\u00fcber " * 60,
        "x" * 79 + " y " + "z" * 300 + " end",
        "control\ncharacters\x1b and  two   spaces " * 10,
        "too much for a line " * 200,
        "i " * 1200,
    ],
)
def test_a_terminal_gets_whole_words(sentence: str, columns: int) -> None:
    """In all columns but two, which ^C may have."""
    lines = shown(sentence, columns)
    columns -= 2
    (whole,) = shown(sentence, 0)
    assert len(lines) > 1
    assert " ".join([lines[0], *(line[2:] for line in lines[1:])])[40:] == whole[40:]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert line is lines[0] or line.startswith("  ")
        assert len(line) <= columns or " " not in line[2:], line
        assert not following or len(f"{line} {following.split()[0]}") > columns, (line, following)


def test_a_narrow_terminal_and_a_pipe_get_one_line() -> None:
    sentence = "a few words of one line and another " * 8
    assert len(shown(sentence, 39)) == 1
    program = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).tp_log_write(4, b'%s', sys.argv[2].encode())"
    library = native_folder() / "client" / "libteleport.so.1"
    done = subprocess.run(
        [sys.executable, "-c", program, str(library), sentence], capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith(f": {sentence}\n") and done.stderr.count("\n") == 1


def test_the_worker_s_own_lines_are_broken_as_well() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 50, 0, 0))
    variables = environment(TF_ENABLE_LOG="1", TF_LOG_LEVEL="debug")
    variables.pop("COLUMNS", None)  # it counts for more than the terminal
    arguments = command("--gpu", "sim", "-p", "0", "--host", "127.0.0.1")
    process = subprocess.Popen(arguments, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while b"warm 1" not in text:
            assert select.select([ours], [], [], 20)[0], text
            text += os.read(ours, 4096)
    finally:
        process.terminate()
        process.wait(20)
        os.close(ours)
    lines = text.decode().splitlines()
    assert any(re.match(r"\S+ DEBUG worker", line) for line in lines)
    assert [line for line in lines if len(line) > 50 and " " in line.strip()] == []
