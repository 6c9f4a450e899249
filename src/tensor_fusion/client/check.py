"""One line of a report: what was looked at, whether it is right, what was seen or what to do next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tensor_fusion.config import UserError


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    text: str
    cause: str = ""  # by name, where it is known; of a check that passed: something that is worth a look
    command: str = ""  # what to type next


# What is waited for and for how many seconds at most: shown while the context lasts.
Waiting = Callable[[str, float], AbstractContextManager[None]]


def unseen(what: str, seconds: float) -> AbstractContextManager[None]:
    """Nobody is told of the waiting."""
    del what, seconds
    return nullcontext()


def check(name: str, look: Callable[[], str], during: AbstractContextManager[None] | None = None) -> Check:
    """What `look` says, or the sentence of the UserError that it raises."""
    try:
        with during or nullcontext():
            return Check(name, True, look())
    except UserError as error:
        return Check(name, False, error.sentence)
