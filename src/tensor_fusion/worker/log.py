"""The worker's log: off unless TF_ENABLE_LOG, one line per event as native code writes them, never a secret."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import sys
import time

from tensor_fusion.config import MEGABYTE, LogSettings, UserError
from tensor_fusion.terminal import complain, folded

LOGGER = logging.getLogger("tensor_fusion.worker")
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


# How a line of a session begins: native/base/log.c.
_OF_SESSION = re.compile(r"[-0-9T:.]{23}Z (TRACE|DEBUG|INFO |WARN |ERROR) session\[([0-9]+)\]: ")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "whole", False):  # a session has made all of it
            return record.getMessage()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = {"WARNING": "WARN"}.get(record.levelname, record.levelname)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"{moment}.{int(record.msecs):03d}Z {level:<5} worker[{record.process}]: {text}"


def discard_output() -> None:
    """What is left in the standard output's buffer goes nowhere, as the interpreter would fail on it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _SaysOnce(logging.Handler):
    """A disk that is full is said in one sentence, and the worker serves on without a log."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            complain(f"tensor-fusion-worker: The log cannot be written: {error.strerror}; lines are missing.")
            if isinstance(self, _OutputLog):
                discard_output()


class _FileLog(_SaysOnce, logging.handlers.WatchedFileHandler):
    """Follows its path, as the sessions do: whoever moves the file away, the next line makes a new one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of the new file, which logging's own does not expect: the folder may be gone
            self.handleError(record)


class _OutputLog(_SaysOnce, logging.StreamHandler):  # type: ignore[type-arg]  # generic since Python 3.11 only
    """One line for each event, but on a terminal, where it is broken between words, as a session's is."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(folded(line, "  ", stream=self.stream) for line in super().format(record).split("\n"))


def said(process: int, line: str) -> None:
    """A line of a session that has no file, as it would write it itself: errors to the standard error as well."""
    text = "".join(letter if letter.isprintable() else "?" for letter in line)
    found = _OF_SESSION.match(text)
    own = found is not None and int(found[2]) == process
    level = logging.INFO
    if found and own:
        level = {"DEBUG": logging.DEBUG, "TRACE": logging.DEBUG, "ERROR": logging.ERROR}.get(found[1], logging.INFO)
        LOGGER.log(level, "%s", text, extra={"whole": True})
    else:  # the driver's, or one that is to look like another's
        text = f"session {process} says: {text}"
        LOGGER.info("%s", text)
    if LOGGER.level > logging.ERROR or (
        level == logging.ERROR and any(isinstance(h, _FileLog) for h in LOGGER.handlers)
    ):
        complain(text)


def reopen() -> None:
    """SIGHUP. What was moved away would be noticed at the next line; this makes the new file at once."""
    for handler in LOGGER.handlers:
        if isinstance(handler, _FileLog):
            try:
                handler.reopenIfNeeded()
            except OSError as error:
                complain(f"tensor-fusion-worker: The log {handler.baseFilename}: {error.strerror}.")


def bound(settings: LogSettings) -> None:
    """Move the file away when it has become too long, in place of the one before it. To be called now and then."""
    path = settings.path
    if not settings.enabled or path is None or settings.megabytes == 0:
        return
    try:
        if path.is_file() and not path.is_symlink() and path.stat().st_size > settings.megabytes * MEGABYTE:
            path.replace(path.with_name(f"{path.name}.1"))
    except OSError as error:
        LOGGER.error("the log cannot be moved to %s.1: %s", path, error.strerror)
        return
    reopen()


def configure(settings: LogSettings) -> None:
    """Send the log where TF_LOG_PATH says; the standard output is its default, as the original documents."""
    LOGGER.propagate = False
    LOGGER.handlers.clear()
    if not settings.enabled:
        LOGGER.addHandler(logging.NullHandler())
        LOGGER.setLevel(logging.CRITICAL)
        return
    try:
        handler = _FileLog(settings.path) if settings.path else _OutputLog(sys.stdout)
    except OSError as error:
        raise UserError(f"TF_LOG_PATH {settings.path} cannot be written: {error.strerror}.") from error
    handler.setFormatter(_Lines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(_LEVELS[settings.level])
