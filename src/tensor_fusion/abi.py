"""Where the native files lie, and the calls into them: the only module of the product that imports ctypes."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tensor_fusion.config import UserError

SCHEMA_BYTES = 16
_PR_SET_PDEATHSIG = 1


def native_folder() -> Path:
    """The folder with client/, bin/, lib/ and coverage.json."""
    chosen = os.environ.get("TF_NATIVE_DIR")
    return Path(chosen).absolute() if chosen else Path(__file__).resolve().parent / "_native"


def native_file(relative: str) -> Path:
    """One native file, or a sentence that says which is missing."""
    path = native_folder() / relative
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the native files are not installed here; install the package with pip, "
            "or set TF_NATIVE_DIR to a folder that has them.",
            exit_code=1,
        )
    return path


class Native(Protocol):
    """What the supervisor needs from native code."""

    schema: bytes

    def release_slot(self, page: mmap.mmap, slot: int) -> None:
        """Take what the session in `slot` had reserved off the totals of the limits page."""


class Teleport:
    """libteleport's C interface."""

    def __init__(self) -> None:
        path = native_file("client/libteleport.so.1")
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UserError(f"{path} cannot be loaded: {error}.", exit_code=1) from error
        digest = (ctypes.c_uint8 * SCHEMA_BYTES)()
        self._library.tp_schema_hash.argtypes = [ctypes.c_void_p]
        self._library.tp_schema_hash.restype = None
        self._library.tp_schema_hash(digest)
        self.schema = bytes(digest)
        self._release = self._library.tp_limits_release
        self._release.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._release.restype = None

    def release_slot(self, page: mmap.mmap, slot: int) -> None:
        self._release(ctypes.addressof(ctypes.c_char.from_buffer(page)), slot)


def stop_with_parent() -> Callable[[], None]:
    """A function for the child between fork and exec: the kernel kills the child when the caller's process dies."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arm
