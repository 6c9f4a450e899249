"""Graphs and captures of the model: races between nodes, what may be changed, what a capture forbids."""

from __future__ import annotations

from dataclasses import replace

from random_programs.operations import Operation
from random_programs.state import (
    FREES_FIRST,
    HOST_KINDS,
    MOST_NODES,
    Capture,
    Graph,
    Illegal,
    Node,
    Race,
    State,
    Stream,
    overlap,
)


class GraphRules(State):
    def add_node(self, graph: Graph, number: int, node: Node) -> None:
        if len(graph.nodes) >= MOST_NODES or number in graph.nodes:
            raise Illegal("no room for the node")
        for other, there in graph.nodes.items():
            if not node.before >> other & 1 and any(
                overlap(a, b) and (a[3] or b[3]) for a in node.accesses for b in there.accesses
            ):
                raise Illegal("a race of nodes")
        graph.nodes[number] = node
        try:
            self.check_mixed(graph)
        except Illegal:
            del graph.nodes[number]
            raise

    def check_mixed(self, graph: Graph) -> None:
        copies = [a for n in graph.nodes.values() if n.kind in ("copy", "child") for a in n.accesses]
        ours = [a for a in copies if a[0] in self.regions and self.regions[a[0]].host]
        downs = [a for a in ours if a[3]]
        if "downloads-meet" not in self.features and any(
            overlap(a, b) for i, a in enumerate(downs) for b in downs[i + 1 :]
        ):
            raise Illegal("downloads to the same memory")
        functions = [number for number, n in graph.nodes.items() if n.kind == "host"]
        if "graph-mixed" not in self.features and functions and ours:
            raise Illegal("a host function beside copies")
        if "graph-bridge" in self.features:
            return
        for number, first in graph.nodes.items():
            for second in graph.nodes.values():
                if first.kind not in ("copy", "child") or second.kind not in ("copy", "child"):
                    continue
                between = any(second.before >> f & 1 and graph.nodes[f].before >> number & 1 for f in functions)
                if (
                    second.before >> number & 1
                    and not between
                    and any(
                        overlap(a, b) and a[3] and not b[3] and a in ours
                        for a in first.accesses
                        for b in second.accesses
                    )
                ):
                    raise Illegal("down and up again")

    def add_captured(self, stream: Stream, node: Node) -> None:
        capture = self.capture
        assert capture
        number = len(capture.graph.nodes)
        mask = capture.streams[stream.key]
        self.add_node(capture.graph, number, replace(node, before=mask))
        capture.streams[stream.key] = mask | 1 << number

    def graph_of(self, thread: int, table: dict[int, Graph], number: int, kind: str) -> Graph:
        graph = table.get(number)
        if graph is None or graph.context != self.current[thread]:
            raise Illegal(f"no {kind} {number} in this context")
        self.claim(thread, (kind, number))
        return graph

    def do_node(self, op: Operation) -> None:
        graph = self.graph_of(op.thread, self.graphs, op.args[0], "graph")
        effect = op.inner
        assert effect
        if not graph.handles:
            raise Illegal("a captured graph")
        before = 0
        for number in range(MOST_NODES):
            if op.args[2] >> number & 1:
                if number not in graph.nodes:
                    raise Illegal("no such node")
                before |= 1 << number | graph.nodes[number].before
        if effect.name == "child":
            child = self.graph_of(op.thread, self.graphs, effect.args[0], "graph")
            if child is graph or not child.nodes or len(child.nodes) + len(graph.nodes) > MOST_NODES // 2:
                raise Illegal("no such child")
            if child.allocates:
                raise Illegal("a child that allocates")
            if "graph-mixed" not in self.features and any(
                n.kind == "host" or any(self.regions[a[0]].host for a in n.accesses if a[0] in self.regions)
                for n in child.nodes.values()
            ):
                raise Illegal("a child with host memory")
            self.alive(op.thread, child)
            node = Node(child.accesses(), before, "child", None, op.args[2])
        elif effect.name in ("stamp",):
            raise Illegal("no such node")
        else:
            accesses = self.effect_accesses(effect)
            self.check_places(op.thread, effect, accesses)
            self.keep_apart(effect, accesses, in_graph=True)
            if effect.name == "copy" and all(self.regions[a[0]].host for a in accesses):
                raise Illegal("inside the program's memory")
            node = Node(accesses, before, effect.name, effect, op.args[2])
        self.add_node(graph, op.args[1], node)

    def alive(self, thread: int, graph: Graph) -> None:
        for access in graph.accesses():
            if access[0] not in graph.memory:
                self.bounded(thread, access)

    def kin(self, number: int) -> str:
        """A copy's side may move within memory of one kind. A driver (580.159.04, asked) takes an update from pinned or
        registered memory to memory that it does not know, and the launch then ends with 700."""
        if number not in self.regions:
            raise Illegal("the memory of the node is gone")
        kind = self.regions[number].kind
        if kind == "graph":
            raise Illegal("memory of a graph")
        return kind if kind not in HOST_KINDS or kind in ("pinned", "registered") else "host"

    def same_form(self, old: Operation, new: Operation) -> bool:
        """What cuGraphExec...SetParams and an update may change: addresses and values, rows of one, the same kernel."""
        if old.name != new.name:
            return False
        if old.name == "copy":
            return old.args[9] == new.args[9] == 1 and all(
                self.kin(old.args[side]) == self.kin(new.args[side]) for side in (2, 5)
            )
        if old.name == "set":
            return old.args[7] == new.args[7] == 1 and old.args[0] >> 1 == new.args[0] >> 1
        return old.name in ("fill", "iota", "mix", "spin")

    def do_setnode(self, op: Operation) -> None:
        ready = self.graph_of(op.thread, self.execs, op.args[0], "exec")
        number = op.args[2]
        effect = op.inner
        assert effect
        if (
            ready.origin != op.args[1]
            or op.args[1] not in self.graphs
            or not ready.handles
            or number not in ready.nodes
        ):
            raise Illegal("no such node")
        self.graph_of(op.thread, self.graphs, op.args[1], "graph")
        node = ready.nodes[number]
        accesses = self.effect_accesses(effect)
        self.check_places(op.thread, effect, accesses)
        self.keep_apart(effect, accesses, in_graph=True)
        if (
            effect.name == "copy"
            and "graph-mixed-set" not in self.features
            and any(n.kind in ("host", "child") for n in ready.nodes.values())
        ):
            raise Illegal("a copy beside host functions")
        old = self.graphs[op.args[1]].nodes[number].effect
        if node.effect is None or old is None:
            raise Illegal("another form")
        if any(a[0] not in self.regions for o in (old, node.effect) for a in self.effect_accesses(o)):
            raise Illegal("the memory of the node is gone")
        if not self.same_form(node.effect, effect):
            raise Illegal("another form")
        changed = replace(node, accesses=accesses, effect=effect)
        for other, there in ready.nodes.items():
            ordered = changed.before >> other & 1 or there.before >> number & 1
            races = any(overlap(a, b) and (a[3] or b[3]) for a in accesses for b in there.accesses)
            if other != number and not ordered and races:
                raise Illegal("a race of nodes")
        trial = replace(ready, nodes={**ready.nodes, number: changed})
        self.check_mixed(trial)
        ready.nodes = trial.nodes

    def do_launch(self, op: Operation) -> None:
        ready = self.graph_of(op.thread, self.execs, op.args[0], "exec")
        stream = self.stream(op.thread, op.args[1])
        self.alive(op.thread, ready)
        accesses = ready.accesses()
        if self.capture:
            if stream.key not in self.capture.streams or ready.allocates:
                raise Illegal("not beside a capture")
            if any(self.regions[a[0]].host for a in accesses):
                raise Illegal("a graph with host memory in a capture")
            self.add_captured(stream, Node(accesses, 0, "child", None))
            return
        for node in ready.nodes.values():
            if node.kind != "copy":
                continue
            for access in node.accesses:
                region = self.regions[access[0]]
                pending = self.writers(access) & ~self.host[op.thread] if region.host and not access[3] else 0
                if pending and (not region.pinned or "graph-behind" not in self.features):
                    raise Race(pending, None)
        downs = [a for n in ready.nodes.values() if n.kind in ("copy", "child") for a in n.accesses]
        downs = [a for a in downs if a[3] and self.regions[a[0]].host]
        self.land(op.thread, downs)
        left = {number for number in ready.memory if self.regions[number].live}
        if left and not ready.frees_first:
            raise Illegal("its memory is allocated")
        for number in ready.memory:
            self.regions[number].live = True
        try:
            bit = self.work(op.thread, stream, accesses, ready.tail)
        except Illegal:
            for number in ready.memory - left:
                self.regions[number].live = False
            raise
        self.downloads += [(a, bit) for a in downs]
        ready.tail |= bit | stream.tail

    def do_update(self, op: Operation) -> None:
        ready = self.graph_of(op.thread, self.execs, op.args[0], "exec")
        graph = self.graph_of(op.thread, self.graphs, op.args[1], "graph")
        if len(ready.nodes) != len(graph.nodes) or list(ready.nodes) != list(graph.nodes) or ready.allocates:
            raise Illegal("another shape")
        for number, node in graph.nodes.items():
            old = ready.nodes[number]
            if node.edges != old.edges or node.kind != old.kind:
                raise Illegal("another shape")
            if node.effect != old.effect:
                if node.effect is None or old.effect is None:
                    raise Illegal("another child")
                for access in old.accesses:
                    if access[0] not in self.regions:
                        raise Illegal("the memory of the node is gone")
                if node.kind != "host" and not self.same_form(old.effect, node.effect):
                    raise Illegal("another form")
            elif node.kind == "child":
                raise Illegal("a child")
        self.alive(op.thread, graph)
        ready.nodes = dict(graph.nodes)
        ready.origin = -1  # single nodes are not known by the new graph's handles

    def do_end_capture(self, op: Operation) -> None:
        capture = self.capture
        stream = self.stream(op.thread, op.args[0])
        if capture is None or stream is not capture.origin:
            raise Illegal("no capture to end")
        self.fresh("graph", op.args[1])
        end = capture.streams[stream.key]
        # Each stream that was forked must have come back: its last node is behind the origin's.
        if any(mask | end != end for mask in capture.streams.values()) or not capture.graph.nodes:
            raise Illegal("streams that were not joined")
        nodes = {
            number: replace(node, accesses=[a for a in node.accesses if a[0] not in capture.freed])
            for number, node in capture.graph.nodes.items()
        }
        self.graphs[op.args[1]] = replace(capture.graph, nodes=nodes, handles=False, memory=set(capture.memory))
        self.capture = None

    def do_graph(self, op: Operation) -> None:
        self.fresh("graph", op.args[0])
        self.claim(op.thread, ("graph", op.args[0]))
        self.graphs[op.args[0]] = Graph(self.current[op.thread])

    def do_inst(self, op: Operation) -> None:
        self.fresh("exec", op.args[0])
        graph = self.graph_of(op.thread, self.graphs, op.args[1], "graph")
        self.alive(op.thread, graph)
        if graph.allocates and op.args[1] in self.made_ready:
            raise Illegal("it is executable once")
        self.claim(op.thread, ("exec", op.args[0]))
        self.made_ready.add(op.args[1])
        frees = op.args[2] == FREES_FIRST
        self.execs[op.args[0]] = replace(graph, nodes=dict(graph.nodes), origin=op.args[1], tail=0, frees_first=frees)

    def do_upload(self, op: Operation) -> None:
        ready = self.graph_of(op.thread, self.execs, op.args[0], "exec")
        stream = self.stream(op.thread, op.args[1])
        self.alive(op.thread, ready)
        self.work(op.thread, stream, [], ready.tail, memory_only=True)

    def do_clone(self, op: Operation) -> None:
        self.fresh("graph", op.args[0])
        graph = self.graph_of(op.thread, self.graphs, op.args[1], "graph")
        if graph.allocates:
            raise Illegal("a graph that allocates")
        self.claim(op.thread, ("graph", op.args[0]))
        self.graphs[op.args[0]] = replace(graph, nodes=dict(graph.nodes), handles=False)

    def do_graph_destroy(self, op: Operation) -> None:
        self.graph_of(op.thread, self.graphs, op.args[0], "graph")
        del self.graphs[op.args[0]]

    def do_exec_destroy(self, op: Operation) -> None:
        self.graph_of(op.thread, self.execs, op.args[0], "exec")
        del self.execs[op.args[0]]

    def do_capture(self, op: Operation) -> None:
        stream = self.stream(op.thread, op.args[0])
        if stream.legacy:
            raise Illegal("the legacy stream cannot be captured")
        if self.acted - {op.thread}:
            raise Illegal("other threads are at work")
        self.sole = op.thread
        self.claim(op.thread, stream.key)
        self.capture = Capture(op.thread, op.args[1], stream, {stream.key: 0}, Graph(stream.context))
