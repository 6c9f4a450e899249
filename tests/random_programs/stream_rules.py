"""Streams, events, contexts and barriers of the model: who waits for what, and who may ask."""

from __future__ import annotations

from random_programs.operations import Operation
from random_programs.state import DISABLE_TIMING, NON_BLOCKING, Event, Illegal, State, Stream


class StreamRules(State):
    def do_stream(self, op: Operation) -> None:
        self.fresh("stream", op.args[0])
        if op.args[0] < 3:
            raise Illegal("a reserved number")
        context = self.current[op.thread]
        key = (op.args[0],)
        self.claim(op.thread, key)
        self.streams[key] = Stream(key, context, not op.args[1] & NON_BLOCKING)

    def do_stream_destroy(self, op: Operation) -> None:
        stream = self.stream(op.thread, op.args[0])
        if op.args[0] < 3:
            raise Illegal("not to be destroyed")
        self.claim(op.thread, stream.key)
        self.orphans[stream.context, op.thread] = self.orphans.get((stream.context, op.thread), 0) | stream.tail
        del self.streams[stream.key]

    def waited(self, thread: int, stream: Stream) -> int:
        """What a wait for the stream covers."""
        self.claim(thread, stream.key)
        return self.start_of(thread, stream) if stream.legacy else stream.tail

    def do_stream_sync(self, op: Operation) -> None:
        self.host[op.thread] |= self.waited(op.thread, self.stream(op.thread, op.args[0]))

    do_stream_poll = do_stream_sync

    def do_stream_done(self, op: Operation) -> None:
        if "done" not in self.features:
            raise Illegal("not asked")
        stream = self.stream(op.thread, op.args[0])
        everything = stream.tail | self.orphaned(op.thread, stream.context)
        for other in self.streams.values():
            if other.context == stream.context and (other.legacy or stream.legacy):
                everything |= self.visible(op.thread, other)
        if everything & ~self.host[op.thread] or (stream.legacy and self.acted - {op.thread}):
            raise Illegal("not known to be complete")
        if stream.legacy:
            self.sole = op.thread  # other threads' work would count
        self.claim(op.thread, stream.key)

    def do_ctx_sync(self, op: Operation) -> None:
        context = self.current[op.thread]
        self.host[op.thread] |= self.orphaned(op.thread, context)
        for stream in self.streams.values():
            if stream.context == context:
                self.host[op.thread] |= self.visible(op.thread, stream)

    def do_context(self, op: Operation) -> None:
        if op.args[0] not in (0, 1):
            raise Illegal("no such context")
        if op.args[0] not in self.made_contexts:
            self.claim(op.thread, ("context", op.args[0]))  # the first to use it makes it
        self.seen.setdefault("context", set()).add(op.args[0])
        self.current[op.thread] = op.args[0]

    def do_event(self, op: Operation) -> None:
        self.fresh("event", op.args[0])
        self.claim(op.thread, ("event", op.args[0]))
        self.events[op.args[0]] = Event(not op.args[1] & DISABLE_TIMING, self.current[op.thread])

    def event(self, thread: int, number: int) -> Event:
        event = self.events.get(number)
        if event is None:
            raise Illegal("no such event")
        self.claim(thread, ("event", number))
        return event

    def do_event_destroy(self, op: Operation) -> None:
        self.event(op.thread, op.args[0])
        del self.events[op.args[0]]

    def do_record(self, op: Operation) -> None:
        event = self.event(op.thread, op.args[0])
        stream = self.stream(op.thread, op.args[1])
        if event.context != stream.context:
            raise Illegal("of another context")
        if self.capture and stream.key in self.capture.streams:
            event.captured = True
            self.capture.events[op.args[0]] = self.capture.streams[stream.key]
            return
        if self.capture:
            raise Illegal("not beside a capture")
        self.claim(op.thread, stream.key)
        stream.tail = self.start_of(op.thread, stream) | self.new_bit(op.thread)
        event.mask, event.recorded, event.captured = stream.tail, True, False

    def do_wait(self, op: Operation) -> None:
        stream = self.stream(op.thread, op.args[0])
        event = self.event(op.thread, op.args[1])
        capture = self.capture
        if capture and op.args[1] in capture.events:
            if stream.legacy:
                raise Illegal("the legacy stream cannot be captured")
            self.claim(op.thread, stream.key)
            capture.streams[stream.key] = capture.streams.get(stream.key, 0) | capture.events[op.args[1]]
            return
        if event.captured or capture:
            raise Illegal("an event of a capture")
        self.claim(op.thread, stream.key)
        stream.tail |= event.mask | self.host[op.thread] | self.new_bit(op.thread)

    def uncaptured(self, thread: int, number: int) -> Event:
        event = self.event(thread, number)
        if event.captured:
            raise Illegal("an event of a capture")
        return event

    def do_event_sync(self, op: Operation) -> None:
        self.host[op.thread] |= self.uncaptured(op.thread, op.args[0]).mask

    do_event_poll = do_event_sync

    def do_event_ask(self, op: Operation) -> None:
        self.uncaptured(op.thread, op.args[0])

    def do_event_done(self, op: Operation) -> None:
        if "done" not in self.features or self.uncaptured(op.thread, op.args[0]).mask & ~self.host[op.thread]:
            raise Illegal("not known to be complete")

    def do_elapsed(self, op: Operation) -> None:
        first, second = (self.uncaptured(op.thread, number) for number in op.args)
        both = (first, second)
        if first.context != second.context or not all(event.recorded and event.timing for event in both):
            raise Illegal("no times")
        if (first.mask | second.mask) & ~self.host[op.thread] or first.mask & ~second.mask or first is second:
            raise Illegal("not complete, or the wrong way round")
