"""What a random program has made so far, and which operations are complete before which (see model.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from random_programs.operations import Operation

TYPED, UVA, TYPED_ASYNC, UVA_ASYNC, ROWS, ROWS_UNALIGNED, ROWS_ASYNC, CUBE, CUBE_ASYNC = range(9)
SYNCHRONOUS = {TYPED, UVA, ROWS, ROWS_UNALIGNED, CUBE}
READ_AT_ONCE = 65536  # of pinned memory; what is smaller may be read at the call (580.159.04: 16384, and not 65536)
HOST_KINDS = {"pageable", "pinned", "registered"}
DISABLE_TIMING = 2
NON_BLOCKING = 1
MOST_NODES = 40
FREES_FIRST = 2  # how a graph is made executable: its launches free what the one before left
# Parts of CUDA that a program may be made without. A driver serves all of them, and so does the simulated GPU.
FEATURES = {
    "upload-behind": "an upload from pinned or registered memory behind work that writes that memory",
    "rows-behind": "the same by rows, in two or three dimensions",
    "graph-behind": "the same in a graph, at its launch",
    "graph-mixed": "host functions beside copies of the program's memory in one graph",
    "graph-bridge": "in a graph a copy into the program's memory and one from there, without a host function between",
    "graph-mixed-set": "such a copy changed in an executable graph that has host functions, too",
    "downloads-meet": "two downloads to the same memory without a wait between them, in a graph or not",
    "pinned-set": "memsets of pinned memory",
    "pinned-kernel": "kernels on pinned memory",
    "pinned-word": "words of pinned memory that streams write",
    "pinned-both": "kernels on pinned memory that a graph copies as well",
    "done": "queries of streams and events that must say complete",
    "managed": "managed memory, which threads and kernels touch by one address",
    "graph-memory": "memory that a graph allocates, and frees or leaves to the program",
}
# What does not work through the stack yet, and why. A line goes when its fault is mended.
UNSERVED = {
    "graph-bridge": "refused by name: the bytes would be seen too late",
    "graph-mixed-set": "refused by name: launches under way copy what they copied",
    "pinned-set": "refused in captures over TCP while no kernel has used the memory",
    "pinned-word": "refused over TCP",
    "pinned-both": "refused over TCP where the graph was there first",
    "done": "a free puts a point into a busy stream; once in 10,000 programs a query meets it before the GPU does",
}
SERVED = frozenset(FEATURES) - frozenset(UNSERVED)


class Illegal(Exception):
    """A program must not make this operation here."""


class Race(Illegal):
    """It would be legal behind the operations whose bits are `missing`."""

    def __init__(self, missing: int, stream: Stream | None) -> None:
        super().__init__("not ordered behind what it depends on")
        self.missing, self.stream = missing, stream


Access = tuple[int, int, int, bool]  # region, first byte, end, writes


@dataclass
class Region:
    kind: str
    size: int
    context: int
    born: int  # the thread that made it in this section, -1: everybody's
    touched: list[tuple[int, int, bool, int]] = field(default_factory=list)  # first, end, writes, bit
    pool: int = -1
    users: set[int] = field(default_factory=set)  # threads, since the last barrier
    live: bool = True  # memory of a graph: a launch has allocated it, and nobody has freed it
    uses: set[str] = field(default_factory=set)  # pinned: "graph" copies, "kernel"

    @property
    def host(self) -> bool:
        return self.kind in HOST_KINDS

    @property
    def pinned(self) -> bool:
        return self.kind in ("pinned", "registered")

    @property
    def by_hand(self) -> bool:
        """A thread of the program may touch it."""
        return self.host or self.kind == "managed"


@dataclass
class Stream:
    key: tuple[object, ...]
    context: int
    blocking: bool
    legacy: bool = False
    tail: int = 0
    spread: int = 0  # the tail after the last work: what the legacy stream's rules order, too
    settled: int = 0  # both at the last barrier
    settled_spread: int = 0


@dataclass
class Event:
    timing: bool
    context: int
    mask: int = 0
    recorded: bool = False
    captured: bool = False


@dataclass
class Node:
    accesses: list[Access]
    before: int  # nodes of the graph that it is behind, as bits
    kind: str
    effect: Operation | None = None
    edges: int = 0  # those that it depends on itself: an update wants the same


@dataclass
class Graph:
    context: int
    nodes: dict[int, Node] = field(default_factory=dict)
    origin: int = -1  # of an executable graph: the graph it was made of
    tail: int = 0
    handles: bool = True  # the program has the handles of its nodes
    shape: tuple[object, ...] = ()
    memory: set[int] = field(default_factory=set)  # what a launch allocates and leaves
    allocates: bool = False
    frees_first: bool = False  # a launch frees what the one before left

    def accesses(self) -> list[Access]:
        return [access for node in self.nodes.values() for access in node.accesses]


@dataclass
class Capture:
    thread: int
    mode: int
    origin: Stream
    streams: dict[tuple[object, ...], int]
    graph: Graph
    events: dict[int, int] = field(default_factory=dict)
    memory: set[int] = field(default_factory=set)  # regions that its graph allocates and has not freed yet
    freed: set[int] = field(default_factory=set)


def overlap(a: Access, b: Access) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


class State:
    """The objects, and the questions that all rules ask. Rules are in the classes that stand on this one."""

    def __init__(self, features: frozenset[str] = frozenset()) -> None:
        self.features = features
        self.regions: dict[int, Region] = {}
        self.streams: dict[tuple[object, ...], Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, Graph] = {}
        self.execs: dict[int, Graph] = {}
        self.pools: dict[int, int] = {}  # number to context
        self.capture: Capture | None = None
        self.host = [0] * 4  # what each thread knows to be complete
        self.issued = [0] * 4  # what each thread knows to be issued
        self.current = [0] * 4
        self.orphans: dict[
            tuple[int, int], int
        ] = {}  # work of destroyed streams, by context and thread, -1: all know it
        self.owner: dict[object, int] = {}
        self.seen: dict[str, set[int]] = {}  # numbers ever used: none is used twice
        self.downloads: list[tuple[Access, int]] = []  # what writes the program's memory by itself, with its bit
        self.bits = 0
        self.acted: set[int] = set()  # threads, since the last barrier
        self.sole = -1  # the only thread that may act before the next barrier
        self.made_contexts = {0}
        self.made_ready: set[int] = set()  # graphs that an executable one was made of

    def claim(self, thread: int, what: object) -> None:
        """An object is one thread's between two barriers."""
        if self.owner.setdefault(what, thread) != thread:
            raise Illegal(f"{what} is another thread's")

    def fresh(self, kind: str, number: int) -> None:
        used = self.seen.setdefault(kind, set())
        if number in used or number < 0:
            raise Illegal(f"{kind} {number} was there already")

    def stream(self, thread: int, number: int) -> Stream:
        context = self.current[thread]
        if number <= 1:
            key: tuple[object, ...] = ("legacy", context)
            return self.streams.setdefault(key, Stream(key, context, False, legacy=True))
        if number == 2:
            key = ("per-thread", context, thread)
            return self.streams.setdefault(key, Stream(key, context, True))
        found = self.streams.get((number,))
        if found is None or found.context != context:
            raise Illegal(f"no stream {number} in this context")
        return found

    def visible(self, thread: int, stream: Stream) -> int:
        return stream.tail if self.owner.get(stream.key, thread) == thread else stream.settled

    def start_of(self, thread: int, stream: Stream, work: bool = True) -> int:
        """What is complete before work starts that this thread adds to the stream now.

        Allocations and what only orders are taken for no work: what they do between the legacy and other streams is
        nowhere promised."""
        before = stream.tail | self.host[thread]
        if not work:
            return before
        for other in self.streams.values():
            if other.context == stream.context and (
                (stream.legacy and other.blocking) or (stream.blocking and other.legacy)
            ):
                mine = self.owner.get(other.key, thread) == thread
                before |= other.spread if mine else other.settled_spread
        return before

    def orphaned(self, thread: int, context: int) -> int:
        return self.orphans.get((context, thread), 0) | self.orphans.get((context, -1), 0)

    def region(self, thread: int, number: int) -> Region:
        region = self.regions.get(number)
        if region is None or region.born not in (-1, thread):
            raise Illegal(f"no region {number} for this thread")
        if not region.host and region.context != self.current[thread]:
            raise Illegal(f"region {number} is of another context")
        if not region.live and not (self.capture and number in self.capture.memory):
            raise Illegal(f"region {number} is not allocated")
        return region

    def bounded(self, thread: int, access: Access) -> None:
        number, first, end, _ = access
        if first < 0 or end <= first or end > self.region(thread, number).size:
            raise Illegal(f"outside region {number}")
        self.regions[number].users.add(thread)

    def conflicts(self, access: Access) -> int:
        number, first, end, writes = access
        found = 0
        for low, high, wrote, bit in self.regions[number].touched:
            if low < end and first < high and (writes or wrote):
                found |= bit
        return found

    def writers(self, access: Access) -> int:
        return self.conflicts((access[0], access[1], access[2], False))

    def touch(self, accesses: list[Access], before: int, bit: int) -> None:
        for number, first, end, writes in accesses:
            region = self.regions[number]
            if writes:
                region.touched = [
                    t for t in region.touched if not (first <= t[0] and t[1] <= end and t[3] | before == before)
                ]
            region.touched.append((first, end, writes, bit))

    def new_bit(self, thread: int) -> int:
        bit = 1 << self.bits
        self.bits += 1
        self.issued[thread] |= bit
        return bit

    def land(self, thread: int, accesses: list[Access]) -> None:
        """Copies are about to write these parts of the program's memory."""
        self.downloads = [(a, bit) for a, bit in self.downloads if bit & ~self.host[thread]]
        pending = 0
        for access in accesses:
            for other, bit in self.downloads:
                if overlap(access, other):
                    pending |= bit
        if pending and "downloads-meet" not in self.features:
            raise Race(pending, None)

    def direct(self, thread: int, accesses: list[Access]) -> None:
        """The thread itself reads and writes, now."""
        missing = 0
        for access in accesses:
            self.bounded(thread, access)
            region = self.regions[access[0]]
            if not region.by_hand or (self.capture and not region.host):
                raise Illegal("a thread cannot reach device memory")
            if not region.host:
                if self.acted - {thread}:
                    raise Illegal("other threads may be at work on the GPU")
                self.sole = thread  # devices without concurrent managed access forbid it
            missing |= self.conflicts(access) & ~self.host[thread]
        if missing:
            raise Race(missing, None)
        bit = self.new_bit(thread)
        self.touch(accesses, self.host[thread], bit)
        self.host[thread] |= bit

    def work(
        self, thread: int, stream: Stream, accesses: list[Access], extra: int = 0, memory_only: bool = False
    ) -> int:
        """The thread adds work to the stream; its bit."""
        for access in accesses:
            self.bounded(thread, access)
        before = self.start_of(thread, stream, not memory_only) | extra
        missing = 0
        for access in accesses:
            missing |= self.conflicts(access) & ~before
        if self.owner.get(stream.key, thread) != thread:
            raise Illegal("another thread's stream")
        if missing:
            raise Race(missing, stream)
        self.claim(thread, stream.key)
        bit = self.new_bit(thread)
        self.touch(accesses, before, bit)
        stream.tail = before | bit
        if not memory_only:
            stream.spread = stream.tail
        return bit

    # ---- effects

    def effect_accesses(self, op: Operation) -> list[Access]:
        a = op.args
        if op.name == "copy":
            width, height = a[8], a[9]
            if width < 1 or height < 1 or (height > 1 and (a[4] < width or a[7] < width or a[0] < ROWS)):
                raise Illegal("rows that overlap")
            to = (a[2], a[3], a[3] + (height - 1) * a[4] + width, True)
            source = (a[5], a[6], a[6] + (height - 1) * a[7] + width, False)
            if overlap(to, source):
                raise Illegal("a copy onto itself")
            return [to, source]
        if op.name == "set":
            element, width, height = 1 << (a[0] >> 1), a[6], a[7]
            if a[3] % element or width < 1 or height < 1 or (height > 1 and (a[4] < width * element or a[4] % element)):
                raise Illegal("rows that a set cannot have")
            return [(a[2], a[3], a[3] + (height - 1) * a[4] + width * element, True)]
        if op.name == "fill":
            accesses = [(a[1], a[2], a[2] + 4 * a[4], True)]
        elif op.name == "iota":
            accesses = [(a[1], a[2], a[2] + 4 * a[3], True)]
        elif op.name == "mix":
            accesses = [(a[1], a[2], a[2] + 4 * a[6], True), (a[3], a[4], a[4] + 4 * a[6], False)]
        elif op.name == "stamp":
            if a[2] % a[4]:
                raise Illegal("not aligned")
            accesses = [(a[1], a[2], a[2] + a[4], True)]
        elif op.name == "host":
            accesses = [(a[2], a[3], a[3] + a[7], True)]
            if a[0]:
                accesses.append((a[4], a[5], a[5] + a[7], False))
            if a[0] and overlap(*accesses):
                raise Illegal("onto itself")
            return accesses
        else:
            return []
        if any(access[1] % 4 for access in accesses) or (len(accesses) > 1 and overlap(*accesses)):
            raise Illegal("not aligned, or onto itself")
        return accesses

    def keep_apart(self, op: Operation, accesses: list[Access], in_graph: bool) -> None:
        """In which order threads use it is open, so it is one or the other."""
        use = "kernel" if op.name in ("fill", "iota", "mix") else "graph" if op.name == "copy" and in_graph else None
        for region in (self.regions[access[0]] for access in accesses if use):
            if use and region.pinned and "pinned-kernel" in self.features and "pinned-both" not in self.features:
                if region.uses - {use}:
                    raise Illegal("kernels and copies of graphs")
                region.uses.add(use)

    def check_places(self, thread: int, op: Operation, accesses: list[Access]) -> None:
        """Whether memory of these kinds may stand there."""
        for access in accesses:
            self.bounded(thread, access)
        kinds = [self.region(thread, access[0]) for access in accesses]
        if op.name == "host" and not all(region.host for region in kinds):
            raise Illegal("a host function cannot reach device memory")
        if op.name == "stamp" and kinds[0].kind in ("pool", "graph", "managed"):
            raise Illegal("the driver takes no memory of pools there")
        if op.name in ("fill", "iota", "mix", "stamp", "set") and any(region.host for region in kinds):
            feature = {"set": "pinned-set", "stamp": "pinned-word"}.get(op.name, "pinned-kernel")
            if feature not in self.features or not all(region.kind == "pinned" or not region.host for region in kinds):
                raise Illegal("a kernel on host memory")
        if op.name == "copy" and kinds[0].host and kinds[1].host and op.args[0] != UVA:
            raise Illegal("a copy inside the program's memory that is not synchronous")
