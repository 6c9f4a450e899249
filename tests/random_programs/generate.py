"""Random programs: proposals by weight, kept where the model takes them, put in order where it says what is missing."""

from __future__ import annotations

import random
from collections.abc import Callable

from random_programs.model import Model
from random_programs.operations import Operation, Program
from random_programs.state import FEATURES, FREES_FIRST, HOST_KINDS, ROWS, SYNCHRONOUS, UVA, Illegal, Node, Race

BORDERS = (4, 16, 64, 512, 4096, 65536, 1 << 20)
MODES = (0, 1, 2)  # of captures: global, thread-local, relaxed
# How often which operation of order is proposed.
ORDER = {"record": 20, "wait": 20, "stream_sync": 12, "stream_poll": 5, "ctx_sync": 3, "event_sync": 8, "event_poll": 4,
         "event_ask": 6, "done": 12, "elapsed": 6}  # fmt: skip
MOST_REGIONS, MOST_OBJECTS = 40, 12  # in one program; the interpreter has room for more


class Generator:
    """One program from one seed. `size` is about how many operations it gets before its last checks."""

    def __init__(self, seed: int, features: frozenset[str] = frozenset(FEATURES), size: int | None = None) -> None:
        self.random = random.Random(seed)
        self.model = Model(features)
        self.program: Program = []
        r = self.random
        self.size = size or r.choice((8, 16, 24, 32, 48, 64, 96))
        self.threads = r.choices((1, 2, 3), (70, 20, 10))[0]
        self.contexts = r.choices((1, 2), (85, 15))[0]
        self.large = r.random() < 0.15  # whether regions of a MiB may be among them
        self.next: dict[str, int] = {"stream": 3}
        self.active = 0

    # ---- helpers

    def number(self, kind: str) -> int:
        number = self.next.get(kind, 0)
        self.next[kind] = number + 1
        return number

    def take(self, name: str, *args: int, inner: Operation | None = None) -> None:
        op = Operation(self.active, name, args, inner)
        self.model.apply(op)
        self.program.append(op)

    def put_in_order(self, op: Operation) -> None:
        """Take the operation, behind what it has to follow: by an event, or by waiting in the thread."""
        for _ in range(8):
            try:
                self.model.apply(op)
            except Race as race:
                if self.model.capture:
                    raise
                self.wait_for(race)
                continue
            self.program.append(op)
            return
        raise Illegal("cannot be put in order")

    def wait_for(self, race: Race) -> None:
        r, model = self.random, self.model
        found = [
            s
            for s in model.streams.values()
            if model.visible(self.active, s) & race.missing
            and s.context == model.current[self.active]
            and model.owner.get(s.key, self.active) == self.active
            and (s.key[0] != "per-thread" or s.key[2] == self.active)
        ]
        if not found or r.random() < 0.1:
            self.take("ctx_sync")
            return
        source = r.choice(found)
        number = self.name_of(source.key)
        how = r.choices(("event", "stream_sync", "stream_poll", "event_sync", "event_poll"), (60, 15, 5, 15, 5))[0]
        if race.stream is None and how == "event":
            how = "event_sync"
        if how.startswith("stream"):
            self.take(how, number)
            return
        event = self.some_event()
        self.take("record", event, number)
        if how == "event":
            assert race.stream
            self.take("wait", self.name_of(race.stream.key), event)
        else:
            self.take(how, event)

    def name_of(self, key: tuple[object, ...]) -> int:
        if key[0] == "legacy":
            return self.random.choice((0, 1))
        if key[0] == "per-thread":
            return 2
        assert isinstance(key[0], int)
        return key[0]

    def free_for_me(self, kind: str, number: int) -> bool:
        return self.model.owner.get((kind, number), self.active) == self.active

    def some_event(self) -> int:
        context = self.model.current[self.active]
        known = [n for n, e in self.model.events.items() if e.context == context and self.free_for_me("event", n)]
        if (not known or self.random.random() < 0.2) and self.next.get("event", 0) < 40:
            number = self.number("event")
            self.take("event", number, self.random.choice((0, 0, 1, 2, 2)))
            return number
        if not known:
            raise Illegal("no event is left")
        return self.random.choice(known)

    def some_stream(self) -> int:
        context = self.model.current[self.active]
        known = [
            k[0]
            for k, s in self.model.streams.items()
            if isinstance(k[0], int) and s.context == context and self.model.owner.get(k, self.active) == self.active
        ]
        if not known or self.random.random() < 0.2:
            return self.random.choice((0, 0, 1, 2, 2))
        return int(self.random.choice(known))

    def some_region(self, wanted: Callable[[str], bool]) -> int:
        context = self.model.current[self.active]
        known = [
            n
            for n, region in self.model.regions.items()
            if wanted(region.kind)
            and region.born in (-1, self.active)
            and (region.host or region.context == context)
            and (region.live or (self.model.capture and n in self.model.capture.memory))
        ]
        if not known:
            raise Illegal("no such region")
        return self.random.choice(known)

    def device(self, kind: str) -> bool:
        return kind not in HOST_KINDS

    def bytes_near(self, border: int) -> int:
        return max(1, border + self.random.choice((-4, -3, -1, 0, 0, 0, 1, 3, 4, 8)))

    def some_size(self) -> int:
        r = self.random
        if self.large and r.random() < 0.4:
            return self.bytes_near(r.choice((1 << 20, 1 << 20, 3 << 19)))
        if r.random() < 0.3:
            return r.randrange(1, 9000)
        return self.bytes_near(r.choices(BORDERS[:6], (1, 1, 2, 3, 4, 3))[0])

    def part(self, *regions: int, unit: int = 1) -> tuple[list[int], int]:
        """An offset in each region and a length that fits in all of them; a whole region often."""
        r = self.random
        sizes = [self.model.regions[region].size for region in regions]
        least = min(sizes)
        if least < unit:
            raise Illegal("too small")
        length = least
        if r.random() < 0.6:
            fitting = [b for b in BORDERS if b <= least]
            length = r.randint(1, least)
            if fitting and r.random() < 0.5:
                length = min(least, self.bytes_near(r.choice(fitting)))
        length = max(unit, length // unit * unit)
        offsets = []
        for size in sizes:
            room = (size - length) // unit
            offsets.append(unit * (r.choice((0, room, r.randint(0, room))) if room else 0))
        return offsets, length

    # ---- effects

    def some_copy(self, in_graph: bool = False) -> Operation:
        r = self.random
        to = self.some_region(lambda kind: True)
        source = self.some_region(lambda kind: True)
        how = r.choices(range(9), (10, 5, 25, 8, 4, 2, 8, 2, 4))[0]
        if self.model.capture or in_graph:
            how = r.choice((2, 2, 3, 6, 8))
        if self.model.regions[to].host and self.model.regions[source].host:
            how = UVA
        stream = 0 if how in SYNCHRONOUS else self.some_stream()
        if how < ROWS or r.random() < 0.3:
            (a, b), length = self.part(to, source)
            return Operation(self.active, "copy", (how, stream, to, a, length, source, b, length, length, 1))
        least = min(self.model.regions[to].size, self.model.regions[source].size)
        if how >= ROWS and least < 4:
            raise Illegal("too small")
        height = r.choice((1, 2, 3, 7, 16))
        width = r.choice((1, 3, 4, 8, 12, 60, 256))
        pitches = [width + r.choice((0, 0, 1, 4, 20, 256)) for _ in range(2)]
        offsets = []
        for region, pitch in zip((to, source), pitches, strict=True):
            room = self.model.regions[region].size - (height - 1) * pitch - width
            if room < 0:
                raise Illegal("no room")
            offsets.append(r.choice((0, room, r.randint(0, room))))
        args = (how, stream, to, offsets[0], pitches[0], source, offsets[1], pitches[1], width, height)
        return Operation(self.active, "copy", args)

    def some_set(self, in_graph: bool = False) -> Operation:
        r = self.random
        host = "pinned-set" in self.model.features and r.random() < 0.1
        to = self.some_region(lambda kind: kind == "pinned" if host else self.device(kind))
        asynchronous = 1 if in_graph or self.model.capture or r.random() < 0.7 else 0
        log = r.choice((0, 0, 1, 2, 2))
        stream = self.some_stream() if asynchronous else 0
        value = r.getrandbits(8 << log)
        if r.random() < 0.8:
            (offset,), length = self.part(to, unit=1 << log)
            args = (asynchronous | log << 1, stream, to, offset, 0, value, length >> log, 1)
            return Operation(self.active, "set", args)
        width, height = r.choice((1, 4, 33)), r.choice((2, 3, 8))
        pitch = (width << log) + (r.choice((0, 1, 5)) << log)
        room = self.model.regions[to].size - height * pitch
        if room < 0:
            raise Illegal("no room")
        offset = r.randint(0, room) >> log << log
        return Operation(self.active, "set", (asynchronous | log << 1, stream, to, offset, pitch, value, width, height))

    def some_kernel(self) -> Operation:
        r = self.random
        stream = self.some_stream()
        name = r.choices(("fill", "iota", "mix", "spin", "stamp"), (3, 2, 7, 3, 1))[0]
        if name == "spin":
            return Operation(self.active, "spin", (stream, r.choice((1, 20, 200, 1000))))
        host = "pinned-kernel" in self.model.features and r.random() < 0.1
        to = self.some_region(lambda kind: kind == "pinned" if host else self.device(kind))
        if name == "mix":
            source = self.some_region(self.device)
            (a, b), length = self.part(to, source, unit=4)
            return Operation(self.active, "mix", (stream, to, a, source, b, r.choice((1, 3, 5, 0x10001)), length // 4))
        if name == "stamp":
            size = r.choice((4, 8))
            (offset,), _ = self.part(to, unit=size)
            return Operation(self.active, "stamp", (stream, to, offset, r.getrandbits(31), size))
        (offset,), length = self.part(to, unit=4)
        if name == "fill":
            return Operation(self.active, "fill", (stream, to, offset, r.getrandbits(32), length // 4))
        return Operation(self.active, "iota", (stream, to, offset, length // 4))

    def some_host_function(self) -> Operation:
        r = self.random
        what = r.choice((0, 1, 1, 2))
        stream = self.some_stream()
        to = self.some_region(lambda kind: kind in HOST_KINDS)
        source = self.some_region(lambda kind: kind in HOST_KINDS) if what else to
        (a, b), length = self.part(to, source)
        return Operation(self.active, "host", (what, stream, to, a, source, b, r.choice((1, 3, 7, 129)), length))

    def some_effect(self, in_graph: bool = False) -> Operation:
        kind = self.random.choices(
            (self.some_copy, self.some_set, self.some_kernel, self.some_host_function), (45, 15, 25, 15)
        )[0]
        if in_graph and kind in (self.some_copy, self.some_set):
            return self.some_copy(True) if kind == self.some_copy else self.some_set(True)
        return kind()

    # ---- proposals

    def do_effect(self) -> None:
        self.put_in_order(self.some_effect())

    def do_region(self) -> None:
        r = self.random
        if self.next.get("region", 0) >= MOST_REGIONS:
            raise Illegal("enough regions")
        number, size = self.number("region"), self.some_size()
        kinds = ("alloc", "pageable", "pinned", "registered", "pool_alloc", "pool_from", "vmm", "managed")
        kind = r.choices(kinds, (32, 18, 20, 10, 12, 4, 3, 6 if "managed" in self.model.features else 0))[0]
        if kind in ("alloc", "pageable", "vmm", "managed"):
            self.take(kind, number, size)
        elif kind == "pinned":
            self.take(kind, number, size, r.choice((0, 0, 1, 3)))
        elif kind == "registered":
            self.take(kind, number, size, r.choice((0, 0, 64, 1000)))
        elif kind == "pool_alloc":
            self.take(kind, number, size, self.some_stream())
        else:
            context = self.model.current[self.active]
            pools = [p for p, c in self.model.pools.items() if c == context and self.free_for_me("pool", p)]
            if not pools:
                if self.next.get("pool", 0) >= 4:
                    raise Illegal("enough pools")
                pools = [self.number("pool")]
                self.take("pool", pools[0])
            self.take(kind, number, size, r.choice(pools), self.some_stream())
        if r.random() < 0.85:
            self.fill_region(number)

    def fill_region(self, number: int) -> None:
        region = self.model.regions[number]
        seed = self.random.getrandbits(16)
        if region.host or (region.kind == "managed" and self.random.random() < 0.5):
            self.put_in_order(Operation(self.active, "put", (number, 0, region.size, seed)))
        else:
            stream = self.some_stream()
            args = (1, stream, number, 0, 0, seed & 0xFF, region.size, 1)
            self.put_in_order(Operation(self.active, "set", args))

    def do_stream(self) -> None:
        if self.next["stream"] < 3 + MOST_OBJECTS:
            flags, priority = self.random.choice((0, 1, 1)), self.random.choice((0, 0, 0, 1, 3))
            self.take("stream", self.number("stream"), flags, priority)

    def do_stream_destroy(self) -> None:
        stream = self.some_stream()
        if stream >= 3:
            self.take("stream_destroy", stream)

    def do_order(self) -> None:
        r = self.random
        kind = r.choices(list(ORDER), list(ORDER.values()))[0]
        if kind in ("stream_sync", "stream_poll"):
            self.take(kind, self.some_stream())
        elif kind == "ctx_sync":
            self.take(kind)
        elif kind == "record":
            self.take("record", self.some_event(), self.some_stream())
        elif kind == "wait":
            self.take("wait", self.some_stream(), self.some_event())
        elif kind == "done":
            if r.random() < 0.5:
                self.take("stream_done", self.some_stream())
            else:
                self.take("event_done", self.some_event())
        elif kind == "elapsed":
            self.measure()
        else:
            self.take(kind, self.some_event())

    def measure(self) -> None:
        """A time between two events: around a kernel in one stream, or of events that happen to be complete."""
        timing = [n for n, e in self.model.events.items() if e.timing and self.free_for_me("event", n)]
        if len(timing) < 2:
            raise Illegal("no events with times")
        first, second = self.random.sample(timing, 2)
        if self.random.random() < 0.6:
            stream = self.some_stream()
            self.take("record", first, stream)
            self.take("spin", stream, 20)
            self.take("record", second, stream)
            self.take("event_sync", second)
        self.take("elapsed", first, second)

    def by_hand(self, kind: str) -> bool:
        return kind in HOST_KINDS or kind == "managed"

    def do_host(self) -> None:
        r = self.random
        region = self.some_region(self.by_hand)
        (offset,), length = self.part(region)
        kind = r.choices(("put", "check", "host_mix"), (5, 6, 2))[0]
        if kind == "put":
            self.put_in_order(Operation(self.active, "put", (region, offset, length, r.getrandbits(16))))
        elif kind == "check":
            self.put_in_order(Operation(self.active, "check", (region, offset, length)))
        else:
            source = self.some_region(self.by_hand)
            (a, b), length = self.part(region, source)
            self.put_in_order(Operation(self.active, "host_mix", (region, a, source, b, 3, length)))

    def do_peek(self) -> None:
        region = self.some_region(self.device)
        (offset,), length = self.part(region)
        self.put_in_order(Operation(self.active, "peek", (region, offset, length)))

    def do_free(self) -> None:
        self.free(self.some_region(lambda kind: True))

    def free(self, region: int) -> None:
        if self.random.random() < {"pool": 0.7, "alloc": 0.3, "graph": 0.5}.get(self.model.regions[region].kind, 0):
            self.put_in_order(Operation(self.active, "pool_free", (region, self.some_stream())))
        else:
            self.put_in_order(Operation(self.active, "free", (region,)))

    def do_context(self) -> None:
        if self.contexts > 1:
            self.take("context", self.random.choice((0, 1)))

    def do_barrier(self) -> None:
        if self.threads > 1:
            self.take("barrier")

    def do_event_destroy(self) -> None:
        self.take("event_destroy", self.some_event())

    def do_capture(self) -> None:
        """A capture with its forks and joins, whole: nothing else of this program can come between."""
        r, model = self.random, self.model
        stream = self.some_stream()
        if stream < 2 or len(model.graphs) > MOST_OBJECTS:
            raise Illegal("no such capture")
        self.take("capture", stream, r.choice(MODES))
        captured = [stream]
        for _ in range(r.randint(1, 8)):
            try:
                if r.random() < 0.25:
                    self.fork(captured)
                elif "graph-memory" in model.features and r.random() < 0.15:
                    self.memory_of_graph(captured)
                else:
                    self.put_in_order(self.in_stream(self.some_effect(), r.choice(captured)))
            except Illegal:
                continue
        capture = model.capture
        assert capture
        if not capture.graph.nodes:  # an empty capture proves nothing: a kernel that touches no memory
            self.put_in_order(Operation(self.active, "spin", (stream, 1)))
        for other in captured[1:]:
            event = self.an_event_for_captures()
            self.take("record", event, other)
            self.take("wait", stream, event)
        for region in sorted(capture.memory):
            if r.random() < 0.6:
                self.put_in_order(Operation(self.active, "pool_free", (region, stream)))
        number = self.number("graph")
        self.take("end_capture", stream, number)
        self.use_graph(number)

    def memory_of_graph(self, captured: list[int]) -> None:
        """An allocation in the capture, written at once; or a free of one."""
        r = self.random
        capture = self.model.capture
        assert capture
        stream = r.choice(captured)
        if capture.memory and r.random() < 0.4:
            self.put_in_order(Operation(self.active, "pool_free", (r.choice(sorted(capture.memory)), stream)))
            return
        if self.next.get("region", 0) >= MOST_REGIONS:
            raise Illegal("enough regions")
        number, size = self.number("region"), self.some_size()
        self.take("pool_alloc", number, size, stream)
        args = (1, stream, number, 0, 0, r.getrandbits(8), size, 1)
        self.put_in_order(Operation(self.active, "set", args))

    def an_event_for_captures(self) -> int:
        """Made before: a capture forbids making one only by our own choice, so it is one that exists."""
        context = self.model.current[self.active]
        known = [n for n, e in self.model.events.items() if e.context == context and self.free_for_me("event", n)]
        if not known:
            raise Illegal("no event")
        return self.random.choice(known)

    def in_stream(self, op: Operation, stream: int) -> Operation:
        place = 1 if op.name in ("copy", "set", "host") else 0
        return Operation(op.thread, op.name, (*op.args[:place], stream, *op.args[place + 1 :]))

    def fork(self, captured: list[int]) -> None:
        r = self.random
        other = self.some_stream()
        if other < 3 or other in captured:
            if len(captured) > 1:  # or one that is in it follows another
                a, b = r.sample(captured, 2)
                event = self.an_event_for_captures()
                self.take("record", event, a)
                self.take("wait", b, event)
            return
        event = self.an_event_for_captures()
        self.take("record", event, r.choice(captured))
        self.take("wait", other, event)
        captured.append(other)

    def do_graph(self) -> None:
        """A graph built node by node; sometimes a second of the same form, to update with."""
        r = self.random
        if len(self.model.graphs) > MOST_OBJECTS or self.next.get("graph", 0) > 30:
            raise Illegal("enough graphs")
        number = self.number("graph")
        self.take("graph", number)
        for node in range(r.randint(1, 9)):
            depends = 0
            for other in self.model.graphs[number].nodes:
                if r.random() < 0.5:
                    depends |= 1 << other
            for effect_depends in (depends, (1 << node) - 1):  # if it races, behind everything
                try:
                    known = sum(1 << n for n in self.model.graphs[number].nodes)
                    self.take("node", number, node, effect_depends & known, inner=self.some_node(number))
                    break
                except Illegal:
                    continue
        if self.model.graphs[number].nodes:
            self.use_graph(number)

    def some_node(self, number: int) -> Operation:
        r = self.random
        if r.random() < 0.06:
            return Operation(self.active, "empty", (0,))
        others = [n for n in self.model.graphs if n != number]
        if others and r.random() < 0.1:
            return Operation(self.active, "child", (r.choice(others),))
        return self.in_stream(self.some_effect(True), 0)

    def use_graph(self, number: int) -> None:
        r = self.random
        if self.next.get("exec", 0) >= 24:
            return
        if r.random() < 0.15:
            clone = self.number("graph")
            self.take("clone", clone, number)
            if r.random() < 0.5:
                number = clone
        ready = self.number("exec")
        memory = self.model.graphs[number].memory
        self.take("inst", ready, number, FREES_FIRST if memory and r.random() < 0.4 else r.choice((0, 0, 1)))
        if r.random() < 0.2:
            self.take("graph_destroy", number)
        if r.random() < 0.1:
            self.take("upload", ready, self.some_stream())
        for _ in range(r.choice((1, 1, 1, 2, 3))):
            self.launch(ready)

    def launch(self, ready: int) -> None:
        """Launch it, once what its launch before has left is free."""
        graph = self.model.execs[ready]
        for region in sorted(graph.memory):
            if self.model.regions[region].live and not graph.frees_first:
                if self.random.random() < 0.5:
                    self.put_in_order(Operation(self.active, "peek", (region, 0, self.model.regions[region].size)))
                self.free(region)
        self.put_in_order(Operation(self.active, "launch", (ready, self.some_stream())))

    def do_launch(self) -> None:
        ready = [n for n, x in self.model.execs.items() if self.free_for_me("exec", n)]
        if not ready:
            raise Illegal("no graph to launch")
        self.launch(self.random.choice(ready))

    def do_setnode(self) -> None:
        r, model = self.random, self.model
        known = [n for n, x in model.execs.items() if x.origin in model.graphs and x.handles]
        if not known:
            raise Illegal("no such graph")
        ready = r.choice(known)
        node = r.choice(list(model.execs[ready].nodes))
        effect = model.execs[ready].nodes[node].effect
        if effect is None:
            raise Illegal("no such node")
        for _ in range(6):
            new = self.in_stream(self.some_effect(True), 0)
            if new.name == effect.name:
                self.take("setnode", ready, model.execs[ready].origin, node, inner=new)
                self.put_in_order(Operation(self.active, "launch", (ready, self.some_stream())))
                return

    def do_update(self) -> None:
        """A graph of the same form as an executable one, with other values, and the update with it."""
        r, model = self.random, self.model
        known = [n for n, x in model.execs.items() if x.handles and x.context == model.current[self.active]]
        known = [n for n in known if all(node.effect for node in model.execs[n].nodes.values())]
        if not known or self.next.get("graph", 0) > 30:
            raise Illegal("no such graph")
        ready = r.choice(known)
        number = self.number("graph")
        self.take("graph", number)
        for name, node in model.execs[ready].nodes.items():
            assert node.effect
            args = node.effect.args
            if node.effect.name in ("fill", "mix") and r.random() < 0.5:
                args = (*args[:-2], r.choice((2, 9, 77)), args[-1])
            effect = Operation(self.active, node.effect.name, args)
            if effect.name != "copy" or args[9] > 1 or r.random() < 0.5 or not self.moved(number, name, node):
                self.take("node", number, name, node.edges, inner=effect)
        self.take("update", ready, number)
        self.put_in_order(Operation(self.active, "launch", (ready, self.some_stream())))

    def moved(self, number: int, name: int, node: Node) -> bool:
        """Make the node of a copy of one row that works elsewhere, in memory of the same kinds, if that is no race."""
        assert node.effect
        args = node.effect.args
        try:
            wanted = [self.model.kin(args[side]) for side in (2, 5)]
            known = [[n for n in self.model.regions if self.model.kin(n) == kin] for kin in wanted]
            to, source = (self.random.choice(numbers) for numbers in known)
            (a, b), length = self.part(to, source)
            new = (args[0], 0, to, a, length, source, b, length, length, 1)
            self.take("node", number, name, node.edges, inner=Operation(self.active, "copy", new))
        except Illegal:
            return False
        return True

    def do_pool_destroy(self) -> None:
        if self.model.pools:
            self.take("pool_destroy", self.random.choice(list(self.model.pools)))

    def do_graph_end(self) -> None:
        r, model = self.random, self.model
        if r.random() < 0.5 and model.graphs:
            self.take("graph_destroy", r.choice(list(model.graphs)))
        elif model.execs:
            self.take("exec_destroy", r.choice(list(model.execs)))

    # ---- a program

    def whole(self) -> Program:
        r = self.random
        for _ in range(r.randint(2, 5)):
            self.attempt(self.do_region)
        for _ in range(r.randint(0, 4)):
            self.attempt(self.do_stream)
        for _ in range(r.randint(0, 3)):
            self.attempt(self.some_event)
        proposals = {
            self.do_effect: 50,
            self.do_region: 8,
            self.do_stream: 4,
            self.do_stream_destroy: 1,
            self.do_order: 16,
            self.do_host: 12,
            self.do_peek: 4,
            self.do_free: 5,
            self.do_context: 3,
            self.do_barrier: 8,
            self.do_event_destroy: 1,
            self.do_capture: 3,
            self.do_graph: 3,
            self.do_launch: 5,
            self.do_setnode: 2,
            self.do_update: 2,
            self.do_graph_end: 1,
            self.do_pool_destroy: 1,
        }
        for _ in range(20 * self.size):
            if len(self.program) >= self.size:
                break
            self.active = r.randrange(self.threads)
            self.attempt(r.choices(list(proposals), list(proposals.values()))[0])
        self.finish()
        return self.program

    def attempt(self, proposal: Callable[[], object]) -> None:
        try:
            proposal()
        except Illegal:
            if self.model.capture:
                raise

    def finish(self) -> None:
        """Wait for everything and look at every byte."""
        model = self.model
        if self.threads > 1:
            self.take("barrier")
        self.active = 0
        used = sorted({r.context for r in model.regions.values()} | {s.context for s in model.streams.values()})
        for context in used:
            if model.current[0] != context:
                self.take("context", context)
            self.take("ctx_sync")
        for context in used:
            if model.current[0] != context:
                self.take("context", context)
            for number, region in model.regions.items():
                if region.context == context and region.live:
                    self.take("check" if region.host else "peek", number, 0, region.size)


def generate(seed: int, features: frozenset[str]) -> Program:
    return Generator(seed, features).whole()
