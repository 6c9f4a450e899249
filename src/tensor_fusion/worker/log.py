"""The worker's log: off unless TF_ENABLE_LOG, one line per event as native code writes them, never a secret."""

from __future__ import annotations

import logging
import sys
import time

from tensor_fusion.config import LogSettings, UserError

LOGGER = logging.getLogger("tensor_fusion.worker")
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = {"WARNING": "WARN"}.get(record.levelname, record.levelname)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"{moment}.{int(record.msecs):03d}Z {level:<5} worker[{record.process}]: {text}"


def configure(settings: LogSettings) -> None:
    """Send the log where TF_LOG_PATH says; the standard output is its default, as the original documents."""
    LOGGER.propagate = False
    LOGGER.handlers.clear()
    if not settings.enabled:
        LOGGER.addHandler(logging.NullHandler())
        LOGGER.setLevel(logging.CRITICAL)
        return
    try:
        handler = logging.FileHandler(settings.path) if settings.path else logging.StreamHandler(sys.stdout)
    except OSError as error:
        raise UserError(f"TF_LOG_PATH {settings.path} cannot be written: {error.strerror}.") from error
    handler.setFormatter(_Lines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(_LEVELS[settings.level])
