"""The worker's side of a timeline: the records of a session, on the client's clock.

A session is a process of its own in the file, with a row for the executor and one for each stream. Rows of streams say
until when the GPU worked: what a frame has given to a stream begins when it was given, or when the stream's earlier
work was over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

# Process numbers of Linux are below 2^22.
SESSIONS = 5_000_000
EXECUTOR = 1
FIRST_STREAM = 10
_SPECIAL = {1: "legacy stream", 3: "stream of the session's own"}


@dataclass(frozen=True)
class Clock:
    """How the worker's clock stands to the client's: nanoseconds, from questions and answers (begin, worker, end)."""

    points: tuple[tuple[int, int, int, bool], ...]

    @property
    def shared(self) -> bool:
        """One machine has one clock; where that were not so (a time namespace) the questions would show it."""
        return all(same and begin <= worker <= end for begin, worker, end, same in self.points)

    @property
    def error(self) -> float:
        """Where it was asked; between the first and the last question both clocks are taken to go at a steady pace."""
        return 0.0 if self.shared else max((end - begin) / 2 for begin, _, end, _ in self.points)

    @property
    def steady(self) -> bool:
        """Asked at the beginning and at the end, or in no need of it."""
        return self.shared or len(self.points) > 1

    def offset(self, worker: int) -> float:
        """What the worker's clock shows more than the client's, at that time of the worker's."""
        if self.shared:
            return 0.0
        asked = [(at, at - (begin + end) / 2) for begin, at, end, _ in self.points]
        (first, before), (last, after) = asked[0], asked[-1]
        if first == last:
            return before
        return before + (after - before) * (worker - first) / (last - first)

    def client(self, worker: int) -> float:
        """A time of the worker's in the client's nanoseconds."""
        return worker - self.offset(worker)


def clock_point(found: dict[str, Any]) -> tuple[int, int, int, bool]:
    """The record of a question, or ValueError."""
    begin, worker, end = int(found["begin"]), int(found["clock"]), int(found["end"])
    if not 0 <= begin <= end:
        raise ValueError
    return begin, worker, end, found["same"] is True


@dataclass
class Session:
    """One connection of a process: what its records become."""

    program: int
    number: int
    clock: Clock | None
    frames: int = 0
    gpu: int = 0
    lost: int = 0
    _late: dict[int, int] = field(default_factory=dict)
    _rows: dict[tuple[int, int, int], int] = field(default_factory=dict)
    _over: dict[int, float] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return SESSIONS + self.program

    def flow(self, frame: int) -> str:
        """The name of the arrow from a call to what it brought about."""
        return f"{self.program}.{self.number}.{frame}"

    def _at(self, worker: int) -> float:
        if self.clock is None:
            raise ValueError
        return self.clock.client(worker) / 1e3

    def events(self, found: dict[str, Any]) -> Iterator[Event]:
        """Of one record; ValueError, KeyError or TypeError for one that is damaged."""
        made = self._made(found)
        if not self.frames and not self.gpu and made:
            yield from self._names()
        self.frames += "ran" in found
        self.gpu += "gpu" in found
        yield from made

    def _names(self) -> Iterator[Event]:
        yield _name("process_name", self.pid, 0, f"worker, for {self.program}")
        yield _name("thread_name", self.pid, EXECUTOR, "executor")
        if self.clock and not self.clock.shared:
            text = f"times known to {self.clock.error / 1e3:,.1f} µs"
            yield {"ph": "M", "name": "process_labels", "pid": self.pid, "tid": 0, "args": {"labels": text}}

    def _made(self, found: dict[str, Any]) -> list[Event]:
        if "lost" in found:
            self.lost = int(found["lost"])
            return []
        if "ran" in found:
            return self._frame(found)
        if "reply" in found:
            return self._answer(found)
        return self._work(found)

    def _frame(self, found: dict[str, Any]) -> list[Event]:
        frame, op, thread, how = int(found["ran"]), str(found["op"]), int(found["thread"]), str(found["how"])
        received, begin, end = (self._at(int(found[key])) for key in ("received", "begin", "end"))
        place = {"pid": self.pid, "tid": EXECUTOR}
        what: dict[str, Any] = {"frame": frame, "thread": thread, "answer": how}
        if how == "answered":
            what["result"] = int(found["result"])
        events: list[Event] = [
            {"ph": "X", "cat": "executor", "name": op, **place, "ts": begin, "dur": end - begin, "args": what},
            {"ph": "t", "cat": "flow", "name": "call", "id": self.flow(frame), **place, "ts": begin},
        ]
        if begin > received:
            held = {"cat": "held", "name": f"held: {op}", "id": self.flow(frame), **place, "args": {"frame": frame}}
            events += [{"ph": "b", **held, "ts": received}, {"ph": "e", **held, "ts": begin}]
        if how == "later":
            self._late[thread] = frame
        return events

    def _answer(self, found: dict[str, Any]) -> list[Event]:
        thread, at = int(found["reply"]), self._at(int(found["at"]))
        what: dict[str, Any] = {"thread": thread, "result": int(found["result"])}
        frame = self._late.pop(thread, None)
        if frame is not None:
            what["frame"] = frame
        place = {"pid": self.pid, "tid": EXECUTOR, "ts": at}
        return [{"ph": "i", "s": "t", "cat": "answer", "name": f"answer: {found['op']}", **place, "args": what}]

    def _work(self, found: dict[str, Any]) -> list[Event]:
        frame, first, device = int(found["gpu"]), int(found["first"]), int(found["device"])
        stream, thread = int(found["stream"]), int(found["thread"])
        given, done = self._at(int(found["given"])), self._at(int(found["done"]))
        what: dict[str, Any] = {"frame": frame, "result": int(found["result"]), "given_us": given}
        if first != frame:
            what["first_frame"] = first
        name = str(found["op"])
        key = (device, stream, thread if stream == 2 else 0)
        events: list[Event] = []
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = FIRST_STREAM + len(self._rows)
            label = f"default stream of thread {thread}" if stream == 2 else _SPECIAL.get(stream, f"stream {stream:#x}")
            events.append(_name("thread_name", self.pid, row, f"GPU {device}, {label}"))
        begin = max(given, self._over.get(row, given))
        end = max(begin, done)
        self._over[row] = end
        place = {"pid": self.pid, "tid": row, "ts": begin}
        events += [
            {"ph": "X", "cat": "gpu", "name": name, **place, "dur": end - begin, "args": what},
            {"ph": "f", "bp": "e", "cat": "flow", "name": "call", "id": self.flow(frame), **place},
        ]
        return events


def _name(what: str, pid: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": thread, "args": {"name": name}}
