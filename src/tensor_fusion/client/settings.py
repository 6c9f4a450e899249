"""Settings of the client that are not used as they stand, each with what is used instead. None stops a program."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensor_fusion.config import unknown_variables

_SWITCHES = ("TF_ENABLE_LOG", "TF_STRICT")
_WORDS = ("", "0", "false", "no", "off", "1", "true", "yes", "on")  # as native/base/log.c takes them
_LEVELS = ("", "trace", "debug", "info", "warn", "error")


def odd_settings(environ: Mapping[str, str]) -> Iterator[str]:
    for name in _SWITCHES:
        if environ.get(name, "").lower() not in _WORDS:
            yield f"{name}={environ[name]} is neither 1 nor 0; 0 is used."
    level = environ.get("TF_LOG_LEVEL", "")
    if level.lower() not in _LEVELS:
        yield f"TF_LOG_LEVEL={level} is not one of trace, debug, info, warn, error; info is used."
    count = environ.get("TF_MAX_CACHE_REQUEST_COUNT", "")
    if count and not (count.isascii() and count.isdigit() and 1 <= int(count) <= 1_000_000):
        yield f"TF_MAX_CACHE_REQUEST_COUNT={count} is no number from 1 to 1000000; 100 is used."
    path = environ.get("TF_LOG_PATH", "")
    if path and not _writable(Path(path)):
        yield f"TF_LOG_PATH={path} cannot be written; the client's log goes to standard error."
    yield from unknown_variables(environ)


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK) if path.exists() else path.parent.is_dir() and os.access(path.parent, os.W_OK)
