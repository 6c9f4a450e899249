"""Sentences for people at a terminal: broken between words, where the terminal would break within them."""

from __future__ import annotations

import codecs
import errno
import os
import resource
import sys
import textwrap
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

NARROWEST = 40
# Python has no class of its own for the first; the others are the loader's.
_NO_MEMORY = (
    "can't start new thread",
    "failed to map segment",
    "cannot allocate memory",
    "cannot apply additional memory",
)
# What sentences and tables hold beyond ASCII, and what is near to it.
_NEAR = {"\u2014": "-", "\u2013": "-", "\u2026": "...", "\u00b5": "u", "\u00f7": "/"}


def columns(stream: TextIO) -> int:
    """As wide as COLUMNS says, or the terminal."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return max(int(said), NARROWEST)
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, NARROWEST)
    except OSError:  # a terminal that is gone
        return 80


def folded(text: str, indent: str = "", taken: int = 0, stream: TextIO | None = None) -> str:
    """For the stream, standard output if none is named; elsewhere than at a terminal, and for copying, one line."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty():
        return text
    first = "x" * taken  # what stands in front of it already
    lines = textwrap.wrap(
        first + text, columns(stream), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)[taken:]


def _near(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    near = (_NEAR.get(character) or character.encode("ascii", "backslashreplace").decode() for character in text)
    return "".join(near), error.end


def show_every_character() -> None:
    """A terminal that cannot show a character gets one near to it, or its code; paths are bytes and leave as they came.

    Standard error of Python would show codes alone.
    """
    codecs.register_error("tensor-fusion-near", _near)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            if not utf8:
                stream.reconfigure(errors="tensor-fusion-near")
            elif stream is sys.stdout:
                stream.reconfigure(errors="surrogateescape")


def plain(text: str) -> str:
    """Fit for a terminal whatever it holds: a client names itself, others their sockets."""
    return "".join(character if character.isprintable() else "?" for character in text)


def counted(number: int, word: str, plural: str = "") -> str:
    """The number with the word as it is for so many: 1 call, 2,000 calls."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def open_standard_files() -> None:
    """What of 0, 1 and 2 is missing becomes /dev/null: a socket would get the number, and what is meant for a log."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            file = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
            os.set_inheritable(file.fileno(), True)  # the lowest free number, and so the one that is missing
            setattr(sys, name, file)


def complain(sentence: str) -> None:
    """To standard error, as one sentence."""
    if sys.stderr:  # None in a process that was started without one
        sys.stderr.write(folded(sentence, "  ", stream=sys.stderr) + "\n")


def limited(error: BaseException) -> str | None:
    """The sentence for an error that a limit of this shell causes (ulimit), None for any other error."""
    said = (getattr(error, "strerror", None) or str(error) or type(error).__name__).rpartition(": ")[2]
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return f"There are too few descriptors ({said}; ulimit -n allows {most}); raise it, for example: ulimit -n 8192"
    if number == errno.EFBIG:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        bound = "" if most == resource.RLIM_INFINITY else f"; ulimit -f allows {most >> 10} KiB"
        return f"A file, or memory that counts as one, is too large ({said}{bound}); raise it: ulimit -f unlimited"
    if number == errno.ENOMEM or isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most == resource.RLIM_INFINITY:
            return f"There is too little memory ({said}), or this user has too many threads (ulimit -u)."
        allowed = f"ulimit -v allows {most >> 10} KiB"
        return f"There is too little memory ({said}; {allowed}); raise it: ulimit -v unlimited"
    return None
