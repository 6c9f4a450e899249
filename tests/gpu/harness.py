"""Process control, statistics and tables for the runs on a GPU machine.

Nothing here knows a program by name: suite.py lists the programs, run.py drives them. Every process is started in its
own process group and ended by that group, so that nothing is left behind when a program hangs or the runner is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Side = Literal["native", "remote"]
Rule = Literal["ratio_min", "ratio_max", "min", "max", "report"]


@dataclass(frozen=True)
class Metric:
    """One figure of a program's JSON line and what it must reach.

    `ratio_*` bounds remote / native, `min` and `max` bound the remote figure alone, `report` bounds nothing.
    """

    name: str
    unit: str
    rule: Rule = "report"
    bound: float = 0.0
    aim: str = ""

    def required(self) -> str:
        words = {
            "ratio_min": f">= {self.bound:g} x native",
            "ratio_max": f"<= {self.bound:g} x native",
            "min": f">= {self.bound:g} {self.unit}",
            "max": f"<= {self.bound:g} {self.unit}",
            "report": "",
        }
        return words[self.rule]

    def reached(self, native: float | None, remote: float | None) -> bool:
        """Whether the medians satisfy the rule; a figure that is missing never does."""
        if self.rule == "report":
            return True
        if remote is None:
            return False
        if self.rule == "min":
            return remote >= self.bound
        if self.rule == "max":
            return remote <= self.bound
        if native is None or native <= 0:
            return False
        ratio = remote / native
        return ratio >= self.bound if self.rule == "ratio_min" else ratio <= self.bound


@dataclass(frozen=True)
class Program:
    """One program of the suite.

    kind `pair`: run natively and remotely, the `digest` of both must be equal.
    kind `text`: run natively and remotely, the lines of stdout must be equal but for the lines in `expectations`.
    kind `checks`: run once in the client's environment, prints {"checks": [{"name", "ok", "detail"}]}.
    `timed` programs run `--pairs` times with nothing beside them; the others run once a side, and beside each other
    unless they are `alone` because they read what others change (free memory, elapsed time).
    inject says how the client files reach the program: LD_LIBRARY_PATH, LD_PRELOAD, or `tensor-fusion run`.
    A program that needs more `gpus` than the machine has is left out, and its row says so.
    In `command`, {bin}, {model}, {programs} and {python} stand for the folders and the interpreter of the run.
    """

    name: str
    command: tuple[str, ...]
    kind: Literal["pair", "text", "checks"] = "pair"
    timeout_s: float = 120.0
    timed: bool = False
    alone: bool = False
    metrics: tuple[Metric, ...] = ()
    expectations: Path | None = None
    inject: Literal["path", "preload", "run"] = "path"
    group: Literal["correctness", "speed", "robustness"] = "correctness"
    env: dict[str, str] = field(default_factory=dict)
    gpus: int = 1


@dataclass
class Sample:
    """What one process of one side gave."""

    program: str
    side: Side
    index: int
    returncode: int | None
    seconds: float
    timed_out: bool
    result: dict[str, Any] | None
    problem: str
    stats: dict[str, Any] | None
    stdout: str
    stderr_tail: list[str]


def stop_group(process: subprocess.Popen[Any], grace_s: float = 3.0) -> None:
    """End a process started with its own group, and everything it started in that group; returns when they are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    if process.poll() is None:
        process.wait(grace_s)
    wait_until(lambda: not group_exists(process.pid), 1.0)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True)
class Finished:
    returncode: int | None
    seconds: float
    timed_out: bool
    stdout: str
    stderr: str


def run_process(
    command: Sequence[str], env: dict[str, str], timeout_s: float, log: Path, cwd: Path | None = None
) -> Finished:
    """Run one command to its end or its timeout; stdout and stderr go to LOG.out and LOG.err as they come.

    On a timeout SIGABRT comes first: the Python programs have faulthandler on, so the log then holds every thread's
    stack; two seconds later the whole group is killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out_path, err_path = log.with_suffix(".out"), log.with_suffix(".err")
    start = time.monotonic()
    timed_out = False
    with out_path.open("wb") as out, err_path.open("wb") as err:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            err.write(f"cannot start {command[0]}: {error}\n".encode())
            err.flush()
            return Finished(None, 0.0, False, "", err_path.read_text(errors="replace"))
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        finally:
            stop_group(process)
    seconds = time.monotonic() - start
    return Finished(
        process.returncode,
        seconds,
        timed_out,
        out_path.read_text(errors="replace"),
        err_path.read_text(errors="replace"),
    )


def last_json_line(text: str) -> dict[str, Any] | None:
    """The last line of `text` that is a JSON object, or None."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(value, dict):
                return value
    return None


