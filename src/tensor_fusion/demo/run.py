"""Start a worker, run the demonstration program against it, stop the worker."""

from __future__ import annotations

import json
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from tensor_fusion.abi import native_file, stop_with_parent
from tensor_fusion.client.check import Waiting, unseen
from tensor_fusion.client.files import client_environment
from tensor_fusion.config import ShmemAddress, UserError, parse_connection
from tensor_fusion.worker.driver import find_nvidia, search_folders

START_TIMEOUT = 120.0
PROGRAM_TIMEOUT = 300.0
STOP_TIMEOUT = 10.0
SHMEM_MEGABYTES = 256
# Errors of a call when a driver, or the client, gets no addresses, which both reserve by the gigabyte.
NO_ADDRESSES = r"returned (2|304): |cannot allocate memory|MemoryError|failed to map segment"


@dataclass(frozen=True)
class Worker:
    connection: str
    ready_line: str


@contextmanager
def local_worker(
    gpu: str, transport: str = "tcp", megabytes: int = SHMEM_MEGABYTES, waiting: Waiting = unseen
) -> Iterator[Worker]:
    """A worker for this machine: on a free port of the loopback address, or on a segment of shared memory.

    `transport` is tcp or shmem, `megabytes` the size of the segment. Raises UserError with the worker's own sentence.
    """
    segment = f"/tensor-fusion-{os.getpid()}"
    way = ["-p", "0", "--host", "127.0.0.1"]
    if transport == "shmem":
        way = ["-n", "shmem", "-m", segment, "-M", str(megabytes)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion.worker", *way, "--gpu", gpu],
        # Its log, if one is asked for, must not mix with the ready line that is read here.
        env={**os.environ, "TF_LOG_PATH": os.environ.get("TF_LOG_PATH") or "/dev/stderr"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Killed, this process stops nothing any more; the worker then ends in order and takes its segment along.
        preexec_fn=stop_with_parent(signal.SIGTERM),
    )
    errors: list[str] = []
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout
    assert process.stderr
    readers = [
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True),
        threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        try:
            with waiting("a worker and the GPU's driver", START_TIMEOUT):
                line = lines.get(timeout=START_TIMEOUT)
        except queue.Empty:
            raise UserError(f"The worker was not ready within {START_TIMEOUT:.0f} s.", exit_code=1) from None
        if not line.startswith("ready "):
            process.wait(STOP_TIMEOUT)
            readers[1].join(STOP_TIMEOUT)
            said = (
                [line for line in errors if line.startswith("tensor-fusion-worker: ")] or errors or ["it said nothing"]
            )
            sentence = said[-1].strip().removeprefix("tensor-fusion-worker: ")
            raise UserError(f"The worker did not start: {sentence}", exit_code=1)
        port = line.split()[2].rpartition(":")[2]
        connection = f"shmem+{segment}+{megabytes}+0" if transport == "shmem" else f"native+127.0.0.1+{port}+0"
        yield Worker(connection, line.strip())
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def _read_lines(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def run_program(connection: str) -> dict[str, Any]:
    """The report of the demonstration program, run through the client files."""
    environment = {**os.environ, **client_environment(connection, os.environ)}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tensor_fusion.demo.program", "demonstrate", str(native_file("kernels.ptx"))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"The CUDA program did not end within {PROGRAM_TIMEOUT:.0f} s.", exit_code=1) from error
    if result.returncode != 0:
        said = " / ".join(result.stderr.strip().splitlines()[-3:]) or "it said nothing"
        said += _address_limit(said)
        raise UserError(f"The CUDA program ended with exit code {result.returncode}: {said}", exit_code=1)
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def _address_limit(said: str) -> str:
    """What to do about an error for which a limit on addresses is the likely cause; the worker has the limit, too."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY or not re.search(NO_ADDRESSES, said):
        return ""
    allowed = f"ulimit -v allows {most >> 10} KiB of addresses, which is too little for a GPU"
    return f" ({allowed}); raise it: ulimit -v unlimited"


def demo(gpu: str | None, transport: str, notice: Callable[[str], None], waiting: Waiting = unseen) -> dict[str, Any]:
    """Run the demonstration. Without `gpu` a real one is tried first; a change to the simulated one is announced."""
    if gpu is None:
        if find_nvidia(search_folders(os.environ)) is None:
            notice("No NVIDIA driver was found on this machine: this demo uses the SIMULATED GPU.")
            gpu = "sim"
        else:
            try:
                return _demo_on("nvidia", transport, waiting)
            except _NoGpuError as error:
                notice(f"{error.sentence} This demo uses the SIMULATED GPU instead.")
                gpu = "sim"
    elif gpu == "sim":
        notice("This demo uses the SIMULATED GPU, as asked for.")
    try:
        return _demo_on(gpu, transport, waiting)
    except _NoGpuError as error:
        raise UserError(error.sentence, error.exit_code) from error


class _NoGpuError(UserError):
    """The worker did not start, as opposed to a program that failed on it."""


def _demo_on(gpu: str, transport: str, waiting: Waiting) -> dict[str, Any]:
    started = False
    try:
        with local_worker(gpu, transport, waiting=waiting) as worker:
            started = True
            with waiting("the CUDA program", PROGRAM_TIMEOUT):
                report = run_program(worker.connection)
    except UserError as error:
        if started:
            raise
        raise _NoGpuError(error.sentence, error.exit_code) from error
    report["gpu"] = gpu
    report["simulated"] = gpu == "sim"
    address = parse_connection(worker.connection)
    report["transport"] = (
        f"shared memory, {address.file}, {address.megabytes} MB"
        if isinstance(address, ShmemAddress)
        else f"TCP, {address.host}:{address.port}"
    )
    report["passed"] = all(report["results"].values())
    return report
