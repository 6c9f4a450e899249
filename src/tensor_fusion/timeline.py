"""The timeline of a program: the records that its processes wrote, as one file that Perfetto and Chrome open.

The format is Chrome's trace event format: times are microseconds (here of CLOCK_MONOTONIC of the client's machine), a
call is an event "X" with a duration, a frame that nobody waited for an event "i".
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tensor_fusion.bench.census import run_program
from tensor_fusion.client.files import client_environment
from tensor_fusion.config import UserError

NOT_THERE = "The worker's side is not recorded; a worker with TF_LOG_LEVEL=trace logs the same frames by number."
Event = dict[str, Any]


@dataclass
class Recorded:
    """What came of a program: its exit code, and what is in the file."""

    path: Path
    exit_code: int = 0
    processes: int = 0
    calls: int = 0
    frames: int = 0
    damaged: list[str] = field(default_factory=list)

    def notices(self) -> Iterator[str]:
        """For the person who ran it."""
        if self.calls:
            yield f"{self.path}: {self.calls:,} calls and {self.frames:,} frames of {self.processes} process(es)."
        else:
            yield f"{self.path}: no process of the program called CUDA or NVML through the client files."
        yield from self.damaged


def record(connection: str | None, command: Sequence[str], out: Path) -> Recorded:
    """Run the command on the worker and write its timeline to `out`. Raises UserError."""
    there = out.exists()
    try:
        out.open("a").close()  # an hour of running is not to end with a file that cannot be written
        with tempfile.TemporaryDirectory(prefix="tensor-fusion-trace-") as name:
            folder = Path(name)
            environment = {
                **os.environ,
                **client_environment(connection, os.environ),
                "TF_TRACE_PATH": f"{folder}/%p.jsonl",
            }
            recorded = Recorded(out)
            recorded.exit_code = run_program(command, environment)
            with out.open("w") as file:
                _write(sorted(folder.glob("*.jsonl")), recorded, file)
    except UserError:
        if not there:
            out.unlink()
        raise
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; name another file with -o.", 1) from error
    return recorded


def _write(paths: Sequence[Path], recorded: Recorded, file: TextIO) -> None:
    """One event a line, as they come: a long program's do not fit into memory."""
    separator = '{"displayTimeUnit": "ns", "traceEvents": [\n'
    for path in paths:
        for event in _events(path, recorded):
            file.write(separator + json.dumps(event))
            separator = ",\n"
    other = {
        "clock": "CLOCK_MONOTONIC of the client's machine, microseconds",
        "processes": recorded.processes,
        "calls": recorded.calls,
        "frames": recorded.frames,
        "damaged": recorded.damaged,
        "worker": NOT_THERE,
    }
    head = separator if not recorded.processes else "\n"
    file.write(head + '], "otherData": ' + json.dumps(other) + "}\n")


def _events(path: Path, recorded: Recorded) -> Iterator[Event]:
    """The events of one process; a line that is none is said, and the others count all the same."""
    pid = int(path.stem)
    bad, first, threads = 0, 0, set[int]()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                events = _event(pid, json.loads(line), recorded)
            except (ValueError, KeyError, TypeError):
                bad, first = bad + 1, first or number
                continue
            for event in events:
                if event["ph"] != "M" and event["tid"] not in threads:
                    threads.add(event["tid"])
                    yield _name("thread_name", pid, event["tid"], f"thread {event['tid']}")
                yield event
    if bad:
        recorded.damaged.append(f"Process {pid}: {bad} records are damaged, the first in line {first}; left out.")


def _name(what: str, pid: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": thread, "args": {"name": name}}


def _event(pid: int, found: dict[str, Any], recorded: Recorded) -> list[Event]:
    if not isinstance(found, dict):
        raise TypeError
    if "program" in found:
        recorded.processes += 1
        return [_name("process_name", pid, 0, f"{found['program']} {pid}")]
    place = {"pid": pid, "tid": int(found["thread"])}
    if "call" in found:
        event: Event = {"ph": "X", "cat": "call", "name": str(found["call"]), **place}
        event |= {"ts": int(found["begin"]) / 1e3, "dur": int(found["ns"]) / 1e3}
        recorded.calls += 1
        return [{**event, "args": {"call": str(found["call"]) + str(found["text"])}}]
    what = {"frame": int(found["frame"]), "bytes": int(found["bytes"])}
    end, name = int(found["end"]), str(found["op"])
    recorded.frames += 1
    if "ns" not in found:
        return [{"ph": "i", "s": "t", "cat": "frame", "name": name, **place, "ts": end / 1e3, "args": what}]
    took = int(found["ns"])
    what |= {"result": int(found["result"]), "answer_bytes": int(found["answer"])}
    times = {"ts": (end - took) / 1e3, "dur": took / 1e3}
    return [{"ph": "X", "cat": "frame", "name": f"wait: {name}", **place, **times, "args": what}]
