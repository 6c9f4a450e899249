"""The benchmark command's work: find or start a worker, put the relay between, measure or count, write the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensor_fusion.abi import Teleport
from tensor_fusion.bench.census import census
from tensor_fusion.bench.compare import Plan, Progress, check_pairs, chosen_groups, measure
from tensor_fusion.bench.machine import machine
from tensor_fusion.bench.plot import check_plotting, plot
from tensor_fusion.bench.program import QUICK, Effort, groups, native_side, remote_side
from tensor_fusion.bench.relay import Relay, check_rtt, relayed
from tensor_fusion.client.probe import connect, greet
from tensor_fusion.config import MAX_SHMEM_MEGABYTES, NativeAddress, UserError, parse_connection, without_secret
from tensor_fusion.demo.run import local_worker
from tensor_fusion.worker.protocol import Status

# Room for two pinned buffers of the largest copy, which are to lie in the segment.
SHMEM_MEGABYTES = 1024
SIMULATED = (
    "This is the SIMULATED GPU: its figures show that everything works, and say nothing about the speed of a GPU."
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    connection: str | None = None
    transport: str = "tcp"
    shmem_megabytes: int = SHMEM_MEGABYTES
    gpu: str | None = None
    rtt_ms: float | None = None
    pairs: int = 5
    only: str | None = None
    quick: bool = False
    native: bool = True
    json_file: Path | None = None
    plot_prefix: Path | None = None
    command: Sequence[str] = ()


def check(request: Request) -> None:
    """What can be wrong before anything is started. Raises UserError."""
    check_pairs(request.pairs)
    if request.connection is not None:
        parse_connection(request.connection)
    if not 1 <= request.shmem_megabytes <= MAX_SHMEM_MEGABYTES:
        raise UserError(f"--shmem-size is {request.shmem_megabytes}; use 1 to {MAX_SHMEM_MEGABYTES} MB.")
    if request.rtt_ms is not None:
        check_rtt(request.rtt_ms)
        named = request.connection
        tcp = request.transport == "tcp" if named is None else isinstance(parse_connection(named), NativeAddress)
        if not tcp:
            raise UserError("--rtt delays TCP; shared memory has no network to delay. Leave --rtt out, or use TCP.")
    if request.json_file:
        _check_writable(request.json_file)
    if request.command:
        for option, given in (("--only", request.only), ("--plot", request.plot_prefix)):
            if given is not None:
                raise UserError(
                    f"{option} belongs to the benchmark's own groups; leave it out, or leave the command out."
                )
    if request.plot_prefix:
        check_plotting(request.plot_prefix)


def _check_writable(path: Path) -> None:
    """An hour of measuring is not to end with a file that cannot be written. Raises UserError."""
    if not path.parent.is_dir():
        raise UserError(f"The folder {path.parent} of --json {path} does not exist.")
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; name a file in it.")
    there = path.exists()
    try:
        path.open("a").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}; name another file.") from error


@contextmanager
def _worker(request: Request, say: Say) -> Iterator[str]:
    """The connection string of the worker to use: the one named, or one started for the purpose."""
    if request.connection is not None:
        _check_answers(request.connection)
        yield request.connection
        return
    with local_worker(request.gpu or "nvidia", request.transport, request.shmem_megabytes) as worker:
        say(f"Started a worker: {worker.ready_line}")
        yield worker.connection


def _check_answers(connection: str) -> None:
    address = parse_connection(connection)
    if not isinstance(address, NativeAddress):
        return
    with connect(address) as opened:
        welcome = greet(opened, address, Teleport().schema)
    if welcome.status not in (Status.ACCEPTED, Status.PROBED):
        raise UserError(f"The worker refused: {welcome.sentence}", exit_code=1)


@contextmanager
def _way(request: Request, say: Say) -> Iterator[tuple[str, Relay | None]]:
    """The connection string to measure on, with the relay in between when a round trip was asked for."""
    with _worker(request, say) as connection:
        if request.rtt_ms is None:
            yield connection, None
            return
        with relayed(connection, request.rtt_ms) as relay:
            say(f"The relay adds {relay.added_us:.0f} µs to a round trip; {relay.asked_us:.0f} µs were asked for.")
            yield relay.connection, relay


def _transport(request: Request, connection: str) -> str:
    if request.connection is not None:
        return without_secret(request.connection)
    return "TCP, loopback" if isinstance(parse_connection(connection), NativeAddress) else "shared memory"


def bench(request: Request, say: Say, progress: Progress) -> dict[str, Any]:
    """Measure; the report. Raises UserError."""
    check(request)
    effort = QUICK if request.quick else Effort()
    plan = Plan(chosen_groups(request.only, groups()), request.pairs, effort)
    native = [native_side(request.gpu)] if request.native else []
    if request.gpu == "sim":
        say(SIMULATED)
    if request.connection is None:
        progress("starting a worker", None)
    with _way(request, say) as (connection, relay):
        report = measure([*native, remote_side(connection)], plan, progress)
        report["transport"] = _transport(request, connection)
        if relay:
            report["transport"] += f", round trip + {relay.asked_us / 1e3:g} ms"
        report["relay"] = relay.facts() if relay else None
    report["simulated"] = report["sides"]["remote"]["device"].startswith("Simulated")
    return report


def save(request: Request, report: dict[str, Any], say: Say) -> list[Path]:
    """The files asked for, once the figures were shown: a full disk must not take those. Raises UserError."""
    report["plots"] = []
    if request.plot_prefix:
        report["plots"] = [str(path) for path in plot(report, request.plot_prefix)]
        if not report["plots"]:
            say("There is nothing to plot: ratios need the native side, bandwidth needs the group copy.")
    if request.json_file:
        _write(request.json_file, report)
    return [Path(path) for path in report["plots"]]


def count(request: Request, say: Say) -> dict[str, Any]:
    """The census of a command. Raises UserError."""
    check(request)
    if request.gpu == "sim":
        say(SIMULATED)
    with _way(request, say) as (connection, relay):
        report = census(connection, request.command)
    report["transport"] = _transport(request, connection)
    report["relay"] = relay.facts() if relay else None
    report["machine"] = machine()
    return report


def save_count(request: Request, report: dict[str, Any]) -> None:
    """Raises UserError."""
    if request.json_file:
        _write(request.json_file, report)


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.", exit_code=1) from error