def tail(text: str, lines: int = 15) -> list[str]:
    return [line[:300] for line in text.splitlines() if line.strip()][-lines:]


def find_nvidia_smi() -> str | None:
    """The machine's unmodified nvidia-smi, wherever the driver's folder is mounted."""
    for candidate in (shutil.which("nvidia-smi"), "/usr/local/nvidia/bin/nvidia-smi", "/usr/bin/nvidia-smi"):
        if candidate and Path(candidate).exists():
            return candidate
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret_env(secret: str, keys: Path) -> dict[str, str]:
    """What makes a worker ask for `secret`, which is written to the file `keys`."""
    keys.touch(mode=0o600)
    keys.write_text(f"{secret}\n")
    return {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)}


class Worker:
    """One `tensor-fusion-worker` on this machine, started and ended with its sessions."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        log: Path,
        port: int | None = None,
        segment: tuple[str, int] | None = None,
        secret: str = "",
    ) -> None:
        self.port = port if port is not None else free_port()
        self.segment = segment
        self.secret = secret
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        full_env = {**env, "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log.with_suffix(".log"))}
        if secret:
            full_env |= secret_env(secret, log.with_suffix(".keys"))
        self.out = log.with_suffix(".out").open("wb")
        self.err = log.with_suffix(".err").open("wb")
        self.process = subprocess.Popen(
            [*command, *self._protocol()],
            stdin=subprocess.DEVNULL,
            stdout=self.out,
            stderr=self.err,
            env=full_env,
            start_new_session=True,
        )

    def _protocol(self) -> list[str]:
        if self.segment is None:
            return ["-n", "native", "-p", str(self.port)]
        return ["-n", "shmem", "-m", self.segment[0], "-M", str(self.segment[1])]

    @property
    def connection(self) -> str:
        if self.segment is not None:
            plain = f"shmem+{self.segment[0]}+{self.segment[1]}+0"
        else:
            plain = f"native+127.0.0.1+{self.port}+0"
        return f"{plain}+{self.secret}" if self.secret else plain

    def wait_ready(self, timeout_s: float = 60.0) -> str:
        """The line that begins with `ready`; raises RuntimeError with the worker's last words if none comes."""
        deadline = time.monotonic() + timeout_s
        path = self.log.with_suffix(".out")
        while time.monotonic() < deadline:
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("ready"):
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        words = tail(path.read_text(errors="replace") + self.log.with_suffix(".err").read_text(errors="replace"))
        state = f"exit code {self.process.poll()}" if self.process.poll() is not None else f"silent for {timeout_s:g} s"
        raise RuntimeError("the worker did not become ready (" + state + "):\n  " + "\n  ".join(words))

    def alive(self) -> bool:
        return self.process.poll() is None

    def descendants(self) -> list[int]:
        return descendants(self.process.pid)

    def stop(self) -> None:
        """End the worker, then whatever of its sessions is still there (they may have left its process group)."""
        children = self.descendants()
        stop_group(self.process)
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.segment is not None:
            # A worker that was killed leaves it; nobody takes it over here.
            (Path("/dev/shm") / self.segment[0].lstrip("/")).unlink(missing_ok=True)
        self.out.close()
        self.err.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()


def descendants(root: int) -> list[int]:
    """Process ids below `root`, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found: list[int] = []
    frontier = [root]
    while frontier:
        parent = frontier.pop()
        for pid, its_parent in parents.items():
            if its_parent == parent:
                found.append(pid)
                frontier.append(pid)
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, step_s: float = 0.02) -> float | None:
    """Seconds until `condition` held, or None if it did not within the time."""
    start = time.monotonic()
    while True:
        if condition():
            return time.monotonic() - start
        if time.monotonic() - start > timeout_s:
            return None
        time.sleep(step_s)


def alternating(pairs: int) -> list[Side]:
    """N R, R N, N R, …: a drift of the machine then weighs on both sides alike."""
    order: list[Side] = []
    for index in range(pairs):
        order += ["native", "remote"] if index % 2 == 0 else ["remote", "native"]
    return order


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value:.4g}" if abs(value) < 100_000 else f"{value:.3e}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain columns, left-aligned but for the figures that the caller formats."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    everything = [header, ["-" * width for width in widths], *rows]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in everything]
    return "\n".join(line.rstrip() for line in lines)


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp") as handle:
        json.dump(value, handle, indent=1, sort_keys=False)
        handle.write("\n")
    Path(handle.name).replace(path)


def say(text: str = "") -> None:
    """A line of the run's report: stdout is what the reader of the run gets."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
