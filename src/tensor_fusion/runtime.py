"""Where a worker tells this machine's users how it is: a unix socket in the runtime folder, one for each worker.

A worker makes its socket for its own user and root alone, and says everything to whoever may connect: one JSON text for
each connection. Who asks believes only sockets of its own user and of root; root asks those of all.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensor_fusion.client.check import Waiting, unseen
from tensor_fusion.config import UserError

NAME = "tensor-fusion"
# Of a thousand clients there are some 400 KB to tell.
LONGEST = 4 << 20
PATIENCE = 5.0
_PEER = struct.Struct("3i")


def runtime_folder(environ: Mapping[str, str]) -> Path:
    """Where a worker puts its socket."""
    if chosen := environ.get("TF_RUNTIME_PATH"):
        return Path(chosen).absolute()
    if given := environ.get("RUNTIME_DIRECTORY"):  # of systemd
        return Path(given.partition(":")[0])
    if session := environ.get("XDG_RUNTIME_DIR"):
        return Path(session, NAME)
    return Path("/run", NAME) if os.geteuid() == 0 else Path("/tmp", f"{NAME}-{os.geteuid()}")


def folders(environ: Mapping[str, str]) -> list[Path]:
    """Where workers may have put theirs, as far as this user may ask them."""
    if chosen := environ.get("TF_RUNTIME_PATH"):
        return [Path(chosen)]
    root = os.geteuid() == 0
    found = [Path(environ["XDG_RUNTIME_DIR"], NAME)] if environ.get("XDG_RUNTIME_DIR") else []
    found += Path("/run").glob(f"{NAME}*")
    found += Path("/run/user").glob(f"{'*' if root else os.geteuid()}/{NAME}")
    found += Path("/tmp").glob(f"{NAME}-{'[0-9]*' if root else os.geteuid()}")
    return list(dict.fromkeys(path.resolve() for path in found))


def own_folder(environ: Mapping[str, str]) -> Path:
    """The same folder, made if it is not there. Raises UserError where others could put something in it."""
    path = runtime_folder(environ)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}; name another folder by TF_RUNTIME_PATH.") from error
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"Others may write into {path}; name another folder by TF_RUNTIME_PATH.")
    return path


def peer_user(connection: socket.socket) -> int:
    """Who is at the other end, as the kernel says."""
    user: int = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1]
    return user


def address(folder: int, name: str) -> str:
    """Of a socket in an open folder: a path of any length would not fit."""
    return f"/proc/self/fd/{folder}/{name}"


def statuses(environ: Mapping[str, str], waiting: Waiting = unseen) -> tuple[list[dict[str, Any]], list[str]]:
    """What the workers of this machine say, by process id, and a sentence for each that cannot be asked."""
    found, problems = [], []
    for path in folders(environ):
        try:
            names = sorted(one.name for one in path.iterdir() if one.match("worker-*.sock"))
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{path} cannot be looked at: {error.strerror}; root may.")
            continue
        for name in names:
            try:
                with waiting(f"an answer of {path / name}", PATIENCE):
                    status = _ask(path, name)
            except (OSError, ValueError, RecursionError) as error:
                problems.append(f"{path / name} does not answer: {getattr(error, 'strerror', None) or error}.")
                continue
            if status:
                found.append(status)
    return sorted(found, key=lambda status: int(status["pid"])), problems


def _ask(folder: Path, name: str) -> dict[str, Any] | None:
    """None: that worker has ended. Raises OSError or ValueError."""
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            until = time.monotonic() + PATIENCE
            connection.settimeout(PATIENCE)
            try:
                connection.connect(address(opened, name))
            except (ConnectionRefusedError, FileNotFoundError):
                return None
            if os.geteuid() and peer_user(connection) not in (0, os.geteuid()):
                raise ValueError("it belongs to another user")
            raw = b"".join(_parts(connection, until))
    finally:
        os.close(opened)
    status = json.loads(raw)
    if not isinstance(status, dict) or not isinstance(status.get("pid"), int) or "sessions" not in status:
        raise ValueError("what it says is no status of a worker")
    return status


def _parts(connection: socket.socket, until: float) -> Iterator[bytes]:
    size = 0
    while part := connection.recv(1 << 16):
        size += len(part)
        if size > LONGEST:
            raise ValueError("it says too much")
        yield part
        left = until - time.monotonic()
        if left <= 0:
            raise ValueError("it takes too long")
        connection.settimeout(left)
