"""The worker as a service of systemd: its unit, and what it tells systemd."""

from __future__ import annotations

import configparser
import fnmatch
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from worker_harness import Worker, eventually

from tensor_fusion.config import UserError
from tensor_fusion.worker import service

COMMAND = Path("/opt/tensor-fusion/bin/tensor-fusion-worker")


def test_it_says_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(5)
        with Worker(NOTIFY_SOCKET=str(path)) as worker:
            assert systemd.recv(1000).decode() == f"READY=1\nSTATUS={worker.ready.strip()}"
            # A session cannot say anything in the worker's name.
            assert worker.client().ask("env NOTIFY_SOCKET") == "(unset)"
            worker.stop()
            assert systemd.recv(1000) == b"STOPPING=1"


def test_a_systemd_that_does_not_listen_is_said(tmp_path: Path) -> None:
    with Worker(NOTIFY_SOCKET=str(tmp_path / "nobody")) as worker:
        assert worker.client().ask("pid")
        worker.stop()
        assert "takes nothing" in worker.errors


def test_install_status_remove(tmp_path: Path) -> None:
    unit, configuration = tmp_path / service.UNIT, tmp_path / service.CONFIGURATION
    with pytest.raises(UserError, match="tensor-fusion service install writes it"):
        service.status(tmp_path)
    assert service.install(tmp_path, COMMAND)[-1] == "next: systemctl enable --now tensor-fusion-worker"
    assert f"ExecStart={COMMAND} $TF_WORKER_OPTIONS\n" in unit.read_text()
    assert configuration.stat().st_mode & 0o777 == 0o600
    configuration.write_text("TF_WORKER_OPTIONS=-p 1\n")
    service.install(tmp_path, COMMAND)  # again, as after an upgrade
    assert configuration.read_text() == "TF_WORKER_OPTIONS=-p 1\n"
    assert service.status(tmp_path)[0] == f"unit: {unit}"
    devices = tmp_path / service.DEVICES_UNIT
    assert "ExecStart=-nvidia-modprobe -u -c=0\n" in devices.read_text()
    assert service.remove(tmp_path) == [f"removed {unit}", f"removed {devices}", f"kept {configuration}"]
    assert not unit.exists() and not devices.exists()
    with pytest.raises(UserError, match="nothing was changed"):
        service.remove(tmp_path)


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    unit = tmp_path / service.UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    with pytest.raises(UserError, match="not ours"):
        service.install(tmp_path, COMMAND)
    with pytest.raises(UserError, match="not ours"):
        service.remove(tmp_path)
    assert unit.read_text() == "[Service]\n"


