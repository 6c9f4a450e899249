"""Sentences for people at a terminal: broken between words, where the terminal would break within them."""

from __future__ import annotations

import errno
import os
import resource
import sys
import textwrap
from pathlib import Path
from typing import TextIO

NARROWEST = 40


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


def few_descriptors(error: OSError) -> str | None:
    """The sentence for an error that says that there are none left, None for any other error."""
    if error.errno not in (errno.EMFILE, errno.ENFILE):
        return None
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return f"There are too few descriptors ({error.strerror}; ulimit -n allows {most}); raise it."
