"""The timeline of a program: the records that its processes wrote, as one file that Perfetto and Chrome open.

The format is Chrome's trace event format: times are microseconds (here of CLOCK_MONOTONIC of the client's machine), a
call is an event "X" with a duration, a frame that nobody waited for an event "i". Arrows lead from a frame to what the
worker made of it (timeline_worker.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tensor_fusion.bench.census import records_folder, run_program
from tensor_fusion.client.files import client_environment
from tensor_fusion.config import UserError
from tensor_fusion.terminal import counted
from tensor_fusion.timeline_worker import Clock, Event, Session, clock_point

NOT_THERE = "No process of the program began to use CUDA, so no session recorded anything."


@dataclass
class Recorded:
    """What came of a program: its exit code, and what is in the file."""

    path: Path
    exit_code: int = 0
    processes: int = 0
    calls: int = 0
    frames: int = 0
    damaged: list[str] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)

    def notices(self) -> Iterator[str]:
        """For the person who ran it."""
        if self.calls:
            made = f"{counted(self.calls, 'call')} and {counted(self.frames, 'frame')}"
            yield f"{self.path}: {made} of {counted(self.processes, 'process', 'processes')}."
        else:
            yield f"{self.path}: no process of the program called CUDA or NVML through the client files."
        if self.sessions:
            frames, gpu = sum(s.frames for s in self.sessions), sum(s.gpu for s in self.sessions)
            yield f"The worker executed {counted(frames, 'frame')} of them, and its GPU worked {counted(gpu, 'time')}."
        if lost := sum(session.lost for session in self.sessions):
            yield f"Missing of the worker: {counted(lost, 'record')}, which came faster than could be sent."
        apart = [s.clock for s in self.sessions if s.clock and not s.clock.shared]
        if apart:
            error = max(clock.error for clock in apart) / 1e3
            yield f"The worker has a clock of its own: its times are known to {error:,.1f} µs."
        yield from self.damaged

    def worker(self) -> object:
        """What the file says of the worker's side."""
        if not self.sessions:
            return NOT_THERE
        return [
            {
                "program": session.program,
                "frames": session.frames,
                "gpu": session.gpu,
                "lost": session.lost,
                **_clock(session.clock),
            }
            for session in self.sessions
        ]


def _clock(clock: Clock | None) -> dict[str, object]:
    """`error_us` bounds how wrong the worker's times may be beside the client's."""
    if clock is None:
        return {"clock": "unknown"}
    if clock.shared:
        return {"clock": "the client's", "error_us": 0.0}
    offset = clock.offset(clock.points[0][1]) / 1e3
    when = "at the beginning and at the end" if clock.steady else "at the beginning only"
    return {"clock": f"its own, compared {when}", "offset_us": offset, "error_us": clock.error / 1e3}


def record(connection: str | None, command: Sequence[str], out: Path) -> Recorded:
    """Run the command on the worker and write its timeline to `out`. Raises UserError."""
    there = out.exists()
    try:
        out.open("a").close()  # an hour of running is not to end with a file that cannot be written
        with records_folder("trace") as folder:
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
        if not there and out.is_file():
            out.unlink()  # what is half written helps nobody
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
        "worker": recorded.worker(),
    }
    head = separator if not recorded.processes else "\n"
    file.write(head + '], "otherData": ' + json.dumps(other) + "}\n")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line; what is no record is an empty one."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = {}
            yield number, found if isinstance(found, dict) else {}


def _clocks(path: Path) -> list[Clock | None]:
    """Of each connection in a process's file: a program that starts another in its place (exec) says who it is."""
    points: list[list[tuple[int, int, int, bool]]] = [[]]
    for _, found in _records(path):
        if "program" in found:
            points.append([])
        elif "clock" in found:
            try:
                points[-1].append(clock_point(found))
            except (ValueError, KeyError, TypeError):
                continue  # _events counts it
    return [Clock(tuple(asked)) if asked else None for asked in points]


def _events(path: Path, recorded: Recorded) -> Iterator[Event]:
    """The events of one process; a line that is none is said, and the others count all the same."""
    pid = int(path.stem)
    clocks = _clocks(path)
    session = Session(pid, 0, clocks[0])
    bad, first, threads = 0, 0, set[int]()
    for number, found in _records(path):
        if "program" in found:
            session = Session(pid, session.number + 1, clocks[session.number + 1])
        try:
            events = _event(pid, found, recorded, session)
        except (ValueError, KeyError, TypeError, OverflowError):
            bad, first = bad + 1, first or number
            continue
        for event in events:
            if event["pid"] == pid and event["ph"] != "M" and event["tid"] not in threads:
                threads.add(event["tid"])
                yield _name("thread_name", pid, event["tid"], f"thread {event['tid']}")
            yield event
        if session.frames and (not recorded.sessions or recorded.sessions[-1] is not session):
            recorded.sessions.append(session)
    if bad:
        recorded.damaged.append(f"Process {pid}: {counted(bad, 'damaged record')} left out, the first in line {first}.")


def _name(what: str, pid: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": thread, "args": {"name": name}}


def _event(pid: int, found: dict[str, Any], recorded: Recorded, session: Session) -> list[Event]:
    if "clock" in found:
        clock_point(found)
        return []
    if {"ran", "reply", "gpu", "lost"} & found.keys():
        return list(session.events(found))
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
    arrow: Event = {"ph": "s", "cat": "flow", "name": "call", "id": session.flow(what["frame"]), **place}
    if "ns" not in found:
        recorded.frames += 1
        post: Event = {"ph": "i", "s": "t", "cat": "frame", "name": name, **place, "ts": end / 1e3, "args": what}
        return [post, {**arrow, "ts": end / 1e3}]
    took = int(found["ns"])
    what |= {"result": int(found["result"]), "answer_bytes": int(found["answer"])}
    times = {"ts": (end - took) / 1e3, "dur": took / 1e3}
    recorded.frames += 1
    wait: Event = {"ph": "X", "cat": "frame", "name": f"wait: {name}", **place, **times, "args": what}
    return [wait, {**arrow, "ts": times["ts"]}]
