"""The commands at bad moments: Ctrl-C while they are being loaded, no descriptors left. Never a traceback."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from stack.harness import clean_environment

from tensor_fusion import terminal

# Interrupts the process when it first looks for a module of that name.
HOOK = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
WORKER = ["tensor_fusion.worker", "-p", "0", "--host", "127.0.0.1", "--gpu", "sim"]


def run(words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(HOOK)
    env = clean_environment(**variables)
    env["PYTHONPATH"] = f"{folder}:{env.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "-m", *words], env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (WORKER, "asyncio"),
        (WORKER, "ctypes"),
        (WORKER, "tensor_fusion.worker.options"),
        (WORKER, "tensor_fusion.worker.supervisor"),
        (["tensor_fusion", "config"], "typer"),
        (["tensor_fusion", "config"], "rich"),
        (["tensor_fusion", "config"], "tensor_fusion.cli.report"),
        (["tensor_fusion", "doctor"], "tensor_fusion.client.doctor"),
    ],
)
def test_ctrl_c_while_modules_are_loaded(words: list[str], module: str, tmp_path: Path) -> None:
    done = run(words, tmp_path, INTERRUPT_AT=module)
    assert done.returncode in (-signal.SIGINT, 130), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    """As of a command that a script starts with an & behind it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = run(["tensor_fusion", "config"], tmp_path, INTERRUPT_AT="typer")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["doctor"], ["demo", "--gpu", "sim"]], ids=" ".join)
def test_few_descriptors_are_a_sentence_of_a_command_too(words: list[str]) -> None:
    """How many a command needs depends on the Python: down to where Python itself does not start."""
    refused = 0
    for most in range(14, 4, -1):
        done = subprocess.run(
            [sys.executable, "-m", "tensor_fusion", *words],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most, most)),
        )
        assert "Traceback" not in done.stderr, (most, done.stderr)
        if "There are too few descriptors (Too many open files; ulimit -n allows" in done.stderr:
            assert done.returncode == 1
            refused += 1
    assert refused


@pytest.mark.parametrize("most", range(6, 16))
def test_few_descriptors_are_a_sentence(most: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    process = subprocess.Popen(
        [sys.executable, "-m", *WORKER],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )
    assert process.stdout and process.stderr
    ready = process.stdout.readline()
    process.terminate()
    _, errors = process.communicate(timeout=20)
    said = [line for line in errors.splitlines() if not line.startswith("NOTICE: ")]
    assert ready.startswith("ready ") or (len(said) == 1 and said[0].startswith("tensor-fusion-worker: ")), errors


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`$0` of the line is Python."""
    return subprocess.run(
        ["bash", "-c", line, sys.executable],
        env=clean_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["config", "doctor --connect native+127.0.0.1+1+0", "--help"])
def test_a_command_without_standard_files(words: str, closed: str, tmp_path: Path) -> None:
    """As some schedulers start one: nobody reads what it says, and its exit code is what it always is."""
    done = shell(f'exec "$0" -m tensor_fusion {words} {closed}', tmp_path)
    assert done.returncode == (1 if "doctor" in words else 0), done.stderr
    assert done.stderr == ""
    assert (done.stdout == "") == (">&-" in closed.replace("2>&-", ""))


def limited(limit: str, words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return shell(f'ulimit {limit}; exec timeout 10 "$0" -B -m {words}', folder)


@pytest.mark.parametrize("words", [" ".join(WORKER), "tensor_fusion demo --gpu sim", "tensor_fusion config > file"])
def test_a_bound_on_files_is_a_sentence(words: str, tmp_path: Path) -> None:
    """What the worker shares with its sessions is memory that counts as a file."""
    done = limited("-f 1", words, tmp_path)
    said = [line for line in done.stderr.splitlines() if not line.startswith("NOTICE: ")]
    assert done.returncode == 1 and len(said) == 1, done.stderr
    assert said[0].endswith("is too large (File too large; ulimit -f allows 1 KiB); raise it: ulimit -f unlimited"), (
        said
    )


@pytest.mark.parametrize("words", [" ".join(WORKER), "tensor_fusion demo --gpu sim", "tensor_fusion config"])
def test_little_memory_is_a_sentence(words: str, tmp_path: Path) -> None:
    """How much is wanted depends on the Python, which itself starts with 20 MB."""
    for most in range(28_000, 100_000, 8_000):
        done = limited(f"-v {most}", words, tmp_path)
        if "There is too little memory" in done.stderr:
            assert "Traceback" not in done.stderr and done.returncode == 1, (most, done.stderr)
            assert f"; ulimit -v allows {most} KiB); raise it: ulimit -v unlimited" in done.stderr
            return
    pytest.fail("no limit was too low")


@pytest.mark.parametrize("most", [400_000, 1_000_000])
def test_few_addresses_are_named_by_the_demo(most: int, tmp_path: Path) -> None:
    """The simulated GPU gets none for its memory, and says what a driver says then."""
    done = limited(f"-v {most}", "tensor_fusion demo --gpu sim", tmp_path)
    said = [line for line in done.stderr.splitlines() if not line.startswith("NOTICE: ")]
    assert done.returncode == 1 and len(said) == 1, done.stderr
    assert (
        f" (ulimit -v allows {most} KiB of addresses, which is too little for a GPU); raise it: ulimit -v unlimited"
        in said[0]
    )


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), OSError(errno.ENOMEM, "no")])
def test_no_memory_without_a_limit(error: Exception) -> None:
    assert (terminal.limited(error) or "").endswith("or this user has too many threads (ulimit -u).")
    assert terminal.limited(RuntimeError("something else")) is None


@pytest.mark.parametrize("most", [20, 63])
def test_a_worker_wants_descriptors_for_a_client(most: int, tmp_path: Path) -> None:
    done = limited(f"-n {most}", " ".join(WORKER), tmp_path)
    assert done.returncode == 1
    wanted = f"(a worker with one client needs 64; ulimit -n allows {most}); raise it, for example: ulimit -n 8192"
    assert wanted in done.stderr, done.stderr


def test_a_timeline_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    done = limited("-f 0", "tensor_fusion trace -o t.json --connect native+127.0.0.1+1+0 -- true", tmp_path)
    begin = "tensor-fusion: The program's records cannot be kept for the time of its run (No usable temporary directory"
    end = "; ulimit -f allows 0 KiB); raise it: ulimit -f unlimited\n"
    assert done.returncode == 1 and done.stderr.startswith(begin) and done.stderr.endswith(end), done.stderr
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize("words", ["trace -o t.json", "bench"])
def test_a_temporary_folder_that_cannot_be_made(words: str, tmp_path: Path) -> None:
    """Without a limit."""
    refuse = "import tempfile\ntempfile.mkdtemp = lambda *_: open('/dev/full/none')\n"
    (tmp_path / "none.py").write_text(refuse + "from tensor_fusion.entry import client\nclient()\n")
    done = shell(f'exec "$0" none.py {words} --connect shmem+/none+64+0 -- true', tmp_path)
    assert done.returncode == 1 and done.stderr == (
        "tensor-fusion: The program's records cannot be kept for the time of its run "
        "(/dev/full/none: Not a directory); set TMPDIR to a folder that can be written.\n"
    ), done.stderr
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize("hidden", ["7", ""])
def test_devices_that_the_worker_hides_from_itself(hidden: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *WORKER],
        env=clean_environment(CUDA_VISIBLE_DEVICES=hidden),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    end = f"error 100 (CUDA_ERROR_NO_DEVICE); CUDA_VISIBLE_DEVICES={hidden} leaves it no GPU."
    assert done.stderr.rstrip().endswith(end), done.stderr
