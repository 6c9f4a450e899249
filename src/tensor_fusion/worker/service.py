"""The worker as a service of systemd: the unit, and what it tells systemd about itself.

The unit is hardened as far as a worker allows: it sees the GPUs and no other device, writes to its cache, its log and
shared memory, and runs as a user that exists while it runs. It keeps what a jail for sessions needs: namespaces, mounts
inside them, Landlock and seccomp. tests/test_service.py holds `systemd-analyze security` to 2.5.

What it may open is looked up in /proc/devices when it starts, so all of NVIDIA's modules must be there by then.
The driver would load nvidia-uvm at the first cuInit, by a program that a service without privileges cannot run. So a
second unit, which has them, does it first.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tensor_fusion.config import UserError
from tensor_fusion.terminal import complain, folded

NAME = "tensor-fusion-worker.service"
UNIT = Path("etc/systemd/system") / NAME
SYSTEMD = Path("/run/systemd/system")  # there where it runs
DEVICES_NAME = "tensor-fusion-devices.service"
DEVICES_UNIT = UNIT.with_name(DEVICES_NAME)
CONFIGURATION = Path("etc/tensor-fusion/worker.conf")
ELF = b"\x7fELF"
MARK = "# Written by `tensor-fusion service install`"
# What ProtectHome and PrivateTmp hide from the service.
HIDDEN = ("home", "root", "run/user", "tmp", "var/tmp")

_TEXT = """\
{mark}; `tensor-fusion service remove` takes it away.
[Unit]
Description=Tensor Fusion worker, which lends the GPUs of this host
After=network-online.target nvidia-persistenced.service {devices}
Wants=network-online.target {devices}

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} $TF_WORKER_OPTIONS
ExecReload=/bin/sh -c 'kill -HUP $MAINPID'
EnvironmentFile=-/{configuration}
Restart=on-failure
RestartSec=2
KillMode=mixed
TimeoutStartSec=120
TimeoutStopSec=20
# A session that runs out of memory is one client's affair.
OOMPolicy=continue
LimitMEMLOCK=infinity
LimitNOFILE=65536
LimitCORE=0
CacheDirectory=tensor-fusion
LogsDirectory=tensor-fusion
RuntimeDirectory=tensor-fusion
RuntimeDirectoryMode=0700
Environment=XDG_CACHE_HOME=%C
{exec_paths}UMask=0077

DynamicUser=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateMounts=yes
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=user mnt pid net ipc uts
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service @mount
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp

[Install]
WantedBy=multi-user.target
"""

_DEVICES_TEXT = """\
{mark}; `tensor-fusion service remove` takes it away.
[Unit]
Description=Modules and device files of NVIDIA's driver, for the Tensor Fusion worker
After=nvidia-persistenced.service