def test_the_one_file_has_the_command_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a host without Python: tensor-fusion-worker service install, found as the shell has found it."""
    monkeypatch.setattr(service, "HIDDEN", ())
    program = tmp_path / "bin/tensor-fusion-worker"
    program.parent.mkdir()
    shutil.copy("/bin/true", program)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin")
    root = ["--root", str(tmp_path / "root")]
    assert service.one_file("tensor-fusion-worker", ["install", *root]) == 0
    assert f"ExecStart={program} $TF_WORKER_OPTIONS\n" in (tmp_path / "root" / service.UNIT).read_text()
    assert service.one_file(str(program), ["status", *root]) == 0
    assert service.one_file(str(program), ["remove", *root]) == 0
    assert f"which starts {program}\n" in capsys.readouterr().out
    assert service.one_file(str(program), ["remove", *root]) == 2
    assert capsys.readouterr().err.startswith("tensor-fusion-worker: There is no ")
    for words in ([], ["start"], ["install", "now"]):
        assert service.one_file(str(program), words) == 2
        assert "install|status|remove" in capsys.readouterr().err


def test_the_one_file_may_run_in_its_cache(tmp_path: Path) -> None:
    """systemd 257 mounts the cache of a service with a user of its own with noexec; seen in docs/fresh."""
    script, one_file = tmp_path / "script", tmp_path / "one-file"
    script.write_text("#!/usr/bin/python3\n")
    shutil.copy("/bin/true", one_file)
    assert "ExecPaths" not in service.unit(script)
    assert "\nExecPaths=-%C/tensor-fusion -%C/private/tensor-fusion\n" in service.unit(one_file)


# As /proc/devices has them: up to driver 535 the GPUs' own is called nvidia-frontend.
NVIDIA_DEVICES = (
    "nvidia", "nvidia-frontend", "nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-caps",
    "nvidia-caps-imex-channels", "nvidia-nvswitch", "nvidia-nvlink",
)  # fmt: skip


def test_the_unit_admits_what_the_driver_opens() -> None:
    """By class: the number of nvidia-uvm is another one on each machine. Loaded before, for systemd looks once."""
    text = service.unit(COMMAND)
    (allowed,) = re.findall(r"^DeviceAllow=char-(\S+) rw$", text, flags=re.M)
    assert all(fnmatch.fnmatchcase(name, allowed) for name in NVIDIA_DEVICES)
    assert not fnmatch.fnmatchcase("mem", allowed) and not fnmatch.fnmatchcase("drm", allowed)
    for word in ("After", "Wants"):
        assert re.search(rf"^{word}=.*\b{service.DEVICES_NAME}$", text, flags=re.M)


@pytest.mark.parametrize("place", ["/root/.venv/bin", "/home/me/.local/bin", "/tmp/x"])
def test_a_command_that_the_service_cannot_see_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/opt/tensor-fusion"):
        service.install(tmp_path, Path(place) / "tensor-fusion-worker")
    assert not (tmp_path / service.UNIT).exists()


def test_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tensor_fusion", "service", "status", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"tensor-fusion: There is no {tmp_path}/etc/systemd/system/tensor-fusion-worker.service"
    )


def test_the_unit_leaves_what_a_jail_needs() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(service.unit(COMMAND))
    found = parser["Service"]
    assert {"user", "mnt", "pid", "net"} <= set(found["RestrictNamespaces"].split())
    assert "landlock_restrict_self" in found["SystemCallFilter"] and "seccomp" in found["SystemCallFilter"]
    assert (found["Type"], found["DynamicUser"], found["OOMPolicy"]) == ("notify", "yes", "continue")


@pytest.mark.parametrize("command", ["script", "one file"])
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on this machine")
def test_the_unit_is_hardened(command: str, tmp_path: Path) -> None:
    """The worker of the wheel and the one file are each the process that systemd starts."""
    worker = tmp_path / "worker"
    worker.write_bytes(b"#!/bin/true\n" if command == "script" else Path("/bin/true").read_bytes())
    worker.chmod(0o755)
    path, devices = tmp_path / service.NAME, tmp_path / service.DEVICES_NAME
    path.write_text(service.unit(worker))
    devices.write_text(service.devices_unit())
    words = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Unknown" not in done.stderr
    words = ["systemd-analyze", "verify", str(path), str(devices)]
    verified = subprocess.run(words, capture_output=True, text=True, check=False)
    # That the driver's programs are not on this machine is no fault of the unit's.
    ours = [line for line in verified.stderr.splitlines() if "tensor-fusion" in line and "Command nvidia-" not in line]
    assert not ours, verified.stderr


def test_reload_is_what_the_unit_says(tmp_path: Path) -> None:
    """ExecReload sends SIGHUP, and the worker of a service serves on."""
    assert "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'\n" in service.unit(COMMAND)
    log = tmp_path / "log"
    with Worker(TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        log.unlink()
        worker.process.send_signal(1)
        assert eventually(log.exists)


def test_a_machine_without_systemd_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command would not be found there."""
    monkeypatch.setattr(service, "SYSTEMD", tmp_path / "nothing")
    assert service._next(Path("/")).startswith("systemd does not run here")
    assert service._next(tmp_path) == "next: systemctl enable --now tensor-fusion-worker"
    monkeypatch.setattr(service, "SYSTEMD", tmp_path)
    assert service._next(Path("/")) == "next: systemctl enable --now tensor-fusion-worker"
