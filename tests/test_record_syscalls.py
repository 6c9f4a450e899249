"""The recorder of system calls, and workers whose sessions have only what was recorded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from stack.harness import ROOT, Worker, clean_environment, whole_stack
from stranger import Stranger

from tensor_fusion.abi import native_file
from tensor_fusion.config import UserError
from tensor_fusion.worker.driver import Driver
from tensor_fusion.worker.jail import ALWAYS, recorded

pytestmark = whole_stack
KEPT = ROOT / "tests/data/syscalls-simulated.txt"
SIMULATED = Driver(Path("cuda"), Path("nvml"), simulated=True)
NVIDIA = Driver(Path("cuda"), Path("nvml"), simulated=False)
MEMFD = 319  # with which each session begins


def record(path: Path, *program: str) -> str:
    command = [sys.executable, str(ROOT / "tools/record_syscalls.py"), "-o", str(path), "--gpu", "sim", "--", *program]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calls") / "list"
    kernels = str(native_file("kernels.ptx"))
    said = record(path, sys.executable, "-m", "tensor_fusion.demo.program", "demonstrate", kernels)
    assert re.search(r"\d+ system calls of simulated; the program ended with 0", said)
    return path


def test_a_list_has_names_and_counts(calls: Path) -> None:
    lines = [line for line in calls.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "driver simulated"
    found = {line.split()[1]: int(line.split()[2]) for line in lines[1:]}
    assert {"mmap", "memfd_create", "recvmsg", "exit_group"} <= found.keys() and "unknown" not in found
    assert min(found.values()) > 0
    # The jail itself is entered before.
    assert not {"unshare", "mount", "seccomp", "landlock_restrict_self"} & found.keys()


def test_more_is_added_to_a_list(calls: Path, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(calls.read_text() + "500 something 3\n16 ioctl 1 /dev/nvidiactl 0xc020462a\n")
    before = recorded(path, SIMULATED)[0]
    record(path, sys.executable, "-m", "tensor_fusion.demo.program", "devices")
    assert "500 unknown 3" in path.read_text() and "16 ioctl 1 /dev/nvidiactl 0xc020462a" in path.read_text()
    assert set(before.split(",")) <= set(recorded(path, SIMULATED)[0].split(","))


@pytest.mark.parametrize("jail", ["basic", "full"])
def test_what_was_recorded_is_enough(calls: Path, jail: str) -> None:
    with (
        Worker("--jail", jail, "--seccomp", str(calls), transport="native") as worker,
        Stranger(worker.port) as client,
    ):
        error, out = client.call("memory_alloc", size=1 << 20)
        assert error == 0 and out["address"]
        (session,) = worker.sessions()
        status = Path(f"/proc/{session.pid}/status").read_text()
        assert re.search(rf"^Seccomp_filters:\s+{2 if jail == 'full' else 1}$", status, re.MULTILINE)


def test_what_was_not_recorded_is_refused(calls: Path, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(re.sub(rf"^{MEMFD} .*\n", "", calls.read_text(), flags=re.MULTILINE))
    words = ["-p", "0", "--gpu", "sim", "--seccomp", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "tensor_fusion.worker", *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1 and "ready" not in done.stdout
    assert "there is no memory for what kernels print: Operation not permitted" in done.stderr


def test_the_list_that_is_kept_can_be_read() -> None:
    numbers, notice = recorded(KEPT, SIMULATED)
    assert notice == "" and {int(number) for number in numbers.split(",")} > ALWAYS


def test_a_list_of_another_driver_is_refused() -> None:
    with pytest.raises(UserError, match="was recorded with the driver 'simulated', and this worker uses 'nvidia'"):
        recorded(KEPT, NVIDIA)


def test_a_list_of_another_version_is_said(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("driver nvidia 1.2.3\n0 read 1\n")
    assert "was recorded with driver 1.2.3" in recorded(path, NVIDIA)[1]


@pytest.mark.parametrize("text", ["", "driver simulated\n", "0 read 1\n", "driver simulated\nread 1\n", "\0\n"])
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(UserError, match="is no list"):
        recorded(path, SIMULATED)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        recorded(tmp_path / "list", SIMULATED)
