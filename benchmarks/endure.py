"""What a worker endures: clients, sessions and workers that are killed in the middle of their work, or hours of work.

    python benchmarks/endure.py --seconds N [--transport native|tls|shmem] [--clients N] [--quiet] [--log FILE]

Clients in C work all the time and look at each byte (endure.c). Every few milliseconds somebody is killed by SIGKILL:
a client, a session, and now and then the worker itself, which is started anew. With --quiet nobody is, and each client
works on: a soak. About every half minute everything stops, and it must be as at the start: no session but the warm
ones, the memory limit whole, no descriptor of the supervisor more, and its memory grown by no more than 24 MiB in all.
What is not so, a wrong byte, a wrong code, or a client that does not hear within ten seconds that its session is gone,
ends the run with exit status 1.

Each run adds a line of JSON to --log (benchmarks/results/endurance.jsonl): kills by kind, seconds, turns of checking,
the supervisor's memory and descriptors at its first and last check. `--sum` prints what all lines come to.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tensor_fusion import apigen
from tensor_fusion.abi import Teleport, native_folder
from tensor_fusion.client.files import client_environment, client_folder

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "benchmarks/results/endurance.jsonl"
SECRET = "endurance-secret"
LIMIT_MB = 2048
WARM = 2
LOST, WRONG = 3, 4
HEARD = 10.0  # seconds in which a client hears that its session is gone
CHECK_EVERY = 30.0
GROWN_MOST = 24 << 20


class Broken(Exception):
    """Something did not hold."""


def build(folder: Path) -> Path:
    """The client, linked with our libcuda as any program would be. Raises SystemExit without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or sys.exit("endure: there is no C compiler")
    subprocess.run(
        [sys.executable, "-m", apigen.__name__, "--api", str(ROOT / "api"), "--out", str(folder)], check=True
    )
    out, client = folder / "endure", client_folder()
    link = [f"-L{client}", f"-Wl,-rpath-link,{client}", "-lcuda"]
    source = ROOT / "benchmarks/endure.c"
    subprocess.run([compiler, "-O2", "-std=gnu17", f"-I{folder}", str(source), "-o", str(out), *link], check=True)
    return out


