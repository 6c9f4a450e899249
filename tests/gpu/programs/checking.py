"""What the two checking programs share: workers of their own, clients as child processes, and the list of checks."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import Worker, find_nvidia_smi, stop_group

PROGRAMS = Path(__file__).resolve().parent
INSTALL = Path(os.environ.get("GPU_RUN_INSTALL", "."))
CLIENT_FOLDER = Path(os.environ.get("GPU_RUN_CLIENT_FOLDER", "."))
LOGS = Path(os.environ.get("GPU_RUN_LOGS", "."))
# What run.py was told: over what the workers of the checks are reached, and whether their GPU is the simulated one.
TRANSPORT = os.environ.get("GPU_RUN_TRANSPORT", "tcp")
SEGMENT_MB = int(os.environ.get("GPU_RUN_SEGMENT_MB", "2048"))
SECRET = os.environ.get("GPU_RUN_SECRET", "")
WORKER_OPTIONS = tuple(os.environ.get("GPU_RUN_WORKER_OPTIONS", "").split())


def worker_env(**more: str) -> dict[str, str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(INSTALL), *filter(None, [env.get("PYTHONPATH")])])
    return {**env, **more}


def client_env(worker: Worker) -> dict[str, str]:
    env = dict(os.environ)
    env["TENSOR_FUSION_OPERATOR_CONNECTION_INFO"] = worker.connection
    env["LD_LIBRARY_PATH"] = ":".join([str(CLIENT_FOLDER), *filter(None, [env.get("LD_LIBRARY_PATH")])])
    return env


@contextmanager
def a_worker(name: str, **env: str) -> Iterator[Worker]:
    """A worker of one scenario, on a port or a segment of its own."""
    segment = (f"/tf_gpu_{os.getpid()}_{name}", SEGMENT_MB) if TRANSPORT == "shmem" else None
    command = [str(INSTALL / "bin" / "tensor-fusion-worker"), *WORKER_OPTIONS]
    with Worker(command, worker_env(**env), LOGS / name, segment=segment, secret=SECRET) as worker:
        worker.wait_ready()
        yield worker


class Client:
    """A victim.py process: its words arrive on a queue, so that waiting for one has a deadline."""

    def __init__(self, worker: Worker | None, role: str, number: int = 0) -> None:
        env = client_env(worker) if worker is not None else dict(os.environ)
        self.log = (LOGS / f"{role}-{time.monotonic_ns()}.err").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "victim.py"), role, str(number)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.strip())
        self.lines.put(None)

    def wait_for(self, word: str, timeout_s: float) -> str:
        """The first line that begins with `word`; raises TimeoutError with what came instead."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no '{word}' within {timeout_s:g} s, but {self.seen[-5:]}") from None
            if line is None:
                code = self.process.wait(5)
                raise TimeoutError(f"ended with {code} before '{word}', after {self.seen[-5:]}")
            self.seen.append(line)
            if line.startswith(word):
                return line

    def value(self, word: str, timeout_s: float = 20.0) -> int:
        return int(self.wait_for(word + " ", timeout_s).split()[1])

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        stop_group(self.process)
        self.log.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()


@dataclass
class Checks:
    """Collects the checks of one program; a scenario that raises is a failed check of its own name, never the end."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, ok: bool, detail: object = "", value: float | None = None, required: str = "") -> None:
        entry = {"name": name, "ok": bool(ok), "detail": str(detail)[:2000], "value": value, "required": required}
        self.found.append(entry)
        sys.stderr.write(f"{'ok' if ok else 'NO'} {name}: {detail}\n")

    def scenario(self, name: str, body: Callable[[Checks], None]) -> None:
        try:
            body(self)
        except Exception as error:  # noqa: BLE001 - one scenario must not lose the rest
            self.add(name, False, f"{type(error).__name__}: {error}")

    def finish(self) -> int:
        sys.stdout.write(json.dumps({"checks": self.found}) + "\n")
        return 0


def smi(arguments: list[str], env: dict[str, str] | None = None, timeout_s: float = 60.0) -> tuple[int, str]:
    """Exit code and text of the machine's own nvidia-smi."""
    path = find_nvidia_smi()
    if path is None:
        raise FileNotFoundError("this machine has no nvidia-smi")
    done = subprocess.run(
        [path, *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


def used_mib() -> int:
    """Memory in use on GPU 0, as the host's nvidia-smi says."""
    code, text = smi(["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"])
    if code != 0:
        raise RuntimeError(f"nvidia-smi gave {code}: {text}")
    return int(text.split()[0])


def compute_processes() -> dict[int, int]:
    """Process id and MiB of every compute process, as the host's nvidia-smi says."""
    code, text = smi(["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"])
    if code != 0:
        raise RuntimeError(f"nvidia-smi gave {code}: {text}")
    found: dict[int, int] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit():
            found[int(parts[0])] = int(parts[1])
    return found