[Service]
Type=oneshot
# Neither is an error where it is missing: who has no such program has these files made by other means.
ExecStart=-nvidia-modprobe -u -c=0
ExecStart=-nvidia-smi -L
TimeoutStartSec=90
"""

_CONFIGURATION = """\
# What tensor-fusion-worker is started with; after a change: systemctl restart tensor-fusion-worker
# Every variable: tensor-fusion config
TF_WORKER_OPTIONS=-n native -p 12345
TF_ENABLE_LOG=1
#TF_ENABLE_URL_AUTH=1
#TF_AUTHORIZED_KEY_PATH=/etc/tensor-fusion/keys
"""


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told; that it does not listen is no fault of the worker's."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError as error:
            complain(f"tensor-fusion-worker: NOTIFY_SOCKET {address} takes nothing: {error.strerror}.")


def notify_ready(status: str) -> None:
    notify(f"READY=1\nSTATUS={status}")


def notify_stopping() -> None:
    notify("STOPPING=1")


def worker_command() -> Path:
    """The command beside this interpreter, else the one that the PATH leads to."""
    beside = Path(sys.executable).with_name("tensor-fusion-worker")
    found = beside if beside.is_file() else Path(shutil.which("tensor-fusion-worker") or "")
    if not found.is_file():
        raise UserError("There is no tensor-fusion-worker beside this Python or on PATH; install the package with pip.")
    return found.absolute()


def _is_one_file(command: Path) -> bool:
    """What pip installs is a script."""
    if not command.is_file():
        return False
    with command.open("rb") as file:
        return file.read(len(ELF)) == ELF


def unit(command: Path) -> str:
    """The one file runs in its cache, which systemd mounts for such a user so that nothing runs there."""
    exec_paths = "ExecPaths=-%C/tensor-fusion -%C/private/tensor-fusion\n" if _is_one_file(command) else ""
    return _TEXT.format(
        mark=MARK, command=command, configuration=CONFIGURATION, devices=DEVICES_NAME, exec_paths=exec_paths
    )


def devices_unit() -> str:
    return _DEVICES_TEXT.format(mark=MARK)


def install(root: Path, command: Path) -> list[str]:
    """Write the unit, and the configuration if there is none; what to type next. Raises UserError."""
    hidden = next((name for name in HIDDEN if command.is_relative_to(Path("/") / name)), None)
    if hidden:
        raise UserError(
            f"{command} lies below /{hidden}, which the service does not see; put the one file into /usr/local/bin, "
            "or install the package where every user can run it, for example: python3 -m venv /opt/tensor-fusion && "
            "/opt/tensor-fusion/bin/pip install ./tensor_fusion-*.whl"
        )
    path = root / UNIT
    texts = {path: unit(command), root / DEVICES_UNIT: devices_unit()}
    for other in texts:
        if other.exists() and MARK not in other.read_text(errors="replace"):
            raise UserError(f"{other} is there and is not ours; nothing was changed.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for target, text in texts.items():
            target.write_text(text)
        configuration = root / CONFIGURATION
        if not configuration.exists():
            configuration.parent.mkdir(parents=True, exist_ok=True)
            configuration.write_text(_CONFIGURATION)
            configuration.chmod(0o600)  # it may hold the path of secrets, and more
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}; run it as root.") from error
    _systemctl(root, "daemon-reload")
    return [
        f"wrote {path}, which starts {command}",
        f"and {root / DEVICES_UNIT}, which loads NVIDIA's modules before it",
        f"its options stand in {configuration}",
        _next(root),
    ]


def _next(root: Path) -> str:
    if root == Path("/") and not SYSTEMD.is_dir():
        return "systemd does not run here, as in most containers: nothing will start it"
    return f"next: systemctl enable --now {NAME.removesuffix('.service')}"


def remove(root: Path) -> list[str]:
    """Stop it and take the unit away; the configuration is the administrator's. Raises UserError."""
    path = root / UNIT
    if not path.exists():
        raise UserError(f"There is no {path}; nothing was changed.")
    paths = [one for one in (path, root / DEVICES_UNIT) if one.exists()]
    for one in paths:
        if MARK not in one.read_text(errors="replace"):
            raise UserError(f"{one} is not ours; nothing was changed.")
    _systemctl(root, "disable", "--now", NAME)
    for one in paths:
        try:
            one.unlink()
        except OSError as error:
            raise UserError(f"{one} cannot be removed: {error.strerror}; run it as root.") from error
    _systemctl(root, "daemon-reload")
    kept = root / CONFIGURATION
    return [*(f"removed {one}" for one in paths), *([f"kept {kept}"] if kept.exists() else [])]


def status(root: Path) -> list[str]:
    """Whether it is there, starts by itself and runs. Raises UserError when it is not there."""
    path = root / UNIT
    if not path.exists():
        raise UserError(f"There is no {path}; tensor-fusion service install writes it.", exit_code=1)
    lines = [f"unit: {path}"]
    for word, question in (("at boot", "is-enabled"), ("now", "is-active")):
        lines.append(f"{word}: {_systemctl(root, question, NAME) or 'unknown, there is no systemd here'}")
    return [*lines, f"its lines: journalctl -u {NAME.removesuffix('.service')}"]


def one_file(program: str, arguments: Sequence[str]) -> int:
    """The same on a host that has the worker as one file and no `tensor-fusion`: tensor-fusion-worker service …"""
    words = list(arguments)
    root = Path("/")
    if words[1:2] == ["--root"] and len(words) == 3:
        root = Path(words[2])
        words = words[:1]
    try:
        found = shutil.which(program)
        if not found:
            raise UserError(f"{program} is not found any more; start it by its path.")
        actions = {
            "install": lambda: install(root, Path(found).absolute()),
            "status": lambda: status(root),
            "remove": lambda: remove(root),
        }
        if len(words) != 1 or words[0] not in actions:
            raise UserError("Usage: tensor-fusion-worker service install|status|remove [--root DIR]")
        lines = actions[words[0]]()
    except UserError as error:
        complain(f"tensor-fusion-worker: {error.sentence}")
        return error.exit_code
    sys.stdout.write("".join(f"{folded(line, '  ')}\n" for line in lines))
    return 0


def _systemctl(root: Path, *words: str) -> str:
    """What it says; "" where no systemd runs, or where another root than this machine's is meant."""
    if root != Path("/") or not SYSTEMD.is_dir():
        return ""
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"systemctl {' '.join(words)} failed: {error}.", exit_code=1) from error
    if done.returncode and words[0] in ("daemon-reload", "disable"):
        raise UserError(f"systemctl {' '.join(words)} failed: {done.stderr.strip()}.", exit_code=1)
    return done.stdout.strip()
