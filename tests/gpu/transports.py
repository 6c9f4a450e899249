"""Every transport beside the bare GPU in one alternating run: shared memory, TCP loopback, TCP with a delayed wire.

    python tests/gpu/transports.py [--wheel PATH] [--out DIR] [--pairs 5] [--seconds N] [--parts A,B] [--sides A,B]
    python tests/gpu/transports.py --before OLDER.whl   # shmem and tcp of both wheels in turn, and their paired ratio
    python tests/gpu/transports.py --quick          # the two figures that were missed, native and shmem, 7 turns

One process for each side is kept and does its timed parts in turn (programs/turns.py), so that native and remote
alternate without starting anew; what must be measured in a fresh process is. Results must be equal in every turn on
every side. summary.txt and results.json (every sample, in the order of the turns) are written to --out as samples come,
so that a run that is cut short, or a part that fails, costs no other samples. After --seconds no turn is begun that
would not be over in time; what was left out is named. Exit status 1 if a result differs, a part has no samples or a
figure misses its bound. Ratios are remote / native, medians over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run as runner
import suite
import turn_samples
from compare import wrong_library
from harness import free_port, last_json_line, run_process, say, secret_env, stop_group
from simulated import simulated_driver
from turn_samples import BEFORE, C_PARTS, FRESH, GUARDED, NEEDS_LOAD, NEEDS_MODEL, PARTS, SHORT, SIDES, Budget, Samples

SEGMENT_MB = 2048
PATIENCE_S = 180.0
SAVE_S = 5.0  # at the most so much of a run is lost when it is killed
CLIENTS = 4
TOKENS = 48  # as in programs/turns.py
TURNS = suite.PROGRAMS_FOLDER / "turns.py"


class Kept:
    """A process of programs/turns.py that waits for its turn."""

    def __init__(self, place: Place, side: str, tag: str) -> None:
        self.side = side
        self.log = place.logs / f"turns-{tag}-{side}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.err = self.log.with_suffix(".err").open("wb")
        command = [sys.executable, str(TURNS), str(place.options.work / "model")]
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)  # its output ends a moment before itself
        tail = self.log.with_suffix(".err").read_text(errors="replace").strip().splitlines()[-3:]
        return None, f"ended with {self.process.poll()}: " + " | ".join(tail)

    def wrong(self, value: dict[str, Any]) -> str:
        side: Any = "native" if self.side == "native" else "remote"
        return wrong_library(side, value.get("libraries"), self.place.client_of(self.side))

    def end(self) -> None:
        stop_group(self.process)
        self.err.close()


class Place:
    """Where the product is installed, its workers, and the environment of each side.

    Beside the sides that are measured there are `tls` (TCP with a secret) and `jail` (shared memory, the full jail).
    """

    def __init__(
        self, options: runner.Options, sides: Sequence[str], simulated: bool = False, before: Path | None = None
    ) -> None:
        self.options = options
        self.logs = options.work / "logs"
        self.install = runner.install_wheel(options)
        self.client_folder = runner.client_library_folder(self.install, self.logs)
        self.children: list[subprocess.Popen[Any]] = []
        self.connections: dict[str, str] = {}
        self.native_library = simulated_driver(self.install, options.work / "simulated") if simulated else None
        more = ("--gpu", "sim") if simulated else ()
        self._serve(self.install, [side for side in sides if not side.startswith(BEFORE)], "", more)
        older = [side.removeprefix(BEFORE) for side in sides if side.startswith(BEFORE)]
        if before is not None and older:
            install = runner.install_wheel(dataclasses.replace(options, wheel=before, work=options.work / "before"))
            self.client_before = runner.client_library_folder(install, self.logs)
            self._serve(install, older, BEFORE, more)

    def _serve(self, install: Path, sides: Sequence[str], prefix: str, more: Sequence[str]) -> None:
        """Start the workers of one product for `sides`; their connections stand under the prefixed names."""
        env = runner.install_env(install)
        worker = [str(install / "bin" / "tensor-fusion-worker"), *more]
        if any(side.startswith("tcp") for side in sides):
            port = free_port()
            command = [*worker, "-n", "native", "-p", str(port), "--warm", "2"]
            self._start(command, env, f"{prefix}worker-tcp", "ready")
            self.connections[prefix + "tcp"] = f"native+127.0.0.1+{port}+0"
            for side in sides:
                if side.startswith("tcp-"):
                    self.connections[prefix + side] = self._relay(port, float(side.removeprefix("tcp-")), env)
        if "tls" in sides:
            port = free_port()
            command = [*worker, "-n", "native", "-p", str(port), "--warm", "2"]
            secret = secret_env("gpu-run", self.logs / f"{prefix}keys")
            self._start(command, {**env, **secret}, f"{prefix}worker-tls", "ready")
            self.connections[prefix + "tls"] = f"native+127.0.0.1+{port}+0+gpu-run"
        for side, jail in (("shmem", ()), ("jail", ("--jail", "full", "--require-jail"))):
            if side in sides:
                name = f"/tf_transports_{prefix}{side}_{os.getpid()}"
                command = [*worker, "-n", "shmem", "-m", name, "-M", str(SEGMENT_MB), "--warm", "2", *jail]
                self._start(command, env, f"{prefix}worker-{side}", "ready")
                self.connections[prefix + side] = f"shmem+{name}+{SEGMENT_MB}+0"

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
                self.close()
                raise RuntimeError(f"{name} did not start: {out.read_text(errors='replace')[-600:]}")
            time.sleep(0.05)
        time.sleep(0 if word else 0.3)

    def environment(self, side: str) -> dict[str, str]:
        env = {n: v for n, v in os.environ.items() if not n.startswith(("TF_", "TENSOR_FUSION_"))}
        # What NVRTC compiles is kept where CUDA_CACHE_PATH says, natively by the driver, remotely by the client.
        kind = "native" if side == "native" else "before" if side.startswith(BEFORE) else "remote"
        cache = self.options.work / "cache" / kind
        cache.mkdir(parents=True, exist_ok=True)
        env.update(
            CUDA_CACHE_PATH=str(cache), KERNELS_PTX=str(suite.KERNELS_PTX), PYTHONUNBUFFERED="1",
            TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", CUBLAS_WORKSPACE_CONFIG=":4096:8",
        )  # fmt: skip
        if side == "native" and self.native_library is not None:
            env["LD_LIBRARY_PATH"] = str(self.native_library)
        if side != "native":
            env["TENSOR_FUSION_OPERATOR_CONNECTION_INFO"] = self.connections[side]
            client = self.client_of(side)
            env["LD_LIBRARY_PATH"] = ":".join([str(client), *filter(None, [env.get("LD_LIBRARY_PATH")])])
            env["TRITON_LIBCUDA_PATH"] = str(client)
            env.update(TF_ENABLE_LOG="1", TF_LOG_LEVEL="warn", TF_LOG_PATH=str(self.logs / f"client-{side}.log"))
        return env

    def client_of(self, side: str) -> Path:
        return self.client_before if side.startswith(BEFORE) else self.client_folder

    def close(self) -> None:
        for process in self.children:
            stop_group(process)


class Turns:
    """One run: the processes of every side, and the parts that they do in turn."""

    def __init__(self, place: Place, sides: Sequence[str], parts: Sequence[str], pairs: int, budget: Budget) -> None:
        self.place, self.sides, self.parts, self.pairs, self.budget = place, tuple(sides), tuple(parts), pairs, budget
        self.samples = Samples()
        self.every: list[Kept] = []
        self.kept: dict[str, Kept] = {}
        self.revived: set[str] = set()
        self.facts: dict[str, Any] = {}
        self.saved = 0.0

    # ---- what is written ----

    def save(self) -> bool:
        self.saved = time.monotonic()
        asked = ["load", *self.parts] if "load" in self.samples.parts() else list(self.parts)
        facts = {**self.facts, "seconds": round(self.budget.spent(), 1), "notes": self.budget.notes}
        return turn_samples.write(self.place.options.out, self.samples, asked, self.sides, facts)

    def add(self, part: str, side: str, answer: dict[str, Any] | None, problem: str, turn: int = 0) -> None:
        self.samples.add(part, side, answer, problem, turn, self.budget.spent())
        if time.monotonic() - self.saved > SAVE_S:
            self.save()

    def attempt(self, part: str, body: Callable[[], None]) -> None:
        """One part; whatever happens in it is an error of its own name and not the end of the others."""
        if self.budget.over():
            self.budget.notes.append(f"{part}: not begun, the time was used up")
        else:
            try:
                body()
            except Exception as error:  # noqa: BLE001 - the other parts' samples must not be lost
                self.samples.errors.append(f"{part}: {type(error).__name__}: {error}")
        self.save()
        say(f"[{self.budget.spent():6.1f} s] {part} done, {len(self.samples.errors)} errors")

    # ---- processes ----

    def taking(self, part: str) -> list[str]:
        if part not in self.parts:
            return []
        return [side for side in self.sides if GUARDED.get(side, side.removeprefix(BEFORE)) in PARTS[part]]

    def start(self, side: str, tag: str) -> Kept:
        process = Kept(self.place, side, tag)
        self.every.append(process)
        return process

    def imported(self, process: Kept) -> bool:
        answer, problem = process.answer()
        if answer is None:
            self.samples.errors.append(f"imports {process.side}: {problem}")
        return answer is not None

    def ask(self, part: str, process: Kept, turn: int) -> None:
        process.tell(part)
        answer, problem = process.answer()
        self.add(part, process.side, answer, problem, turn)

    def alive(self, side: str, part: str) -> Kept:
        """The side's kept process; one that a part has ended is started again, once, for the parts that follow."""
        process = self.kept[side]
        if process.process.poll() is None or side in self.revived:
            return process
        self.revived.add(side)
        self.budget.notes.append(f"{side}: its process had ended before {part} and was started again")
        process = self.kept[side] = self.start(side, "again")
        if self.imported(process) and part in NEEDS_LOAD:
            self.ask("load", process, 1)
        return process

    # ---- parts ----

    def c_program(self, part: str) -> None:
        program = str(self.place.options.work / "bin" / part)
        for turn, side in self.budget.turns(part, self.taking(part), self.pairs):
            done = run_process([program], self.place.environment(side), 60, self.place.logs / f"{part}-{turn}-{side}")
            answer = last_json_line(done.stdout)
            problem = "" if done.returncode == 0 and answer else f"ended with {done.returncode}: {done.stderr[-300:]}"
            self.add(part, side, answer, problem, turn)

    def first_use(self, fresh: dict[tuple[int, str], Kept]) -> None:
        for turn, side in self.budget.turns("first_use", self.taking("first_use"), self.pairs):
            process = fresh[turn, side]
            self.ask("first_use", process, turn)
            process.end()
            time.sleep(1.0)  # the worker prepares the session of the next client

    def first_generate(self, fresh: dict[tuple[str, str], Kept]) -> None:
        """The first answer of a process, with nothing compiled before it and with what the first one has compiled."""
        shutil.rmtree(self.place.options.work / "cache", ignore_errors=True)
        for state in ("cold", "warm"):
            for side in self.taking("first_generate"):
                process = fresh[state, side]
                self.place.environment(side)  # makes the folder of the cache again
                process.tell("load")
                answer, problem = process.answer()
                if answer is not None and "metrics" in answer:
                    answer["metrics"] = {f"{state}_{name}": value for name, value in answer["metrics"].items()}
                self.add("first_generate", side, answer, problem, state == "warm")
                process.end()

    def load(self, processes: Sequence[Kept]) -> None:
        """Every process loads the model and generates once, beside each other: not timed against each other."""
        for process in processes:
            process.tell("load")
        for process in processes:
            answer, problem = process.answer()
            self.add("load", process.side, answer, problem)

    def in_turn(self, part: str) -> None:
        taking = [side for side in self.taking(part) if side in self.kept]
        gone: set[str] = set()  # said once for each part
        for turn, side in self.budget.turns(part, taking, 1 if part == "census" else self.pairs):
            process = self.alive(side, part)
            if side in gone and process.process.poll() is not None:
                continue
            self.ask(part, process, turn)
            if process.process.poll() is not None:
                gone.add(side)

    def four(self, groups: dict[str, list[Kept]]) -> None:
        """Four processes of one side generate at the same time; the figure is their tokens together."""
        for turn, side in self.budget.turns("four", tuple(groups), self.pairs):
            begun = time.monotonic()
            for process in groups[side]:
                process.tell("generate")
            answers = [process.answer() for process in groups[side]]
            seconds = time.monotonic() - begun
            problems = [problem or str((answer or {}).get("error", "")) for answer, problem in answers]
            digests = {str((answer or {}).get("digest")) for answer, _ in answers}
            whole = {"metrics": {"tokens_per_s": CLIENTS * TOKENS / seconds}, "digest": ",".join(sorted(digests))}
            self.add("four", side, whole, "; ".join(filter(None, problems)), turn)

    def run(self, prepare_model: Callable[[], None]) -> bool:
        kept_parts = [part for part in self.parts if part not in FRESH]
        # Everything imports beside everything else, and the model is made meanwhile.
        first_use = {(turn, side): self.start(side, f"first-{turn}")
                     for side in self.taking("first_use") for turn in range(self.pairs)}  # fmt: skip
        first_generate = {(state, side): self.start(side, state)
                          for side in self.taking("first_generate") for state in ("cold", "warm")}  # fmt: skip
        self.kept = {side: self.start(side, "kept") for side in self.sides if kept_parts}
        groups = {side: [self.start(side, f"four-{i}") for i in range(CLIENTS)] for side in self.taking("four")}
        if any(part in NEEDS_MODEL for part in self.parts):
            prepare_model()
        for process in self.every:
            self.imported(process)
        self.save()
        say(f"[{self.budget.spent():6.1f} s] imports done, {len(self.samples.errors)} errors")
        for part in self.parts:
            if part in C_PARTS:
                self.attempt(part, partial(self.c_program, part))
        if first_use:
            self.attempt("first_use", partial(self.first_use, first_use))
        if first_generate:
            self.attempt("first_generate", partial(self.first_generate, first_generate))
        loading = list(self.kept.values()) if any(part in NEEDS_LOAD for part in self.parts) else []
        loading += [process for group in groups.values() for process in group]
        if loading:
            self.attempt("load", partial(self.load, loading))
        for part in kept_parts:
            self.attempt(part, partial(self.in_turn, part))
        if groups:
            self.attempt("four", partial(self.four, groups))
        return self.save()

    def end(self) -> None:
        for process in self.every:
            process.end()
        self.place.close()


