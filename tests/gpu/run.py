"""Run every program natively and remotely in alternation on a GPU machine, compare, and print a table.

    python tests/gpu/run.py [--wheel PATH] [--out DIR] [--only NAMES] [--pairs 5] [--quick] [--transport shmem]

Installs the wheel into a fresh folder, starts one worker, builds the C and CUDA programs and the model, runs the suite
(suite.py), and writes results.json, summary.txt and logs.tar.gz to --out after every program, so that a run that is cut
short still leaves what it had. Exit status 1 if a result differs, a program fails or a figure misses its bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import io
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import suite
from compare import HEADER, Row, Verdict, judge, wrong_library
from harness import (
    Finished,
    Program,
    Sample,
    Side,
    Worker,
    alternating,
    find_nvidia_smi,
    last_json_line,
    run_process,
    say,
    table,
    tail,
    write_json,
)
from simulated import simulated_driver

VERSIONS = (
    "torch", "torchvision", "transformers", "tokenizers", "numpy", "cupy-cuda13x", "jax", "numba-cuda", "cuda-bindings",
    "nvidia-ml-py", "triton", "tensor-fusion",
)  # fmt: skip


SEGMENT_MB = 2048  # of --transport shmem


@dataclass
class Options:
    wheel: Path
    out: Path
    work: Path
    only: tuple[str, ...]
    pairs: int
    jobs: int
    budget_s: float
    transport: str = "tcp"
    simulated: bool = False
    jail: str = ""
    secret: str = ""  # of TCP: its connections are TLS then

    @property
    def worker_options(self) -> tuple[str, ...]:
        driver = ("--gpu", "sim") if self.simulated else ()
        return (*driver, *(("--jail", self.jail, "--require-jail") if self.jail else ()))


@dataclass
class Run:
    """One run of the suite: where things are, when it must end, and what came of it so far."""

    options: Options
    install: Path
    client_folder: Path
    worker: Worker
    began: float
    samples: list[Sample] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def logs(self) -> Path:
        return self.options.work / "logs"

    def remaining_s(self) -> float:
        return self.options.budget_s - (time.monotonic() - self.began)


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wheel", type=Path,
                        help="wheel, or folder with the product (default: the newest in .gpu/)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=suite.REPOSITORY / ".gpu" / "out", help="folder for the results")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor-fusion-gpu",
                        help="folder for builds, the model and logs; kept for the next run")  # fmt: skip
    parser.add_argument("--only", default="", help="names of programs or groups, separated by commas")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for each timed program")
    parser.add_argument("--jobs", type=int, default=4, help="programs that are not timed, beside each other")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds after which nothing new is started")
    parser.add_argument("--transport", choices=("tcp", "shmem"), default="tcp", help="how the remote side is reached")
    parser.add_argument(
        "--jail", choices=("basic", "full"), default="", help="of the worker, which must have all of it"
    )
    parser.add_argument("--secret", default="", help="that clients must have: with tcp their connections are TLS")
    parser.add_argument("--quick", action="store_true", help="one pair of everything")
    parser.add_argument("--gpu", choices=("real", "sim"), default="real", help="sim: to try the run itself")
    given = parser.parse_args(arguments)
    wheel = given.wheel
    if wheel is None:
        found = sorted((suite.REPOSITORY / ".gpu").glob("tensor_fusion-*.whl"), key=lambda path: path.stat().st_mtime)
        if not found:
            parser.error("no wheel: pass --wheel, or put tensor_fusion-*.whl into .gpu/")
        wheel = found[-1]
    if not wheel.exists():
        parser.error(f"there is no wheel at {wheel}")
    only = tuple(name.strip() for name in given.only.split(",") if name.strip())
    known = {p.name for p in suite.programs()} | {p.group for p in suite.programs()}
    unknown = [name for name in only if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    pairs = 1 if given.quick else given.pairs
    if pairs < 1 or given.jobs < 1:
        parser.error("--pairs and --jobs must be at least 1")
    return Options(wheel.resolve(), given.out.resolve(), given.work.resolve(), only, pairs, given.jobs, given.budget,
                   given.transport, given.gpu == "sim", given.jail, given.secret)  # fmt: skip


def chosen(options: Options) -> list[Program]:
    return [p for p in suite.programs() if not options.only or p.name in options.only or p.group in options.only]


def install_wheel(options: Options) -> Path:
    """The wheel alone in a fresh folder: what it needs must come from it or from the machine's packages.

    A folder in the wheel's place is what installing would have made: tests without a GPU have it already.
    """
    if options.wheel.is_dir():
        return options.wheel
    target = options.work / "install"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(target), str(options.wheel)]
    done = run_process(command, dict(os.environ), 120, options.work / "logs" / "install")
    if done.returncode != 0:
        raise RuntimeError("the wheel cannot be installed:\n  " + "\n  ".join(tail(done.stdout + done.stderr)))
    return target


def install_env(install: Path) -> dict[str, str]:
    """The environment of the worker and of the command-line tool: natively linked, the package importable."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(install), *filter(None, [env.get("PYTHONPATH")])])
    for name in [name for name in env if name.startswith(("TF_", "TENSOR_FUSION_"))]:
        del env[name]
    return env


