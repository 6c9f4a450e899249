"""A process that flips random bits in a shared segment while programs work in it, on the whole stack.

Only who is attacked may suffer: the worker lives and serves the next client, a client of another segment gets the same
bits as ever, the victim's session ends when it does. With a session built with sanitizers, as in .ci/run, the logs must
not have a report. `TF_TEST_ADVERSARY_SECONDS` is how long, in all; `TF_TEST_ADVERSARY_SEED` is another seed than CI's.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from stack.harness import ROOT, clean_environment, succeed, whole_stack
from test_transport import NATIVE, compiler

from tensor_fusion.client.files import client_environment

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
SIMULATED = "right on Simulated NVIDIA H200\n"
SEED = int(os.environ.get("TF_TEST_ADVERSARY_SEED", "20261122"))
AREAS = ("page", "rings", "blocks", "header", "all")
SECONDS = max(1, int(os.environ.get("TF_TEST_ADVERSARY_SECONDS", "20")) // len(AREAS))
# Whose lies can leave nothing to find out: a frame that lost its end, a block that never becomes free. Both sides live
# and wait for each other then, until the program is ended.
MAY_WAIT = {"page", "rings", "all"}
VICTIM_SECONDS = 30.0
WAITING_SECONDS = 6.0
MEGABYTES = 64


class SegmentWorker:
    def __init__(self, folder: Path) -> None:
        self.name = f"/tf-adversary-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = Path("/dev/shm" + self.name)
        self.log = folder / f"worker{self.name.replace('/', '-')}.log"
        words = ["-n", "shmem", "-m", self.name, "-M", str(MEGABYTES), "--gpu", "sim", "--warm", "0"]
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tensor_fusion.worker", *words],
                env=clean_environment(TF_ENABLE_LOG="1", TF_LOG_PATH=str(self.log)),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout
        ready = self.process.stdout.readline()
        assert ready.startswith("ready shmem"), ready + self.log.read_text() + self.errors.read_text()
        clean = clean_environment()
        self.env = {**clean, **client_environment(f"shmem+{self.name}+{MEGABYTES}+0", clean)}

    def __enter__(self) -> SegmentWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdout
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self.process.stdout.close()
        self.path.unlink(missing_ok=True)
        assert kind or code == 0

    def check_log(self) -> None:
        """No session was ended by a sanitizer or by a signal of its own doing."""
        log = self.log.read_text() + self.errors.read_text()
        # Of the signals it sends none but 9 and 15.
        for bad in ("AddressSanitizer", "runtime error:", "Traceback", *(f"signal {n} " for n in (4, 6, 7, 8, 11))):
            assert bad not in log, log


@pytest.fixture(scope="module")
def adversary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adversary") / "ring_adversary"
    sources = [ROOT / "tests/native/ring_adversary.c", *sorted((NATIVE / "base").glob("*.c"))]
    flags = ["-std=c17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    includes = [f"-I{NATIVE / name}" for name in ("base", "wire", "ring")]
    subprocess.run([*compiler(), *flags, *includes, *sources, "-lpthread", "-o", out], check=True)
    return out


@pytest.fixture(scope="module")
def bystander(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SegmentWorker]:
    with SegmentWorker(tmp_path_factory.mktemp("bystander")) as worker:
        yield worker
    worker.check_log()


def run_victim(command: list[str | Path], env: dict[str, str], may_wait: bool) -> int | None:
    """Its exit code, None if it had to be ended."""
    victim = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = victim.communicate(timeout=WAITING_SECONDS if may_wait else VICTIM_SECONDS)
    except subprocess.TimeoutExpired:
        victim.kill()
        victim.communicate()
        assert may_wait, f"{command} did not end in {VICTIM_SECONDS} s"
        return None
    assert victim.returncode >= 0, (signal.Signals(-victim.returncode).name, errors.decode())
    return victim.returncode


@pytest.mark.parametrize("area", AREAS)
def test_flipped_bits(adversary: Path, bystander: SegmentWorker, program: Path, tmp_path: Path, area: str) -> None:
    with SegmentWorker(tmp_path) as worker:
        assert succeed([program, "compute"], worker.env) == SIMULATED
        attack = subprocess.Popen(
            [adversary, worker.path, str(SEED), str(SECONDS), area], stdout=subprocess.PIPE, text=True
        )
        codes = []
        with attack:
            for turn in range(10_000):
                if attack.poll() is not None:
                    break
                role = ("compute", "order", "threads")[turn % 3]
                codes.append(run_victim([program, role], worker.env, area in MAY_WAIT))
                assert worker.process.poll() is None, worker.log.read_text()
                assert succeed([program, "compute", str(turn + 1)], bystander.env) == SIMULATED
            assert attack.stdout
            flips = int(attack.stdout.read())
        assert attack.returncode == 0 and flips > 10, flips
        assert codes
        unharmed, waiting = codes.count(0), codes.count(None)
        print(f"{area}: {flips} bits flipped, {len(codes)} victims, {unharmed} unharmed, {waiting} ended while waiting")
        recovers(worker, program)
        idles(worker)
    worker.check_log()


def recovers(worker: SegmentWorker, program: Path) -> None:
    until = time.monotonic() + 20
    while True:
        done = subprocess.run(
            [program, "compute"], env=worker.env, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode == 0:
            assert done.stdout == SIMULATED
            return
        assert time.monotonic() < until, done.stderr + worker.log.read_text()


def idles(worker: SegmentWorker) -> None:
    """Nobody of the worker goes round in a circle afterwards."""
    supervisor = psutil.Process(worker.process.pid)
    until = time.monotonic() + 20
    while supervisor.children() and time.monotonic() < until:
        time.sleep(0.05)
    assert not supervisor.children(), worker.log.read_text()
    before = supervisor.cpu_times()
    time.sleep(1)
    after = supervisor.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.3
