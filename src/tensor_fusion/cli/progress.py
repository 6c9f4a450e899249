"""How far a command is and how long it still takes: one line that is written anew; where no terminal is, plain ones.

The line is on standard error, has no colours and no characters beyond ASCII of its own, fits the terminal without
breaking a word, and is gone when what it tells of is over.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tensor_fusion.terminal import complain, plain

# What is over sooner is not worth a line that comes and goes.
PATIENCE = 0.5
LOOKS_PER_SECOND = 4


def on_terminal() -> bool:
    """Whether a line can be written anew: rich would also believe an environment that says so of a pipe."""
    return sys.stderr is not None and sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


def duration(seconds: float) -> str:
    """For people: 8 s, 1 min 30 s, 2 h 5 min."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def fitted(what: str, left: str, width: int) -> str:
    """Both in one line: where there is too little room, words at the end of `what` are left out."""
    words = what.split(" ")
    while True:
        text = " ".join(words) + ("" if len(words) == len(what.split(" ")) else " ...") + left
        if len(text) <= width or len(words) == 1:
            return text[:width]
        words.pop()


class Line:
    """What is going on, and when it is thought to end, or must end at the latest."""

    def __init__(self, command: str, what: str = "", seconds: float | None = None, *, latest: bool = False) -> None:
        self._command = command
        self._latest = latest
        self._since = time.monotonic()
        self.now(what, seconds)

    def now(self, what: str, seconds: float | None) -> None:
        self._what = what
        self._end = None if seconds is None else time.monotonic() + seconds

    def text(self, width: int) -> str:
        left = ""
        if self._end is not None:
            left = f", {'for up to' if self._latest else 'about'} {duration(self._end - time.monotonic())}"
            left += " more" if self._latest else " left"
        return fitted(f"{self._command}: {self._what}", left, width)

    def __rich_console__(self, console: Console, _: object) -> Iterator[Text]:
        if self._what and time.monotonic() - self._since >= PATIENCE:
            yield Text(self.text(console.width - 1), no_wrap=True, overflow="crop", end="")


@contextmanager
def after_patience(say: Callable[[], None]) -> Iterator[None]:
    """Says it, on a thread of its own, if this lasts."""
    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # what it says stands before what the command says next


@contextmanager
def shown(line: Line) -> Iterator[None]:
    """The line stands at the foot of the terminal while this lasts; what is printed meanwhile stands above it."""
    if not on_terminal():
        yield
        return
    console = Console(stderr=True, highlight=False, no_color=True)
    with Live(line, console=console, transient=True, refresh_per_second=LOOKS_PER_SECOND):
        yield


class Waiting:
    """For a command that waits for one thing after the other; a pipe gets nothing, or with `in_pipes` a line."""

    def __init__(self, command: str, *, in_pipes: bool = False) -> None:
        self._command = command
        self._in_pipes = in_pipes

    @contextmanager
    def __call__(self, what: str, seconds: float) -> Iterator[None]:
        what = plain(what)
        if self._in_pipes and not on_terminal():
            sentence = f"{self._command}: waiting for {what}, for up to {duration(seconds)}"
            with after_patience(partial(complain, sentence)):
                yield
            return
        with shown(Line(self._command, f"waiting for {what}", seconds, latest=True)):
            yield


class Steps:
    """For a command of many steps; a pipe gets a line for each."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._line = Line(command)
        self._live = on_terminal()

    @contextmanager
    def shown(self) -> Iterator[None]:
        with shown(self._line):
            yield

    def step(self, what: str, seconds: float | None) -> None:
        """`seconds`: how long it and all that follows will take, if that can be told."""
        if self._live:
            self._line.now(what, seconds)
        else:
            self.say(what + ("" if seconds is None else f", about {duration(seconds)} left"))

    def say(self, text: str) -> None:
        complain(f"{self._command}: {text}")
