"""Clients that come through a shared segment.

A thread of its own beats the segment's heart and looks for greetings, inside native code that releases the
interpreter; everything else happens on the event loop. What the guest writes decides nothing here but its own fate:
whom a slot serves stands in `_clients`, which granules are whose in the owners table.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tensor_fusion.abi import Native
from tensor_fusion.worker.admission import Admission, NotYet, Refused
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import Role, Status, Welcome
from tensor_fusion.worker.segment import Segment
from tensor_fusion.worker.sessions import Session
from tensor_fusion.worker.throttle import BoundedLines

ROUND_MS = 50
WATCH_INTERVAL = 0.2
LOOK_INTERVAL = 1.0
# A session notices by itself that its client has ended; one that hangs in the driver does not.
END_GRACE = 1.0
# A paused virtual machine stops its clients' beats and is to be survived; one that is gone looks the same.
LONGEST_PAUSE = 600.0


@dataclass
class _Client:
    """Who holds a slot, with the slot's meaning for the session that serves it."""

    listener: ShmemListener
    port: int  # the slot
    boot_id: str
    place: tuple[int, int]
    session: Session
    descriptor: int | None = None
    group: str = ""  # a segment is one guest's, and its slots are its quota
    beat: int = 0
    moved: float = 0.0
    over_since: float | None = None
    looked: float = 0.0  # whether its session is stopped
    stopped: bool = False  # and what was found
    ending: bool = False  # its session was killed

    @property
    def address(self) -> str:
        return self.listener.name

    def session_reaped(self) -> None:
        self.listener.session_reaped(self)


class ShmemListener:
    def __init__(self, segment: Segment, native: Native, admission: Admission) -> None:
        if segment.memory is None or segment.owners is None:
            raise ValueError("the segment is closed")
        self._segment = segment
        self.name = segment.settings.shown
        self._megabytes = segment.settings.megabytes
        self._admission = admission
        self._calls = native.segment(segment.memory, segment.owners)
        self._own_boot_id = native.boot_id()
        self._clients: dict[int, _Client] = {}
        self._lines = BoundedLines()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watching: asyncio.Task[None] | None = None
        self.on_failure: Callable[[str], None] = lambda sentence: None

    @property
    def place(self) -> str:
        """What the ready line says."""
        return f"shmem {self.name} {self._megabytes} MB"

    def start(self) -> None:
        if not self._calls.guard():
            LOGGER.warning("this worker would not survive a truncation of %s: SIGBUS cannot be caught", self.name)
        # Not earlier: a header that says SERVING promises a beating heart.
        self._calls.format(secrets.randbits(63) + 1)
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, args=(loop,), name="segment", daemon=True)
        self._thread.start()
        self._watching = loop.create_task(self._watch())

    async def close(self) -> None:
        """Say that nobody is served any more, and let go of the segment."""
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._stop.set()
        if self._thread:
            await asyncio.to_thread(self._thread.join)
            self._calls.close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            found = self._calls.greeting(ROUND_MS)
            if found:
                try:
                    loop.call_soon_threadsafe(self._greeted, *found)
                except RuntimeError:  # the loop has been closed
                    return

    # Greetings

    def _greeted(self, slot: int, raw: bytes, boot_id: str) -> None:
        if self._stop.is_set():
            return
        schema = self._admission.schema
        granted = None
        try:
            try:
                greeting = self._admission.check(raw)
                if greeting.role != Role.CONTROL:
                    raise self._admission.unknown_role(greeting)
                session = self._admission.session(greeting)
            except NotYet as reason:
                raise Refused(Status.NO_SESSION, reason.sentence) from reason
            self._end_former_guests(boot_id)
            granted = self._grant(slot)
            client = _Client(self, slot, boot_id, granted, session, moved=time.monotonic())
            self._admission.adopt(session, greeting, client)
        except Refused as refused:
            level = logging.INFO if refused.status.asked else logging.WARNING
            self._lines.write(level, "", "%s slot %d refused: %s", self.name, slot, refused.sentence)
            self._calls.answer(slot, False, Welcome.build(refused.status, schema, refused.sentence))
            if granted:
                self._calls.release(slot)
            self._admission.sessions.discard_surplus()  # one may have been started for this client
            return
        self._clients[slot] = client
        welcome = Welcome.build(Status.ACCEPTED, schema, session_id=session.id, session_key=session.key)
        self._calls.answer(slot, True, welcome)
        LOGGER.info("%s slot %d is served by %s", self.name, slot, session.name)

    def _grant(self, slot: int) -> tuple[int, int]:
        """What the session is told of its slot. Raises Refused when the arena is full."""
        granted = self._calls.grant(slot)
        if granted is None:
            raise Refused(
                Status.NO_SESSION,
                f"The segment {self.name} of {self._megabytes} MB has no room for one more client; end one, "
                "or give the worker a larger segment with -M.",
            )
        first, blocks = granted
        return slot + 1, first << 32 | blocks

    def _end_former_guests(self, boot_id: str) -> None:
        """One segment belongs to one virtual machine: when it comes with another boot id, it has been started anew."""
        if boot_id in ("", self._own_boot_id):
            return
        for client in list(self._clients.values()):
            if client.boot_id not in ("", boot_id, self._own_boot_id):
                self._end(client, "its machine has been started anew")

    # The end of clients and sessions

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            now = time.monotonic()
            if self._calls.was_cut() or self._segment.was_resized():
                self.on_failure(
                    f"The segment {self.name} was truncated by another process, so this worker ends; "
                    "start it again, and let nobody write the file whom its clients do not trust."
                )
                return
            for client in list(self._clients.values()):
                self._look_at(client, now)

    def _look_at(self, client: _Client, now: float) -> None:
        beat, over = self._calls.beat(client.port)
        if beat != client.beat:
            client.beat, client.moved = beat, now
        if now - client.looked > LOOK_INTERVAL:
            client.looked = now
            self._look_whether_stopped(client)
        if client.over_since is None and (over or now - client.moved > LONGEST_PAUSE):
            client.over_since = now
        if client.over_since is None:
            return
        if not over:
            self._end(client, f"its client has given no sign of life for {LONGEST_PAUSE / 60:.0f} minutes")
        elif now - client.over_since > END_GRACE:
            self._end(client, "its client's process has ended")

    def _look_whether_stopped(self, client: _Client) -> None:
        stopped = client.session.is_stopped()
        if stopped != client.stopped:
            client.stopped = stopped
            LOGGER.warning("%s %s", client.session.name, "is stopped, and its client waits" if stopped else "goes on")
            self._calls.stopped(client.port, stopped)

    def _end(self, client: _Client, reason: str) -> None:
        if not client.ending:
            client.ending = True
            LOGGER.warning("%s is ended: %s", client.session.name, reason)
            self._admission.sessions.kill(client.session)

    def session_reaped(self, client: _Client) -> None:
        if self._clients.get(client.port) is client:
            del self._clients[client.port]
            self._calls.release(client.port)
