"""Runs random programs on a driver library, in batches of one process each, until the time is used up or one fails.

    python tests/random_programs/run.py [--seconds 60] [--programs N] [--seed 1] [--library libcuda.so.1]
    python tests/random_programs/run.py --worker tcp|shmem    # on a worker of the simulated GPU that it starts

The environment says which driver it is: the machine's own, ours with its connection, or a file by --library. A program
that fails is shrunk and printed; it can then become a file of shrunk/, which tests/test_random_programs.py runs. Exit
status 1 if one failed. Without --binary the interpreter is compiled first, with the types that api/ describes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from random_programs.generate import generate
from random_programs.operations import Program, programs_of, text_of
from random_programs.shrink import shrink
from random_programs.state import FEATURES, SERVED

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = ROOT / "tests" / "kernels"
BATCH = 200  # programs of one process
PROGRAM_SECONDS = 20  # after which one counts as hung


def compile_interpreter(folder: Path, compiler: str = "cc") -> Path:
    """The interpreter in `folder`, with the types that stand in for NVIDIA's header."""
    folder.mkdir(parents=True, exist_ok=True)
    source = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    generate_types = [sys.executable, "-m", "tensor_fusion.apigen", "--api", str(ROOT / "api"), "--out", str(folder)]
    subprocess.run(generate_types, env=source, check=True, timeout=120)
    flags = [
        "-std=gnu17",
        "-D_GNU_SOURCE",
        "-O2",
        "-g",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Werror",
        "-Wno-sign-conversion",
    ]
    out = folder / "random_programs"
    sources = sorted(map(str, HERE.glob("*.c")))
    subprocess.run(
        [compiler, *flags, f"-I{folder}", *sources, "-o", str(out), "-ldl", "-pthread"], check=True, timeout=300
    )
    return out


@dataclass
class Driver:
    """A driver library and how to run programs on it."""

    binary: Path
    library: str = "libcuda.so.1"
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    program_seconds: int = PROGRAM_SECONDS
    opened: str = ""  # the file that the loader took, as the last run tells

    def run(self, text: str) -> str:
        """What is wrong, or nothing; raises RuntimeError if the programs make no sense."""
        command = [str(self.binary), self.library, str(KERNELS), str(self.program_seconds)]
        done = subprocess.run(command, input=text, env=self.env, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines()[:1]:
            self.opened = line.removeprefix("library ")
        if done.returncode == 2:
            raise RuntimeError(done.stderr.strip())
        if done.returncode == 0 and done.stdout.splitlines()[-1:] and done.stdout.splitlines()[-1].startswith("ran "):
            return ""
        what = "\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAIL", "AT", "STREAM")))
        return what or f"the process ended with {done.returncode}: {done.stderr.strip()[-500:]}"

    def fails(self, program: Program, times: int) -> bool:
        return bool(self.run("".join(text_of("shrunk", program) for _ in range(times))))


@dataclass
class Outcome:
    programs: int = 0
    operations: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    failure: str = ""
    shrunk: str = ""

    def sentence(self) -> str:
        rate = self.programs / self.seconds if self.seconds else 0.0
        return f"{self.programs} programs, {self.operations} operations, {self.seconds:.0f} s, {rate:.0f} programs/s"


def shrunk_text(driver: Driver, program: Program, features: frozenset[str]) -> str:
    """The program made small; if it fails seldom, it is run often."""
    for times in (1, 20, 200):
        if driver.fails(program, times):
            return text_of("shrunk", shrink(program, partial(driver.fails, times=times), features))
    return "# did not fail again by itself\n" + text_of("whole", program)


def failing(text: str, what: str) -> Program:
    """The program that the failure names, or all of the batch as one if it names none."""
    words = what.split()
    name = words[2].rstrip(":") if len(words) > 2 and words[:2] == ["FAIL", "program"] else ""
    found = dict(programs_of(text))
    return found.get(name) or [op for program in found.values() for op in program]


def run_for(driver: Driver, seconds: float, seed: int, features: frozenset[str], most: float = float("inf")) -> Outcome:
    """Batches from `seed` on, until `seconds` are over, `most` programs have run, or one fails."""
    began, outcome = time.monotonic(), Outcome()
    while time.monotonic() - began < seconds and outcome.programs < most and not outcome.failure:
        batch = [(seed + i, generate(seed + i, features)) for i in range(BATCH)]
        seed += BATCH
        text = "".join(text_of(str(number), program) for number, program in batch)
        outcome.failure = driver.run(text)
        if outcome.failure:
            outcome.shrunk = shrunk_text(driver, failing(text, outcome.failure), features)
            continue
        outcome.programs += len(batch)
        outcome.operations += sum(len(program) for _, program in batch)
        outcome.kinds.update(op.name for _, program in batch for op in program)
        outcome.seconds = time.monotonic() - began
    outcome.seconds = time.monotonic() - began
    return outcome


def features_of(names: str | None) -> frozenset[str]:
    """What the stack serves, or the features that are named with commas, or `all`."""
    if names is None:
        return SERVED
    features = frozenset(FEATURES if names == "all" else filter(None, names.split(",")))
    if features - set(FEATURES):
        raise SystemExit(f"unknown features in {names!r}; there are {', '.join(FEATURES)}")
    return features


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--programs", type=float, default=float("inf"))
    parser.add_argument("--worker", choices=("tcp", "shmem"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--library", default="libcuda.so.1")
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--features", help="of state.py, with commas, or `all`; by default what the stack serves")
    parser.add_argument("--program", type=Path, help="run the programs of this file instead")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as worker:
        driver = Driver(given.binary or compile_interpreter(Path(folder)), given.library)
        if given.worker:
            from stack.harness import Worker  # what only a machine for development has

            transport = "shmem" if given.worker == "shmem" else "native"
            driver.env = worker.enter_context(Worker(transport=transport)).env
        if given.program:
            what = driver.run(given.program.read_text())
            print(what or "right")
            return bool(what)
        outcome = run_for(driver, given.seconds, given.seed, features_of(given.features), given.programs)
    print(f"{driver.opened}, seeds {given.seed} and on: {outcome.sentence()}")
    print(", ".join(f"{name} {count}" for name, count in sorted(outcome.kinds.items())))
    if outcome.failure:
        print(outcome.failure, outcome.shrunk, sep="\n")
    return bool(outcome.failure)


if __name__ == "__main__":
    sys.exit(main())