def names(parser: argparse.ArgumentParser, given: str, known: Sequence[str], what: str) -> list[str]:
    unknown = set(given.split(",")) - set(known)
    if unknown:
        parser.error(f"unknown {what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if name in given.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wheel", type=Path, help="wheel to install, or a folder with the product")
    parser.add_argument("--before", type=Path, help="an older wheel: its sides (before-shmem, before-tcp) run in turn")
    parser.add_argument("--out", type=Path, default=suite.REPOSITORY / ".gpu" / "transports")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor-fusion-gpu")
    parser.add_argument("--pairs", type=int, help="turns of each part (5, with --quick 7)")
    parser.add_argument("--seconds", type=float, default=540.0, help="after which no turn is begun")
    parser.add_argument("--parts", help="of " + ",".join(PARTS))
    parser.add_argument("--sides", help="of " + ",".join((*SIDES, *GUARDED)))
    parser.add_argument("--quick", action="store_true", help="the figures that were missed: native and shmem only")
    parser.add_argument("--gpu", choices=("real", "sim"), default="real")
    given = parser.parse_args(arguments)
    budget = Budget(given.seconds)
    quick = given.quick
    parts = names(parser, given.parts or ",".join(turn_samples.QUICK_PARTS if quick else PARTS), tuple(PARTS), "parts")
    older = tuple(BEFORE + side for side in SHORT if side != "native") if given.before else ()
    usual = turn_samples.QUICK_SIDES if quick else (*SHORT, *older) if older else SIDES
    sides = names(parser, given.sides or ",".join(usual), (*SIDES, *GUARDED, *older), "sides")
    pairs = given.pairs or (turn_samples.QUICK_PAIRS if quick else 5)
    wheel = given.wheel or max(
        (suite.REPOSITORY / ".gpu").glob("tensor_fusion-*.whl"), key=lambda path: path.stat().st_mtime, default=None
    )
    if wheel is None or not wheel.exists():
        parser.error("no wheel: pass --wheel, or put tensor_fusion-*.whl into .gpu/")
    options = runner.Options(wheel.resolve(), given.out.resolve(), given.work.resolve(), (), pairs, 4, 1e9)
    options.out.mkdir(parents=True, exist_ok=True)
    # A program that is stopped for its stacks must not spend its last minute on writing gigabytes of core.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGTERM, runner.end_on_signal)
    state = runner.Run(options, Path(), Path(), None, budget.begun)  # type: ignore[arg-type]
    runner.build(state, [p for p in suite.programs() if p.name in C_PARTS and p.name in parts])
    before = given.before.resolve() if given.before else None
    run = Turns(Place(options, sides, given.gpu == "sim", before), sides, parts, pairs, budget)

    def prepare_model() -> None:
        before = len(state.notes)
        runner.prepare_model(state)
        run.samples.errors += state.notes[before:]

    good = False
    try:
        run.facts = {"machine": runner.machine(), "wheel": wheel.name, "pairs": pairs}
        run.samples.errors += state.notes
        good = run.run(prepare_model)
    finally:
        run.end()
        run.save()
    say((options.out / "summary.txt").read_text())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
