"""The lines of a session in the full jail, which has no file: they come through a pipe, and the worker writes them.

One event loop thread enters. What comes was written by a process that a hostile client may have taken over: it is cut
into lines, bounded, and what does not begin as a line of this session's does is marked as said by it. A session that
writes more than it may waits until the next second; it holds up nobody else.
"""

from __future__ import annotations

import asyncio
import os

from tensor_fusion.worker import log

LONGEST = 8192  # bytes of a line; native code writes 2048 at most
PIECE = 65536
# Native code writes 50 lines a second, of 2048 bytes, unless the level asks for everything.
A_SECOND = 131072


class Lines:
    def __init__(self, bounded: bool) -> None:
        """`given` is the session's end."""
        self._end, self.given = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._end, False)
        self._bounded = bounded
        self._process = 0
        self._rest = b""
        self._second, self._read = 0, 0
        self._over = False
        self._pause: asyncio.TimerHandle | None = None

    def begin(self, process: int) -> None:
        """The session runs, and has its end."""
        os.close(self.given)
        self.given = -1
        self._process = process
        asyncio.get_running_loop().add_reader(self._end, self._ready)

    def reading(self) -> bool:
        """Whether the session has its end still open."""
        return not self._over

    def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._take(PIECE):
            self._over = True
            loop.remove_reader(self._end)
            return
        second = int(loop.time())
        if second != self._second:
            self._second, self._read = second, 0
        if self._bounded and self._read > A_SECOND:
            loop.remove_reader(self._end)
            self._pause = loop.call_at(second + 1, loop.add_reader, self._end, self._ready)

    def _take(self, most: int) -> bool:
        """False at the end."""
        try:
            data = os.read(self._end, most)
        except BlockingIOError:
            return True
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            lines.append(self._rest[:LONGEST])
            self._rest = b""
        for line in lines:
            log.said(self._process, line[:LONGEST].decode("utf-8", "replace"))
        return bool(data)

    def close(self) -> None:
        """The session has ended: what it said last is written, as much as a pipe holds."""
        if self.given >= 0:
            os.close(self.given)
            os.close(self._end)
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._end)
        if self._pause:
            self._pause.cancel()
        self._take(PIECE)
        if self._rest:
            log.said(self._process, self._rest.decode("utf-8", "replace"))
        os.close(self._end)
