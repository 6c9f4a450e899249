"""What CUDA promises about order: which operations are complete before which, and so which programs have one result.

Every operation that touches memory has a bit. A stream, an event, a thread and an executable graph each carry the set
(an integer of such bits) of what is complete once they have come so far. An operation may touch memory if every earlier
operation on the same bytes, one of the two writing, is in the set that it starts with; then all orders that CUDA allows
give the same bytes as the order of the lines. Where CUDA leaves something open the model takes the weaker promise.

`Model.apply` takes operations one by one and raises `Illegal` for one that a program must not make there. The generator
makes proposals and the shrinker leaves lines out; both keep only what the model takes.
"""

from __future__ import annotations

from random_programs.graph_rules import GraphRules
from random_programs.operations import EFFECTS, Operation
from random_programs.state import (
    READ_AT_ONCE,
    ROWS,
    SYNCHRONOUS,
    Access,
    Illegal,
    Node,
    Race,
    Region,
    Stream,
    overlap,
)
from random_programs.stream_rules import StreamRules


class Model(StreamRules, GraphRules):
    def apply(self, op: Operation) -> None:
        """Take the operation, or raise Illegal and stay as before."""
        if self.capture and (op.thread != self.capture.thread or op.name not in IN_CAPTURE):
            raise Illegal("not during a capture")
        if op.name != "barrier":
            if self.sole not in (-1, op.thread):
                raise Illegal("another thread must have this section for itself")
            self.acted.add(op.thread)
        if op.name in EFFECTS:
            self.apply_effect(op)
            return
        getattr(self, f"do_{op.name}")(op)
        number = CREATES.get(op.name)
        if number:
            self.seen.setdefault(number[0], set()).add(op.args[number[1]])

    def do_barrier(self, op: Operation) -> None:
        known, issued = 0, 0
        for thread in range(4):
            known |= self.host[thread]
            issued |= self.issued[thread]
        self.host = [known] * 4
        self.issued = [issued] * 4
        for (context, thread), mask in list(self.orphans.items()):
            self.orphans[context, -1] = self.orphans.get((context, -1), 0) | mask
            if thread >= 0:
                del self.orphans[context, thread]
        self.owner.clear()
        self.acted.clear()
        self.sole = -1
        self.made_contexts = {0, *self.current, *self.seen.get("context", ())}
        for stream in self.streams.values():
            stream.settled, stream.settled_spread = stream.tail, stream.spread
        for region in self.regions.values():
            region.born = -1
            region.users.clear()

    # ---- work

    def apply_copy(self, op: Operation, accesses: list[Access]) -> None:
        thread, how = op.thread, op.args[0]
        to, source = (self.regions[access[0]] for access in accesses)
        synchronous = how in SYNCHRONOUS
        stream = self.stream(thread, 0 if synchronous else op.args[1])
        if to.host and source.host:
            self.direct(thread, accesses)
            return
        if source.host:
            pending = self.writers(accesses[1]) & ~self.host[thread]
            feature = "upload-behind" if how < ROWS else "rows-behind"
            if pending and (not source.pinned or feature not in self.features):
                raise Race(pending, None)
        if source.pinned and not synchronous and op.args[8] * op.args[9] < READ_AT_ONCE:
            # What only the order of blocking and legacy streams puts in front of it, the driver does not wait for.
            missing = self.writers(accesses[1]) & ~(self.host[thread] | stream.tail)
            if missing:
                raise Race(missing, stream)
        if source.host and not source.pinned:
            # The bytes are taken before the call returns.
            missing = self.conflicts(accesses[0]) & ~self.start_of(thread, stream)
            if missing:
                raise Race(missing, stream)
            self.direct(thread, accesses[1:])
            self.work(thread, stream, accesses[:1])
            return
        if to.host:
            self.land(thread, accesses[:1])
        bit = self.work(thread, stream, accesses)
        if to.host:
            self.downloads.append((accesses[0], bit))
        if synchronous and (source.host or to.host):
            self.host[thread] |= stream.tail

    def apply_effect(self, op: Operation) -> None:
        if op.name in ("empty", "child"):
            raise Illegal("only a graph has such a node")
        thread = op.thread
        accesses = self.effect_accesses(op)
        self.check_places(thread, op, accesses)
        synchronous = (op.name == "copy" and op.args[0] in SYNCHRONOUS) or (op.name == "set" and not op.args[0] & 1)
        stream = self.stream(thread, 0 if synchronous else op.args[1 if op.name in ("copy", "set", "host") else 0])
        captured = self.capture and stream.key in self.capture.streams
        self.keep_apart(op, accesses, bool(captured))
        if not captured and not all(self.regions[access[0]].live for access in accesses):
            raise Illegal("memory of a graph that is being made")
        if self.capture and captured:
            if op.name == "stamp" or synchronous:
                raise Illegal("not in a capture")
            self.add_captured(stream, Node(accesses, 0, op.name, op))
            return
        if self.capture and (stream.legacy or synchronous or op.name not in ("fill", "iota", "mix", "spin", "set")):
            raise Illegal("not beside a capture")
        if op.name == "copy":
            self.apply_copy(op, accesses)
        else:
            self.work(thread, stream, accesses)

    # ---- memory

    def make(self, op: Operation, kind: str) -> Region:
        self.fresh("region", op.args[0])
        if op.args[1] < 1:
            raise Illegal("empty")
        region = Region(kind, op.args[1], self.current[op.thread], op.thread)
        self.regions[op.args[0]] = region
        return region

    def do_alloc(self, op: Operation) -> None:
        self.make(op, "alloc")

    def do_vmm(self, op: Operation) -> None:
        self.make(op, "vmm")

    def do_managed(self, op: Operation) -> None:
        self.make(op, "managed")

    def do_pageable(self, op: Operation) -> None:
        self.make(op, "pageable")

    def do_pinned(self, op: Operation) -> None:
        self.make(op, "pinned")

    def do_registered(self, op: Operation) -> None:
        self.make(op, "registered")

    def pool_memory(self, op: Operation, stream_number: int, pool: int) -> None:
        stream = self.stream(op.thread, stream_number)
        self.make(op, "pool").pool = pool
        try:
            self.work(op.thread, stream, [(op.args[0], 0, op.args[1], True)], memory_only=True)
        except Illegal:
            del self.regions[op.args[0]]
            raise

    def do_pool_alloc(self, op: Operation) -> None:
        stream = self.stream(op.thread, op.args[2])
        if self.capture:
            self.graph_alloc(op, stream)
        else:
            self.pool_memory(op, op.args[2], -1)

    def graph_alloc(self, op: Operation, stream: Stream) -> None:
        capture = self.capture
        if capture is None or stream.key not in capture.streams:
            raise Illegal("not beside a capture")
        self.make(op, "graph").live = False
        capture.memory.add(op.args[0])
        try:
            self.add_captured(stream, Node([(op.args[0], 0, op.args[1], True)], 0, "memory"))
        except Illegal:
            capture.memory.remove(op.args[0])
            del self.regions[op.args[0]]
            raise
        capture.graph.allocates = True

    def graph_free(self, op: Operation, stream: Stream) -> None:
        capture = self.capture
        if capture is None or stream.key not in capture.streams or op.args[0] not in capture.memory:
            raise Illegal("not beside a capture")
        self.add_captured(stream, Node([(op.args[0], 0, self.regions[op.args[0]].size, True)], 0, "memory"))
        capture.memory.remove(op.args[0])
        capture.freed.add(op.args[0])
        del self.regions[op.args[0]]

    def do_pool_from(self, op: Operation) -> None:
        if self.pools.get(op.args[2]) != self.current[op.thread]:
            raise Illegal("no such pool")
        self.claim(op.thread, ("pool", op.args[2]))
        self.pool_memory(op, op.args[3], op.args[2])

    def do_pool(self, op: Operation) -> None:
        self.fresh("pool", op.args[0])
        self.pools[op.args[0]] = self.current[op.thread]
        self.claim(op.thread, ("pool", op.args[0]))

    def do_pool_destroy(self, op: Operation) -> None:
        if op.args[0] not in self.pools or any(region.pool == op.args[0] for region in self.regions.values()):
            raise Illegal("the pool is in use")
        self.claim(op.thread, ("pool", op.args[0]))
        del self.pools[op.args[0]]

    def do_free(self, op: Operation) -> None:
        region = self.region(op.thread, op.args[0])
        if region.context != self.current[op.thread]:
            raise Illegal("of another context")
        if region.users - {op.thread}:
            raise Illegal("another thread uses it")
        bits = self.conflicts((op.args[0], 0, region.size, True))
        # cuMemFree waits for the work that uses the memory; for other kinds the program has to.
        waits = region.kind in ("alloc", "managed", "graph")
        missing = bits & ~(self.issued[op.thread] if waits else self.host[op.thread])
        if missing:
            raise Race(missing, None)
        if region.kind == "graph":
            region.live, region.touched = False, []
        else:
            del self.regions[op.args[0]]

    def do_pool_free(self, op: Operation) -> None:
        region = self.region(op.thread, op.args[0])
        if region.kind not in ("pool", "alloc", "graph"):
            raise Illegal("not freed in order")
        if region.users - {op.thread}:
            raise Illegal("another thread uses it")
        stream = self.stream(op.thread, op.args[1])
        if self.capture:
            self.graph_free(op, stream)
            return
        self.work(op.thread, stream, [(op.args[0], 0, region.size, True)], memory_only=True)
        if region.kind == "graph":
            region.live = False
        else:
            del self.regions[op.args[0]]

    def do_put(self, op: Operation) -> None:
        self.direct(op.thread, [(op.args[0], op.args[1], op.args[1] + op.args[2], True)])

    def do_check(self, op: Operation) -> None:
        self.direct(op.thread, [(op.args[0], op.args[1], op.args[1] + op.args[2], False)])

    def do_host_mix(self, op: Operation) -> None:
        a = op.args
        to, source = (a[0], a[1], a[1] + a[5], True), (a[2], a[3], a[3] + a[5], False)
        if overlap(to, source):
            raise Illegal("onto itself")
        self.direct(op.thread, [to, source])

    def do_peek(self, op: Operation) -> None:
        if self.region(op.thread, op.args[0]).host:
            raise Illegal("no device memory")
        stream = self.stream(op.thread, 0)
        self.work(op.thread, stream, [(op.args[0], op.args[1], op.args[1] + op.args[2], False)])
        self.host[op.thread] |= stream.tail


CREATES = {
    **dict.fromkeys(("alloc", "vmm", "managed", "pageable", "pinned", "registered"), ("region", 0)),
    **dict.fromkeys(("pool_alloc", "pool_from"), ("region", 0)),
    "pool": ("pool", 0),
    "stream": ("stream", 0),
    "event": ("event", 0),
    "graph": ("graph", 0),
    "clone": ("graph", 0),
    "inst": ("exec", 0),
    "end_capture": ("graph", 1),
}
IN_CAPTURE = {*EFFECTS, "record", "wait", "launch", "end_capture"}
IN_CAPTURE |= {"put", "check", "host_mix", "pool_alloc", "pool_free"}