@dataclass
class Worker:
    """A worker on the simulated GPU."""

    transport: str
    folder: Path
    process: subprocess.Popen[str] = field(init=False)
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "LD_"))}
        clean["TF_NATIVE_DIR"] = str(native_folder())
        own = {**clean, "TF_GPU_MEMORY_LIMIT": str(LIMIT_MB), "TF_ENABLE_LOG": "1"}
        own["TF_LOG_PATH"] = str(self.folder / "worker.log")
        name = f"/tf-endure-{os.getpid()}"
        place = ["-n", "shmem", "-m", name, "-M", "256"]
        if self.transport != "shmem":
            place = ["-p", "0", "--host", "127.0.0.1"]
        if self.transport == "tls":
            keys = self.folder / "keys"
            keys.write_text(f"{SECRET}\n")
            keys.chmod(0o600)
            own |= {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)}
        words = [*place, "--gpu", "sim", "--warm", str(WARM), "--max-clients-per-address", "1024"]
        command = [sys.executable, "-m", "tensor_fusion.worker", *words]
        self.process = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        ready = self.process.stdout.readline()
        if not ready.startswith("ready "):
            raise Broken(f"the worker did not start: {ready!r}")
        if self.transport == "shmem":
            connection = f"shmem+{name}+256+0"
        else:
            port = ready.split()[2].rpartition(":")[2]
            connection = f"native+127.0.0.1+{port}+0" + (f"+{SECRET}" if self.transport == "tls" else "")
        self.environment = {**clean, **client_environment(connection, clean)}

    def sessions(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [one for one in found if _file(one).endswith("/tensor-fusion-session")]

    def figures(self) -> tuple[int, int]:
        """Resident bytes and descriptors of the supervisor."""
        process = psutil.Process(self.process.pid)
        return process.memory_info().rss, process.num_fds()


def _file(process: psutil.Process) -> str:
    """What it runs; its command line is its client's."""
    try:
        return process.exe()
    except psutil.Error:  # it has just ended
        return ""


class Run:
    def __init__(self, transport: str, clients: int, quiet: bool, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tf-endure-"))
        self.program = build(self.folder)
        self.random = random.Random(seed)
        self.quiet = quiet
        self.count = clients
        self.kills: Counter[str] = Counter()
        self.checks = 0
        self.clients: list[subprocess.Popen[str]] = []
        self.working: set[int] = set()
        self.worker = Worker(transport, self.folder)
        self.first: tuple[int, int] | None = None
        self.last = (0, 0)
        self.free = self.free_bytes()

    def free_bytes(self) -> int:
        done = subprocess.run(
            [self.program, "free"],
            env=self.worker.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise Broken(f"a client that only asks ended with {done.returncode}: {done.stdout}{done.stderr}")
        return int(done.stdout)

    def client(self) -> subprocess.Popen[str]:
        seed = str(self.random.getrandbits(62))
        environment = {**self.worker.environment, "TF_ENABLE_LOG": "0"}
        return subprocess.Popen(
            [self.program, seed],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ended(self, client: subprocess.Popen[str], expected: set[int]) -> None:
        """Wait for its end and take it off the list. Raises Broken."""
        try:
            code = client.wait(HEARD)
        except subprocess.TimeoutExpired:
            raise Broken(f"a client has not ended {HEARD:.0f} s after its session or worker was killed") from None
        assert client.stdin and client.stdout
        said = client.stdout.read().replace("works\n", "")
        client.stdin.close()
        client.stdout.close()
        self.clients.remove(client)
        self.working.discard(client.pid)
        if code not in expected or said:
            raise Broken(f"a client ended with {code} instead of {sorted(expected)}: {said}")

    def at_work(self) -> list[subprocess.Popen[str]]:
        """Clients that have said that they work, and one of five that has not."""
        for client in self.clients:
            assert client.stdout
            if client.pid not in self.working and select.select([client.stdout], [], [], 0)[0]:
                self.working.add(client.pid)
        begins = self.random.random() < 0.2
        return [client for client in self.clients if begins or client.pid in self.working]

    def fill(self) -> None:
        while len(self.clients) < self.count:
            self.clients.append(self.client())

    def kill_client(self) -> None:
        victims = self.at_work()
        if not victims:
            return
        victim = self.random.choice(victims)
        victim.kill()
        self.ended(victim, {-signal.SIGKILL, LOST})
        self.kills["clients"] += 1

    def kill_session(self) -> None:
        sessions = self.worker.sessions()
        if not sessions or not self.at_work():
            return
        self.random.choice(sessions).kill()
        self.kills["sessions"] += 1
        time.sleep(0.002)
        for client in list(self.clients):
            if client.poll() is not None:
                self.ended(client, {LOST})

    def kill_worker(self) -> None:
        sessions = self.worker.sessions()
        self.worker.process.kill()
        self.worker.process.wait()
        self.kills["workers"] += 1
        for client in list(self.clients):
            self.ended(client, {LOST})
        _, alive = psutil.wait_procs(sessions, timeout=HEARD)
        if alive:
            raise Broken(f"{len(alive)} sessions live {HEARD:.0f} s after their worker was killed")
        self.worker.start()
        self.first = None

    def check(self) -> None:
        """Everything stops, and must be as at the start."""
        for client in list(self.clients):
            assert client.stdin
            client.stdin.close()  # its program ends after the turn that it is in
            self.ended(client, {0, LOST})
        until = time.monotonic() + HEARD
        while len(self.worker.sessions()) != WARM and time.monotonic() < until:
            time.sleep(0.05)
        if (left := len(self.worker.sessions())) != WARM:
            raise Broken(f"{left} sessions are left where {WARM} are warm")
        if (free := self.free_bytes()) != self.free:
            raise Broken(f"{self.free - free} bytes of the memory limit are lost")
        until = time.monotonic() + HEARD
        self.last = self.worker.figures()
        # A session that is ending has its descriptor for a moment beside the one that takes its place.
        while self.first and self.last[1] > self.first[1] and time.monotonic() < until:
            time.sleep(0.05)
            self.last = self.worker.figures()
        self.first = self.first or self.last
        if self.last[1] > self.first[1] or self.last[0] > self.first[0] + GROWN_MOST:
            raise Broken(f"the supervisor has {self.last} bytes and descriptors, and had {self.first}")
        self.checks += 1

    def go_on(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.fill()
        time.sleep(0.5)
        self.check()
        due = time.monotonic() + CHECK_EVERY
        while time.monotonic() < end:
            self.fill()
            if self.quiet:
                time.sleep(0.5)
                for client in list(self.clients):
                    if client.poll() is not None:
                        self.ended(client, set())
            else:
                time.sleep(self.random.random() * 0.02)
                at = self.random.random()
                if at < 0.002:
                    self.kill_worker()
                elif at < 0.5:
                    self.kill_session()
                else:
                    self.kill_client()
            if time.monotonic() > due:
                self.check()
                due = time.monotonic() + CHECK_EVERY
        self.check()

    def close(self, keep: bool) -> None:
        """Nothing goes on; `keep`: the folder with the worker's log stays."""
        for client in self.clients:
            client.kill()
            client.wait()
        self.worker.process.terminate()
        self.worker.process.wait(30)
        if not keep:
            shutil.rmtree(self.folder)


def total(path: Path) -> str:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kills: Counter[str] = Counter()
    for line in lines:
        kills.update(line["kills"])
    of_each = ", ".join(f"{count:,} of {kind}" for kind, count in sorted(kills.items()))
    soaked = sum(line["seconds"] for line in lines if line["quiet"]) / 3600
    broken = sum(line["broken"] != "" for line in lines)
    return f"{len(lines)} runs: {sum(kills.values()):,} kills ({of_each}); {soaked:.2f} h of soak; {broken} broken"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--transport", choices=("native", "tls", "shmem"), default="native")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--quiet", action="store_true", help="nobody is killed: a soak")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--sum", action="store_true", help="only print what the lines of the log come to")
    options = parser.parse_args()
    if options.sum:
        print(total(options.log))
        return 0
    begin, broken = time.monotonic(), ""
    run = Run(options.transport, options.clients, options.quiet, options.seed)
    try:
        run.go_on(options.seconds)
    except Broken as reason:
        broken = str(reason)
        print(f"endure: {broken}; the worker's log is in {run.folder}", file=sys.stderr)
    line: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "transport": options.transport,
        "quiet": options.quiet,
        "seed": options.seed,
        "seconds": round(time.monotonic() - begin),
        "clients": options.clients,
        "kills": dict(run.kills),
        "checks": run.checks,
        "first": run.first,
        "last": run.last,
        "schema": Teleport().schema.hex(),
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "broken": broken,
    }
    with options.log.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    run.close(keep=bool(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