def client_library_folder(install: Path, logs: Path) -> Path:
    tool = install / "bin" / "tensor-fusion"
    done = run_process([str(tool), "lib-path"], install_env(install), 60, logs / "lib-path")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError("`tensor-fusion lib-path` failed:\n  " + "\n  ".join(tail(done.stdout + done.stderr)))
    folder = Path(lines[-1].strip())
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        if not (folder / name).exists():
            raise RuntimeError(f"`tensor-fusion lib-path` printed {folder}, which holds no {name}")
    return folder


def environment(run: Run, program: Program, side: Side, index: int) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "TENSOR_FUSION_"))}
    env.update(program.env)
    env["KERNELS_PTX"] = str(suite.KERNELS_PTX)
    env["PYTHONUNBUFFERED"] = "1"
    env["TOKENIZERS_PARALLELISM"] = "false"
    env["HF_HUB_OFFLINE"] = "1"
    if run.options.simulated:
        env["LD_LIBRARY_PATH"] = str(run.options.work / "simulated")
    if program.kind == "checks":
        env["GPU_RUN_INSTALL"] = str(run.install)
        env["GPU_RUN_CLIENT_FOLDER"] = str(run.client_folder)
        env["GPU_RUN_LOGS"] = str(run.logs / program.name)
        env["GPU_RUN_TRANSPORT"] = run.options.transport
        env["GPU_RUN_SEGMENT_MB"] = str(SEGMENT_MB)
        env["GPU_RUN_WORKER_OPTIONS"] = " ".join(run.options.worker_options)
        env["GPU_RUN_SECRET"] = run.options.secret
        return env
    if side == "remote":
        env["TF_STATS_PATH"] = str(run.logs / f"{program.name}-{index}-stats-%p.json")
        env["TF_ENABLE_LOG"] = "1"
        env["TF_LOG_LEVEL"] = "warn"
        env["TF_LOG_PATH"] = str(run.logs / f"{program.name}-{index}-client.log")
        if program.inject == "run":
            env["PYTHONPATH"] = install_env(run.install)["PYTHONPATH"]
            return env
        env["TENSOR_FUSION_OPERATOR_CONNECTION_INFO"] = run.worker.connection
        env["TRITON_LIBCUDA_PATH"] = str(run.client_folder)
        if program.inject == "preload":
            env["LD_PRELOAD"] = f"{run.client_folder / 'libcuda.so'}:{run.client_folder / 'libnvidia-ml.so'}"
        else:
            env["LD_LIBRARY_PATH"] = ":".join([str(run.client_folder), *filter(None, [env.get("LD_LIBRARY_PATH")])])
    return env


