"""Every transport beside the bare GPU in one alternating run: shared memory, TCP loopback, TCP with a delayed wire.

    python tests/gpu/transports.py [--wheel PATH] [--out DIR] [--pairs 5] [--parts A,B] [--sides native,shmem,...]

One process for each side is kept and does its timed parts in turn (programs/turns.py), so that native and remote
alternate without starting anew; what must be measured in a fresh process is. Results must be equal in every turn on
every side. Writes results.json and summary.txt to --out after every part. Exit status 1 if a result differs or a figure
misses its bound. The rows say what is required of each figure; ratios are remote / native, medians over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run as runner
import suite
from compare import wrong_library
from harness import free_port, last_json_line, run_process, say, stop_group, table, write_json
from simulated import simulated_driver

SEGMENT_MB = 2048
SIDES = ("native", "shmem", "tcp", "tcp-0.1", "tcp-0.5", "tcp-0.8")
SHORT = ("native", "shmem", "tcp")
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Bound:
    """What one figure of one remote side must reach: a ratio to native (`ratio`) or a value of its own."""

    part: str
    metric: str
    side: str
    rule: str  # ">= x", "<= x" (ratios), ">=", "<=" (values)
    bound: float
    aim: str = ""

    def reached(self, native: float | None, remote: float | None) -> bool:
        if remote is None:
            return False
        value = remote
        if self.rule.endswith("x"):
            if not native:
                return False
            value = remote / native
        return value >= self.bound if self.rule.startswith(">") else value <= self.bound

    def words(self) -> str:
        ratio = self.rule.endswith("x")
        return f"{self.rule[:2]} {self.bound:g}{' x native' if ratio else ''}" + (
            f", aim {self.aim}" if self.aim else ""
        )


BOUNDS = (
    Bound("generate", "tokens_per_s", "shmem", ">= x", 1.05, "1.2"),
    Bound("generate", "tokens_per_s", "tcp", ">= x", 1.0, "1.15"),
    Bound("generate", "tokens_per_s", "tcp-0.1", ">= x", 0.97, "1.1"),
    Bound("generate", "tokens_per_s", "tcp-0.5", ">= x", 0.95, "1.05"),
    Bound("generate", "tokens_per_s", "tcp-0.8", ">= x", 0.93, "1.0"),
    Bound("census", "round_trips_per_token", "shmem", "<=", 3, "2"),
    Bound("null_call", "null_p50_us", "shmem", "<=", 1.5, "0.7"),
    Bound("null_call", "null_p999_us", "shmem", "<=", 20, "5"),
    Bound("null_call", "null_p50_us", "tcp", "<=", 15, "7"),
    Bound("launch_cost", "launch_us", "shmem", "<=", 0.4, "0.2"),
    Bound("launch_cost", "launches_per_s", "shmem", ">= x", 0.95, "1.0"),
    Bound("small", "sum_item_us", "shmem", "<= x", 1.3, "1.0"),
    Bound("copies", "h2d_pinned_256m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "d2h_pinned_256m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "h2d_pinned_16m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "d2h_pinned_16m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "h2d_pageable_gbps", "shmem", ">= x", 1.5, "3"),
    Bound("copies", "d2h_pageable_gbps", "shmem", ">= x", 1.0, "2"),
    Bound("state", "load_state_dict_s", "shmem", "<= x", 1.0, "0.5"),
    Bound("first_use", "first_use_s", "shmem", "<= x", 0.5, "0.15"),
    Bound("resnet", "step_ms", "shmem", "<= x", 1.0, "0.85"),
    Bound("graph", "replay_us", "shmem", "<= x", 1 / 0.95, "1.0"),
    Bound("four", "tokens_per_s", "shmem", ">= x", 1.0, "1.3"),
)
# Part → the sides that take part, in the order of the run.
PARTS: dict[str, tuple[str, ...]] = {
    "launch_cost": SHORT,
    "null_call": SHORT,
    "first_use": SHORT,
    "generate": SIDES,
    "census": SIDES[1:],
    "small": SHORT,
    "copies": SHORT,
    "state": SHORT,
    "resnet": SHORT,
    "graph": ("native", "shmem", "tcp"),
    "four": ("native", "shmem"),
}
FRESH = ("launch_cost", "null_call", "first_use", "four")
NEEDS_MODEL = ("generate", "census")
CLIENTS = 4
TOKENS = 48  # as in programs/turns.py


@dataclass
class Samples:
    """figures[part][metric][side] in the order of the turns; digests[part][side]; errors as sentences."""

    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    digests: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, part: str, side: str, answer: dict[str, Any] | None, problem: str) -> None:
        if answer is None or problem or "error" in answer:
            self.errors.append(f"{part} {side}: {problem or (answer or {}).get('error', 'no answer')}")
            return
        for metric, value in answer["metrics"].items():
            self.figures.setdefault(part, {}).setdefault(metric, {}).setdefault(side, []).append(float(value))
        if answer["metrics"]:
            self.digests.setdefault(part, {}).setdefault(side, []).append(str(answer["digest"]))

    def median(self, part: str, metric: str, side: str) -> float | None:
        values = self.figures.get(part, {}).get(metric, {}).get(side)
        return statistics.median(values) if values else None

    def equal(self, part: str) -> bool:
        return len({digest for side in self.digests.get(part, {}).values() for digest in side}) == 1


class Kept:
    """A process of programs/turns.py that waits for its turn."""

    def __init__(self, place: Place, side: str, tag: str) -> None:
        self.side = side
        self.log = place.logs / f"turns-{tag}-{side}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.err = self.log.with_suffix(".err").open("wb")
        command = [sys.executable, str(suite.PROGRAMS_FOLDER / "turns.py"), str(place.options.work / "model")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.err, env=place.environment(side),
            cwd=place.options.work, start_new_session=True, text=True,
        )  # fmt: skip
        self.place = place

    def tell(self, name: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": name}) + "\n")
            self.process.stdin.flush()

    def answer(self) -> tuple[dict[str, Any] | None, str]:
        """The next line, or what went wrong; a process that is silent for too long is ended."""
        assert self.process.stdout is not None
        signal.signal(signal.SIGALRM, lambda *_: stop_group(self.process))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        try:
            while line := self.process.stdout.readline():
                with contextlib.suppress(json.JSONDecodeError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        wrong = "" if "imported" in value else self.wrong(value)
                        return value, wrong
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        tail = self.log.with_suffix(".err").read_text(errors="replace").strip().splitlines()[-3:]
        return None, f"ended with {self.process.poll()}: " + " | ".join(tail)

    def wrong(self, value: dict[str, Any]) -> str:
        side: Any = "native" if self.side == "native" else "remote"
        return wrong_library(side, value.get("libraries"), self.place.client_folder)

    def end(self) -> None:
        stop_group(self.process)
        self.err.close()


class Place:
    """Where the product is installed, its workers, and the environment of each side."""

    def __init__(self, options: runner.Options, sides: Sequence[str], simulated: bool = False) -> None:
        self.options = options
        self.logs = options.work / "logs"
        self.install = runner.install_wheel(options)
        self.client_folder = runner.client_library_folder(self.install, self.logs)
        self.children: list[subprocess.Popen[Any]] = []
        self.connections: dict[str, str] = {}
        env = runner.install_env(self.install)
        self.native_library = simulated_driver(self.install, options.work / "simulated") if simulated else None
        worker = [str(self.install / "bin" / "tensor-fusion-worker"), *(("--gpu", "sim") if simulated else ())]
        if any(side.startswith("tcp") for side in sides):
            port = free_port()
            self._start([*worker, "-n", "native", "-p", str(port), "--warm", "2"], env, "worker-tcp", "ready")
            self.connections["tcp"] = f"native+127.0.0.1+{port}+0"
            for side in sides:
                if side.startswith("tcp-"):
                    self.connections[side] = self._relay(port, float(side.removeprefix("tcp-")), env)
        if "shmem" in sides:
            name = f"/tf_transports_{os.getpid()}"
            command = [*worker, "-n", "shmem", "-m", name, "-M", str(SEGMENT_MB), "--warm", "2"]
            self._start(command, env, "worker-shmem", "ready")
            self.connections["shmem"] = f"shmem+{name}+{SEGMENT_MB}+0"

    def _relay(self, port: int, rtt_ms: float, env: dict[str, str]) -> str:
        listen = free_port()
        program = self.install / "tensor_fusion" / "_native" / "bin" / "tensor-fusion-bench"
        command = [str(program), "relay", "--listen", str(listen), "--to", f"127.0.0.1:{port}"]
        command += ["--delay-us", str(round(rtt_ms * 500))]
        self._start(command, env, f"relay-{rtt_ms:g}", "")
        return f"native+127.0.0.1+{listen}+0"

    def _start(self, command: list[str], env: dict[str, str], name: str, word: str) -> None:
        out = self.logs / f"{name}.out"
        out.parent.mkdir(parents=True, exist_ok=True)
        full = {**env, "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(self.logs / f"{name}.log")}
        with out.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=full,
                start_new_session=True,
            )  # fmt: skip
        self.children.append(process)
        end = time.monotonic() + 60
        while word and not any(line.startswith(word) for line in out.read_text(errors="replace").splitlines()):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {out.read_text(errors='replace')[-600:]}")
            time.sleep(0.05)
        time.sleep(0 if word else 0.3)

    def environment(self, side: str) -> dict[str, str]:
        env = {n: v for n, v in os.environ.items() if not n.startswith(("TF_", "TENSOR_FUSION_"))}
        env.update(
            KERNELS_PTX=str(suite.KERNELS_PTX), PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false",
            HF_HUB_OFFLINE="1", CUBLAS_WORKSPACE_CONFIG=":4096:8",
        )  # fmt: skip
        if side == "native" and self.native_library is not None:
            env["LD_LIBRARY_PATH"] = str(self.native_library)
        if side != "native":
            env["TENSOR_FUSION_OPERATOR_CONNECTION_INFO"] = self.connections[side]
            env["LD_LIBRARY_PATH"] = ":".join([str(self.client_folder), *filter(None, [env.get("LD_LIBRARY_PATH")])])
            env["TRITON_LIBCUDA_PATH"] = str(self.client_folder)
            env.update(TF_ENABLE_LOG="1", TF_LOG_LEVEL="warn", TF_LOG_PATH=str(self.logs / f"client-{side}.log"))
        return env

    def close(self) -> None:
        for process in self.children:
            stop_group(process)


def turns(sides: Sequence[str], pairs: int) -> Iterator[str]:
    """Each side once a turn, in an order that is turned round every time, so that none always follows another."""
    for turn in range(pairs):
        yield from sides if turn % 2 == 0 else tuple(reversed(sides))


def run_c(place: Place, part: str, sides: Sequence[str], pairs: int, samples: Samples) -> None:
    program = str(place.options.work / "bin" / part)
    for index, side in enumerate(turns(sides, pairs)):
        done = run_process([program], place.environment(side), 60, place.logs / f"{part}-{index}-{side}")
        answer = last_json_line(done.stdout)
        problem = "" if done.returncode == 0 and answer else f"ended with {done.returncode}: {done.stderr[-300:]}"
        samples.add(part, side, answer, problem)


def import_all(groups: Sequence[Sequence[Kept]]) -> None:
    for group in groups:
        for process in group:
            process.answer()


def run_first_use(kept: Sequence[Kept], samples: Samples) -> None:
    for process in kept:
        process.tell("first_use")
        answer, problem = process.answer()
        samples.add("first_use", process.side, answer, problem)
        process.end()
        time.sleep(1.0)  # the worker prepares the session of the next client


def load_all(kept: Sequence[Kept], samples: Samples) -> None:
    """Every process loads the model and generates once, beside each other: not timed against each other."""
    for process in kept:
        process.tell("load")
    for process in kept:
        answer, problem = process.answer()
        samples.add("load", process.side, answer, problem)


def run_kept(kept: dict[str, Kept], parts: Sequence[str], pairs: int, samples: Samples, save: Any) -> None:
    for part in parts:
        taking = [side for side in PARTS[part] if side in kept]
        for side in turns(taking, 1 if part == "census" else pairs):
            kept[side].tell(part)
            answer, problem = kept[side].answer()
            samples.add(part, side, answer, problem)
        save(part)


def run_four(groups: dict[str, list[Kept]], pairs: int, samples: Samples) -> None:
    """Four processes of one side generate at the same time; the figure is their tokens together."""
    for side in turns(tuple(groups), pairs):
        begun = time.monotonic()
        for process in groups[side]:
            process.tell("generate")
        answers = [process.answer() for process in groups[side]]
        seconds = time.monotonic() - begun
        problems = [problem or str((answer or {}).get("error", "")) for answer, problem in answers]
        digests = {str((answer or {}).get("digest")) for answer, _ in answers}
        whole = {"metrics": {"tokens_per_s": CLIENTS * TOKENS / seconds}, "digest": ",".join(sorted(digests))}
        samples.add("four", side, whole, "; ".join(filter(None, problems)))


def rows(samples: Samples, parts: Sequence[str], sides: Sequence[str]) -> tuple[list[list[str]], bool]:
    lines, good = [], not samples.errors
    for part in parts:
        equal = samples.equal(part)
        good &= equal
        lines.append([part, "results", "", "", "", "", "equal" if equal else "DIFFER", "ok" if equal else "NO"])
        for metric, by_side in samples.figures.get(part, {}).items():
            native = samples.median(part, metric, "native")
            for side in (s for s in sides if s in by_side and s != "native"):
                remote = samples.median(part, metric, side)
                bound = next((b for b in BOUNDS if (b.part, b.metric, b.side) == (part, metric, side)), None)
                reached = bound is None or bound.reached(native, remote)
                good &= reached
                lines.append(
                    [
                        part, metric, side, f"{native:.4g}" if native is not None else "-", f"{remote:.4g}",
                        f"{remote / native:.3f}" if native and remote is not None else "-",
                        bound.words() if bound else "", "" if bound is None else "ok" if reached else "NO",
                    ]
                )  # fmt: skip
    return lines, good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--out", type=Path, default=suite.REPOSITORY / ".gpu" / "out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor-fusion-gpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--sides", default=",".join(SIDES))
    given = parser.parse_args()
    parts = [name for name in PARTS if name in given.parts.split(",")]
    sides = [name for name in SIDES if name in given.sides.split(",")]
    wheel = given.wheel or sorted((suite.REPOSITORY / ".gpu").glob("tensor_fusion-*.whl"))[-1]
    options = runner.Options(wheel.resolve(), given.out.resolve(), given.work.resolve(), (), given.pairs, 4, 1e9)
    given.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    state = runner.Run(options, Path(), Path(), None, begun)  # type: ignore[arg-type]
    runner.build(state, [p for p in suite.programs() if p.name in ("launch_cost", "null_call")])
    samples = Samples()
    samples.errors += state.notes
    place = Place(options, sides)

    def save(done: str) -> bool:
        say(f"[{time.monotonic() - begun:6.1f} s] {done} done, {len(samples.errors)} errors")
        lines, good = rows(samples, [p for p in ("load", *parts) if p in samples.figures], sides)
        text = table(("part", "figure", "side", "native", "remote", "ratio", "required", "ok"), lines)
        errors = "".join(f"\nERROR {error}" for error in samples.errors)
        (given.out / "summary.txt").write_text(text + errors + "\n")
        write_json(
            given.out / "results.json",
            {
                "machine": runner.machine(), "wheel": wheel.name, "pairs": given.pairs, "rows": lines,
                "figures": samples.figures, "digests": samples.digests, "errors": samples.errors,
            },
        )  # fmt: skip
        return good

    good = False
    every: list[Kept] = []

    def processes(for_sides: Sequence[str], tag: str) -> list[Kept]:
        made = [Kept(place, side, f"{tag}{index}") for index, side in enumerate(for_sides)]
        every.extend(made)
        return made

    def taking(part: str) -> list[str]:
        return [side for side in PARTS[part] if side in sides] if part in parts else []

    try:
        # Everything imports beside everything else, and the model is made meanwhile.
        kept_parts = [part for part in parts if part not in FRESH]
        first = processes(tuple(turns(taking("first_use"), given.pairs)), "first")
        kept = {p.side: p for p in processes(sides if kept_parts else (), "kept")}
        groups = {side: processes([side] * CLIENTS, f"four-{side}") for side in taking("four")}
        if any(part in (*NEEDS_MODEL, "four") for part in parts):
            runner.prepare_model(state)
            samples.errors += state.notes
        import_all([first, list(kept.values()), *groups.values()])
        save("imports")
        for part in ("launch_cost", "null_call"):
            if part in parts:
                run_c(place, part, taking(part), given.pairs, samples)
                save(part)
        run_first_use(first, samples)
        save("first_use")
        if any(part in NEEDS_MODEL for part in parts):
            load_all(list(kept.values()), samples)
        load_all([process for group in groups.values() for process in group], samples)
        save("load")
        run_kept(kept, kept_parts, given.pairs, samples, save)
        run_four(groups, given.pairs, samples)
        good = save("all")
    finally:
        for process in every:
            process.end()
        place.close()
    say((given.out / "summary.txt").read_text())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
