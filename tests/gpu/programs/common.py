"""What every Python program of the suite shares: the result line, the proof of where libcuda came from, statistics.

A program calls `begin()` first and `finish(digest, metrics)` last. The result line also carries the paths of every
libcuda and libnvidia-ml in the process, so that the runner can refuse a "remote" run that used the machine's driver.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def begin() -> None:
    """Arm faulthandler: on SIGABRT (the runner's timeout) and on a crash every thread's stack goes to stderr."""
    faulthandler.enable(all_threads=True)


def mapped_libraries() -> list[str]:
    """Paths of the driver libraries that this process has mapped, ours or NVIDIA's."""
    names = ("libcuda.so", "libnvidia-ml.so", "libteleport.so")
    found: set[str] = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(None, 5)[5] if len(line.split(None, 5)) == 6 else ""
        if Path(path).name.startswith(names):
            found.add(path)
    return sorted(found)


class Digest:
    """SHA-256 over named results; the order of `add` matters and every part is length-prefixed."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.parts: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        self._sha.update(f"{name}:{len(data)}:".encode())
        self._sha.update(data)
        self.parts[name] = hashlib.sha256(data).hexdigest()[:16]

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def client_stats() -> dict[str, Any] | None:
    """The client library's counters now, or None where no such library is loaded (a native run)."""
    for path in mapped_libraries():
        if Path(path).name.startswith("libteleport.so"):
            library = ctypes.CDLL(path)
            stats = library.tp_stats_json
            stats.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
            stats.restype = ctypes.c_size_t
            size = 1 << 20
            buffer = ctypes.create_string_buffer(size)
            needed = stats(buffer, size)
            if needed >= size:
                raise RuntimeError(f"tp_stats_json needs {needed} bytes, more than {size}")
            value = json.loads(buffer.value.decode())
            if not isinstance(value, dict):
                raise RuntimeError(f"tp_stats_json gave {type(value).__name__}, not an object")
            return value
    return None


def finish(digest: Digest | str, metrics: dict[str, float] | None = None, **more: Any) -> None:
    """Print the one result line; the last thing a program does."""
    text = digest if isinstance(digest, str) else digest.hexdigest()
    line: dict[str, Any] = {"digest": text, "metrics": metrics or {}, "libraries": mapped_libraries(), **more}
    if isinstance(digest, Digest):
        line["parts"] = digest.parts
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def clock() -> float:
    return time.perf_counter()