def command_line(run: Run, program: Program, side: Side) -> list[str]:
    places = {
        "bin": str(run.options.work / "bin"),
        "model": str(run.options.work / "model"),
        "programs": str(suite.PROGRAMS_FOLDER),
        "python": sys.executable,
    }
    command = [part.format(**places) for part in program.command]
    if side == "remote" and program.inject == "run":
        tool = str(run.install / "bin" / "tensor-fusion")
        return [tool, "run", "--connect", run.worker.connection, "--", *command]
    return command


def merged_stats(logs: Path, prefix: str) -> dict[str, Any] | None:
    """The client's counters of the busiest process of one run; children that only looked count little."""
    best: dict[str, Any] | None = None
    for path in logs.glob(f"{prefix}-stats-*.json"):
        try:
            value = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            continue
        if isinstance(value, dict) and (best is None or value.get("calls", 0) > best.get("calls", 0)):
            best = value
    return best


def take_sample(run: Run, program: Program, side: Side, index: int) -> Sample:
    name = f"{program.name}-{index}-{side}" if program.kind != "checks" else program.name
    timeout = max(5.0, min(program.timeout_s, run.remaining_s()))
    done: Finished = run_process(
        command_line(run, program, side),
        environment(run, program, side, index),
        timeout,
        run.logs / name,
        run.options.work,
    )
    result = last_json_line(done.stdout)
    problem = ""
    if done.timed_out:
        problem = f"no end within {timeout:.0f} s"
    elif done.returncode != 0:
        problem = f"ended with {done.returncode}"
    elif result is None:
        problem = "printed no result line"
    elif program.kind != "checks":
        problem = wrong_library(side, result.get("libraries"), run.client_folder)
    if side == "remote" and not run.worker.alive():
        problem = (problem + "; " if problem else "") + "the worker died"
    stats = merged_stats(run.logs, f"{program.name}-{index}") if side == "remote" else None
    sample = Sample(
        program.name, side, index, done.returncode, done.seconds, done.timed_out,
        result if not problem or program.kind == "checks" else None, problem, stats,
        done.stdout if program.kind == "text" else "", tail(done.stderr) if problem else [],
    )  # fmt: skip
    with run.lock:
        run.samples.append(sample)
        state = problem or "ok"
        say(f"[{time.monotonic() - run.began:6.1f} s] {program.name} {side} {index}: {state} ({done.seconds:.1f} s)")
    return sample


