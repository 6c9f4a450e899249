"""The round-trip census of a command: which calls waited for the worker, how often and how long."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensor_fusion.client.files import client_environment
from tensor_fusion.config import UserError

COUNTERS = ("frames", "round_trips", "blocked_ns", "bytes_sent", "bytes_received")


def census(connection: str, command: Sequence[str]) -> dict[str, Any]:
    """Run the command on the worker, and read what its processes wrote at their ends.

    `exit_code` is the command's own, 128 + N when signal N ended it. Raises UserError when it cannot be started.
    """
    with records_folder("census") as folder:
        environment = {
            **os.environ,
            **client_environment(connection, os.environ),
            "TF_STATS_PATH": f"{folder}/%p.json",
        }
        code = run_program(command, environment)
        read = [_read(path) for path in sorted(folder.glob("*.json"))]
        processes = [entry for entry in read if entry and (entry["frames"] or entry["unsupported"])]
        damaged = read.count(None)
    return {
        "command": list(command),
        "exit_code": code,
        "processes": processes,
        "damaged": damaged,
        "total": {counter: sum(process[counter] for process in processes) for counter in COUNTERS},
        "by_function": _sum_functions(processes),
        "unsupported": dict(sum((Counter(process["unsupported"]) for process in processes), Counter[str]())),
    }


@contextmanager
def records_folder(name: str) -> Iterator[Path]:
    """For what the program's processes write, while this lasts. Raises UserError where nothing can be written."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"tensor-fusion-{name}-")
    except OSError as error:  # the first one tries a file in each place, and names them all
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        bound = "" if most == resource.RLIM_INFINITY else f"; ulimit -f allows {most >> 10} KiB"
        place = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"The program's records cannot be kept for the time of its run ({place}{error.strerror}{bound}); "
            + ("raise it: ulimit -f unlimited" if bound else "set TMPDIR to a folder that can be written."),
            exit_code=1,
        ) from error
    with folder as path:
        yield Path(path)


def run_program(command: Sequence[str], environment: dict[str, str]) -> int:
    """Wait for the command in that environment; its exit code, 128 + N when signal N ended it. Raises UserError."""
    # Told to end between the start of the program and the line that would end it: that waits. (Not by a mask: the other
    # threads would not have it.)
    told: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: told.append(number))
    try:
        process = subprocess.Popen(list(command), env=environment)
    except FileNotFoundError:
        raise UserError(f"The program {command[0]!r} was not found; check its name and PATH.", exit_code=127) from None
    except OSError as error:
        raise UserError(f"The program {command[0]!r} cannot be run: {error.strerror}.", exit_code=126) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    # The terminal sends an interrupt to both; it is the program's to answer, and its statistics are still wanted.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for one in told:
            signal.raise_signal(one)
        code = process.wait()
    except BaseException:
        # We are told to end: the program would go on without its worker.
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _read(path: Path) -> dict[str, Any] | None:
    """A process's statistics; None when they are not whole, as of a process that died while it wrote."""
    try:
        found = json.loads(path.read_text())
        entry: dict[str, Any] = {"pid": int(path.stem), "program": str(found["program"])}
        entry |= {counter: int(found[counter]) for counter in COUNTERS}
        entry["unsupported"] = {function: int(calls) for function, calls in found["unsupported"].items()}
        entry["by_function"] = {
            function: {"round_trips": int(of["round_trips"]), "blocked_ns": int(of["blocked_ns"])}
            for function, of in found["by_function"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return entry


def _sum_functions(processes: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for process in processes:
        for function, of in process["by_function"].items():
            into = total.setdefault(function, {"round_trips": 0, "blocked_ns": 0})
            for counter in into:
                into[counter] += of[counter]
    return total
