"""Operations of random programs as text: one a line, a thread's number, a name, numbers with a letter for the reader.

The letters stand for: m memory, s stream (s0 NULL, s1 legacy, s2 per-thread), e event, g graph, n node, x executable
graph, p pool, c context. program.h has the same names; the interpreter checks every line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# What touches memory as work of a stream. `_` is a plain number.
EFFECTS = {
    "copy": "_sm__m____",  # how stream to offset pitch from offset pitch width height
    "set": "_sm_____",  # async + 2 * log2(element), stream to offset pitch value width height
    "fill": "sm___",  # stream to offset value count
    "iota": "sm__",  # stream to offset count
    "mix": "sm_m___",  # stream to offset from offset factor count
    "spin": "s_",  # stream microseconds
    "host": "_sm_m___",  # what stream to offset from offset value bytes
    "stamp": "sm___",  # stream to offset value bytes
    "empty": "_",
    "child": "g",
}
OTHERS = {
    "barrier": "",
    "alloc": "m_",
    "vmm": "m_",
    "managed": "m_",
    "pageable": "m_",
    "pinned": "m__",
    "registered": "m__",
    "pool_alloc": "m_s",
    "pool_from": "m_ps",
    "free": "m",
    "pool_free": "ms",
    "pool": "p",
    "pool_destroy": "p",
    "stream": "s__",
    "stream_destroy": "s",
    "stream_sync": "s",
    "stream_poll": "s",
    "stream_done": "s",
    "ctx_sync": "",
    "context": "c",
    "event": "e_",
    "event_destroy": "e",
    "record": "es",
    "wait": "se",
    "event_sync": "e",
    "event_poll": "e",
    "event_ask": "e",
    "event_done": "e",
    "elapsed": "ee",
    "put": "m___",
    "check": "m__",
    "peek": "m__",
    "host_mix": "m_m___",
    "graph": "g",
    "node": "gn_",
    "setnode": "xgn",
    "inst": "xg_",
    "launch": "xs",
    "upload": "xs",
    "clone": "gg",
    "update": "xg",
    "graph_destroy": "g",
    "exec_destroy": "x",
    "capture": "s_",
    "end_capture": "sg",
}
LETTERS = {**EFFECTS, **OTHERS}


@dataclass(frozen=True)
class Operation:
    thread: int
    name: str
    args: tuple[int, ...] = ()
    inner: Operation | None = None  # of node and setnode

    def words(self) -> str:
        numbers = (f"{'' if k == '_' else k}{n}" for k, n in zip(LETTERS[self.name], self.args, strict=True))
        return " ".join([self.name, *numbers, *([self.inner.words()] if self.inner else [])])


Program = list[Operation]


def text_of(name: str, program: Iterable[Operation]) -> str:
    return "\n".join([f"program {name}", *(f"{op.thread} {op.words()}" for op in program), "end\n"])


def _parse(words: list[str], thread: int) -> Operation:
    name, rest = words[0], words[1:]
    count = len(LETTERS[name])
    args = tuple(int(word.lstrip("abcdefghijklmnopqrstuvwxyz_"), 0) for word in rest[:count])
    inner = _parse(rest[count:], thread) if name in ("node", "setnode") else None
    if len(args) != count or (inner is None and len(rest) != count):
        raise ValueError(f"{name} takes {count} numbers: {' '.join(words)}")
    return Operation(thread, name, args, inner)


def programs_of(text: str) -> Iterator[tuple[str, Program]]:
    """Name and operations of each program in `text`."""
    name, program = "", Program()
    for line in text.splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] == "program":
            name, program = words[1], []
        elif words[0] == "end":
            yield name, program
        else:
            program.append(_parse(words[1:], int(words[0])))