def run_program(run: Run, program: Program) -> None:
    """All samples of one program; gives up on a side that has failed twice, since GPU time is dear."""
    samples: list[Sample] = []
    here = gpu_count(run.options.simulated) if program.gpus > 1 else 1
    if program.gpus > here:
        note = f"left out: it needs {program.gpus} GPUs, this machine has {here}"
        with run.lock:
            run.verdicts[program.name] = Verdict([Row(program.name, "ran", "", None, None, "", True, note)])
            save(run)
        return
    order: list[Side] = alternating(run.options.pairs if program.timed else 1)
    if program.kind == "checks":
        order = ["remote"]
    failures = {"native": 0, "remote": 0}
    for turn, side in enumerate(order):
        if run.remaining_s() < 5:
            run.notes.append(f"{program.name}: stopped after {turn} of {len(order)} runs, the time was used up")
            break
        if max(failures.values()) >= 2:
            run.notes.append(f"{program.name}: stopped after {turn} of {len(order)} runs, two had failed")
            break
        sample = take_sample(run, program, side, turn // 2)
        samples.append(sample)
        failures[side] += bool(sample.problem)
    if samples:
        verdict = judge(program, samples, run.options.transport)
    else:
        verdict = Verdict([Row(program.name, "ran", "", None, None, "", False, "skipped: the time was used up")])
    with run.lock:
        run.verdicts[program.name] = verdict
        save(run)


def build(run: Run, programs: list[Program]) -> None:
    """Compile what the chosen programs need; a program that cannot be built then fails as its own row."""
    folder = run.options.work / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {Path(p.command[0]).name for p in programs if p.command[0].startswith("{bin}")}
    jobs: dict[str, list[str]] = {}
    for name in wanted & set(suite.C_BUILDS):
        sources = [str(suite.PROGRAMS_FOLDER / source) for source in suite.C_BUILDS[name]]
        jobs[name] = ["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", *suite.WARNINGS, "-o", str(folder / name), *sources,
                      "-ldl", "-lpthread", "-lrt"]  # fmt: skip
    for name in wanted & set(suite.CUDA_BUILDS):
        source, runtime = suite.CUDA_BUILDS[name]
        jobs[name] = ["nvcc", "-O2", "-std=c++17", "-gencode", "arch=compute_75,code=compute_75", "-gencode",
                      "arch=compute_90,code=sm_90", "-cudart", runtime, "-o", str(folder / name),
                      str(suite.PROGRAMS_FOLDER / source), *runtime_search_path()]  # fmt: skip
    with ThreadPoolExecutor(max_workers=8) as pool:
        futures = {
            name: pool.submit(run_process, command, dict(os.environ), 120, run.logs / f"build-{name}")
            for name, command in jobs.items()
        }
        for name, future in futures.items():
            done = future.result()
            if done.returncode != 0:
                run.notes.append(f"{name} cannot be built: " + " | ".join(tail(done.stdout + done.stderr, 4)))
                (folder / name).unlink(missing_ok=True)


def runtime_search_path() -> list[str]:
    """Linker options that let a program with shared cudart find it: the folders that nvcc itself links from."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    command = [nvcc, "-dryrun", "-o", "unused", str(suite.PROGRAMS_FOLDER / "cudart.cu")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    folders = []
    for line in shown.stderr.splitlines():
        if line.startswith("#$ LIBRARIES="):
            parts = [part.strip('"') for part in line.partition("=")[2].split()]
            folders = [part[2:] for part in parts if part.startswith("-L")]
    return [option for folder in folders for option in ("-Xlinker", f"-rpath={folder}")]


def prepare_model(run: Run) -> None:
    command = [sys.executable, str(suite.PROGRAMS_FOLDER / "qwen_prepare.py"), str(run.options.work / "model")]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = run_process(command, env, 300, run.logs / "model")
    if done.returncode != 0:
        run.notes.append("the model cannot be made: " + " | ".join(tail(done.stderr, 6)))


@functools.cache
def gpu_count(simulated: bool) -> int:
    """How many GPUs the machine has, or the simulated one."""
    if simulated:
        return int(os.environ.get("TF_SIM_DEVICES", "1"))
    smi = find_nvidia_smi()
    if smi is None:
        return 0
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False, timeout=60).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def machine() -> dict[str, Any]:
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    smi = find_nvidia_smi()
    gpu = ""
    if smi is not None:
        query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    note = suite.REPOSITORY / ".gpu" / "commit"  # what the wheel beside it was built from
    commit = note.read_text().strip() if note.is_file() else ""
    if not commit and shutil.which("git"):
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=suite.REPOSITORY, capture_output=True, text=True, check=False
        ).stdout.strip()
    return {
        "gpu": gpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit or "unknown",
    }


def summary(run: Run) -> tuple[str, bool]:
    """The text that ends the run, and whether everything is as it must be."""
    ordered = {p.name: run.verdicts[p.name] for p in suite.programs() if p.name in run.verdicts}
    rows = [row for verdict in ordered.values() for row in verdict.rows]
    lines: list[str] = []
    for name, verdict in ordered.items():
        if verdict.details:
            lines += [f"--- {name}", *verdict.details[:60]]
            if len(verdict.details) > 60:
                lines.append(f"... and {len(verdict.details) - 60} lines more in results.json")
    if run.notes:
        lines += ["--- notes", *run.notes]
    lines += ["", table(HEADER, [row.cells() for row in rows])]
    failed = [row for row in rows if not row.ok]
    good = bool(rows) and not failed and not run.notes
    lines.append("")
    lines.append(f"{len(rows) - len(failed)} of {len(rows)} rows as required, {len(run.notes)} notes, "
                 f"{time.monotonic() - run.began:.0f} s")  # fmt: skip
    return "\n".join(lines), good


def save(run: Run) -> None:
    """Everything known so far, to --out. Called after each program, with the lock held."""
    out = run.options.out
    text, good = summary(run)
    value = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": MACHINE,
        "wheel": run.options.wheel.name,
        "pairs": run.options.pairs,
        "good": good,
        "rows": [dataclasses.asdict(row) for verdict in run.verdicts.values() for row in verdict.rows],
        "details": {name: verdict.details for name, verdict in run.verdicts.items() if verdict.details},
        "notes": run.notes,
        "samples": [
            {key: part for key, part in dataclasses.asdict(sample).items() if key != "stdout"} for sample in run.samples
        ],
    }
    write_json(out / "results.json", value)
    (out / "summary.txt").write_text(text + "\n")
    pack_logs(run.logs, out / "logs.tar.gz")


def pack_logs(folder: Path, archive_path: Path, largest: int = 1_000_000) -> None:
    """The logs in one file, each as it is at this moment (others still grow); of a large one only its end."""
    partial = archive_path.with_suffix(".partial")
    with tarfile.open(partial, "w:gz", compresslevel=3) as archive:
        for path in sorted(folder.rglob("*")):
            try:
                data = path.read_bytes()[-largest:] if path.is_file() else b""
            except OSError:
                continue
            if data:
                entry = tarfile.TarInfo("logs/" + str(path.relative_to(folder)))
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    partial.replace(archive_path)


MACHINE: dict[str, Any] = {}


def run_suite(run: Run, programs: list[Program]) -> None:
    build(run, programs)
    with ThreadPoolExecutor(max_workers=run.options.jobs + 1) as pool:
        model: Future[None] | None = None
        if any("{model}" in part for p in programs for part in p.command):
            model = pool.submit(prepare_model, run)
        side_by_side = [p for p in programs if not p.timed and not p.alone and p.kind != "checks"]
        for future in [pool.submit(run_program, run, program) for program in side_by_side]:
            future.result()
        if model is not None:
            model.result()
    for program in programs:
        if program not in side_by_side:
            if not run.worker.alive():
                run.notes.append(f"the worker had died before {program.name} and was started again")
                run.worker.stop()
                run.worker = start_worker(run.options, run.install, "worker-again")
            run_program(run, program)


def start_worker(options: Options, install: Path, name: str) -> Worker:
    segment = (f"/tf_gpu_{os.getpid()}_{name}", SEGMENT_MB) if options.transport == "shmem" else None
    command = [str(install / "bin" / "tensor-fusion-worker"), *options.worker_options]
    worker = Worker(command, install_env(install), options.work / "logs" / name, segment=segment, secret=options.secret)
    try:
        say(worker.wait_ready())
    except RuntimeError:
        worker.stop()
        raise
    return worker


def end_on_signal(number: int, _frame: object) -> None:
    """Turn a request to end into an ordinary exit, so that the worker and the programs are ended too."""
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    # A program that is stopped for its stacks must not spend its last minute on writing gigabytes of core.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGTERM, end_on_signal)
    signal.signal(signal.SIGHUP, end_on_signal)
    began = time.monotonic()
    shutil.rmtree(options.work / "logs", ignore_errors=True)
    (options.work / "logs").mkdir(parents=True)
    options.out.mkdir(parents=True, exist_ok=True)
    MACHINE.update(machine())
    try:
        install = install_wheel(options)
        folder = client_library_folder(install, options.work / "logs")
        if options.simulated:
            simulated_driver(install, options.work / "simulated")
        worker = start_worker(options, install, "worker")
    except RuntimeError as error:
        say(str(error))
        (options.out / "summary.txt").write_text(f"{error}\n")
        return 1
    run = Run(options, install, folder, worker, began)
    try:
        run_suite(run, chosen(options))
    finally:
        run.worker.stop()
        with run.lock:
            save(run)
    text, good = summary(run)
    say(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
