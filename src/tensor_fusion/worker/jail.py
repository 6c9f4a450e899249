"""The jail of sessions: which of its layers this machine has, and which system calls are left in it.

The session's own executable tries each layer and says what came of it, so that what is told is what a session gets.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensor_fusion.abi import landlock_version, native_file
from tensor_fusion.client.check import Check
from tensor_fusion.config import UserError
from tensor_fusion.runtime import statuses
from tensor_fusion.worker.driver import Driver, choose_driver, session_environment

# The layers of --jail full, by their names in native/session/layers.c.
LAYERS = {
    "user": "user namespace",
    "mount": "mount namespace",
    "net": "network namespace",
    "ipc": "namespace of System V objects and message queues",
    "uts": "namespace of the host name",
    "landlock": "Landlock",
    "calls": "refused system calls",
}
# What each one does where it is on.
MEANS = {
    "user": "no privilege and no other process's memory, also as root",
    "mount": "a small root of the driver's files, to read, and no other process in /proc",
    "net": "no network but the client's connections",
    "ipc": "no other program's shared memory, semaphores and queues",
    "uts": "the host's name cannot be changed",
    "landlock": "only the driver's files, and images by their names",
    "calls": "a seccomp filter without what no driver needs, and without numbers of other processes",
}
# The first version of the kernel's interface that bounds signals and abstract sockets; it is in Linux 6.12.
WHOLE_LANDLOCK = 6
PROBE_SECONDS = 30.0
_SETTINGS = (
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
)
# What a session needs to write a line, and a thread to end, and to go on behind a signal, whether recorded or not.
ALWAYS = {1, 15, 60, 219, 231}  # write, rt_sigreturn, exit, restart_syscall, exit_group
# What the C library calls where a filter has said that the newer one is not there: clone and openat.
INSTEAD = {435: 56, 437: 257}
_CALL = re.compile(r"([0-9]{1,5}) [a-z_0-9]+ [0-9]+(?: \S+)*")


@dataclass(frozen=True)
class Layer:
    name: str  # of LAYERS
    on: bool
    why: str = ""  # it is not there

    @property
    def title(self) -> str:
        return LAYERS[self.name]


def probe(session: Path, driver: Driver, environment: Mapping[str, str]) -> tuple[Layer, ...]:
    """Try each layer in a process of its own. Raises UserError when that cannot be done."""
    command = [str(session), "--layers", "--driver", str(driver.cuda), "--nvml", str(driver.nvml)]
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{session} cannot try the layers of the jail: {error}.", exit_code=1) from error
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    if done.returncode or [line[0] for line in lines] != list(LAYERS):
        raise UserError(
            f"{session} does not say which layers of the jail there are (exit code {done.returncode}); "
            "install the package again.",
            exit_code=1,
        )
    return tuple(Layer(line[0], line[1] == "on", line[2] if len(line) > 2 else "") for line in lines)


def missing(layers: Sequence[Layer]) -> str:
    """What is not there, with the reasons; "" when all is."""
    gone = [layer for layer in layers if not layer.on]
    return ", ".join(f"{layer.title} ({layer.why})" for layer in gone)


def advice(layer: Layer) -> str:
    """What to type where a setting of this machine is why it is missing."""
    if layer.on or layer.name == "landlock":
        return ""
    for name, value, command in _SETTINGS:
        try:
            found = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
        if found == value:
            return command
    return ""


def examine(environ: Mapping[str, str]) -> Iterator[Check]:
    """The checks of `tensor-fusion doctor --worker`."""
    try:
        driver = choose_driver(None, environ)
        yield Check("driver", True, f"{driver.cuda}")
    except UserError:
        driver = choose_driver("sim", environ)
        yield Check("driver", True, "there is no NVIDIA driver here; the layers are tried with the simulated GPU")
    yield Check("basic jail", True, "no capabilities, no new privileges, no core files: on every kernel")
    user = f"sessions have user {os.geteuid()}, the worker's"
    yield Check("own user", True, f"{user}; run the worker as a user that has nothing else")
    for layer in probe(native_file("bin/tensor-fusion-session"), driver, session_environment(environ)):
        yield _check(layer)
    yield Check("process namespace", True, "not used: the driver and NVML know processes by their numbers")
    yield Check("seccomp list", True, "off, unless the worker gets one with --seccomp FILE")
    found, _ = statuses(environ)  # whoever cannot be asked is another user's
    for status in found:
        yield Check(f"worker {status['pid']}", True, _runs(status))


def _runs(status: Mapping[str, Any]) -> str:
    """What a worker that runs says of its sessions."""
    names = [LAYERS.get(name, str(name)) for name in status.get("layers", ())]
    return f"its sessions run with --jail {status.get('jail', 'basic')}" + (f": {', '.join(names)}" if names else "")


def _check(layer: Layer) -> Check:
    if not layer.on:
        command = advice(layer)
        return Check(layer.title, False, f"not here: {layer.why}", cause="setting" if command else "", command=command)
    text = MEANS[layer.name]
    if layer.name == "landlock":
        version = landlock_version()
        text += f" (version {version})"
        if version < WHOLE_LANDLOCK:
            text += "; signals and abstract sockets are left to the other layers before Linux 6.12"
    return Check(layer.title, True, text)


def driver_version() -> str:
    """Of the NVIDIA driver of this host; "" when it does not say."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\s([0-9]{3,}\.[0-9.]+)\s", text)
    return found[1] if found else ""


def recorded(path: Path, driver: Driver) -> tuple[str, str]:
    """The numbers of the calls in a list of tools/record_syscalls.py, with commas between, and a notice or "".

    Raises UserError when it is none, or when it was recorded with another kind of driver: this one makes others.
    """
    try:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"--seccomp {path} cannot be read: {why}.") from error
    kind, _, version = (lines[0] if lines else "").removeprefix("driver ").partition(" ")
    calls = [_CALL.fullmatch(line) for line in lines[1:]]
    wrong = next((line for line, call in zip(lines[1:], calls, strict=True) if not call), "")
    if kind not in ("simulated", "nvidia") or not calls or wrong:
        raise UserError(f"--seccomp {path} is no list of tools/record_syscalls.py: {wrong or 'it names no driver'}.")
    here = "simulated" if driver.simulated else "nvidia"
    if kind != here:
        raise UserError(
            f"--seccomp {path} was recorded with the driver {kind!r}, and this worker uses {here!r}, which makes other "
            "calls; record a list with it: python tools/record_syscalls.py."
        )
    now = "" if driver.simulated else driver_version()
    notice = ""
    if now != version and not driver.simulated:
        notice = f"--seccomp {path} was recorded with driver {version}, and this is {now or 'unknown'}."
    numbers = {int(call[1]) for call in calls if call} | ALWAYS
    numbers |= {INSTEAD[number] for number in numbers & INSTEAD.keys()}
    return ",".join(map(str, sorted(numbers))), notice
