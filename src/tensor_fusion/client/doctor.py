"""Why does it not work: every step from the files to the device list, each with what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from tensor_fusion.abi import Teleport, native_file
from tensor_fusion.client.check import Check, check
from tensor_fusion.client.elf import soname
from tensor_fusion.client.files import LIBRARIES, client_environment, client_folder
from tensor_fusion.client.probe import connect, greet
from tensor_fusion.client.segment import SegmentFile, describe, user
from tensor_fusion.config import (
    CONNECTION_INFO,
    CONNECTION_URL,
    Address,
    ShmemAddress,
    UserError,
    parse_connection,
)
from tensor_fusion.worker.protocol import Role, Status

DEVICES_TIMEOUT = 60.0


def examine(connection: str | None) -> Iterator[Check]:
    """All checks in order; those that need an earlier one that failed are left out."""
    files = check("client files", _files)
    yield files
    if not files.passed:
        return
    yield check("loader", lambda: _loader(connection is not None))
    address: list[Address] = []
    string = check("connection string", lambda: _string(connection, address))
    yield string
    if not string.passed:
        return
    reach = check("worker reachable", lambda: _reach(address[0]))
    yield reach
    if not reach.passed:
        return
    greeting = check("greeting", lambda: _greeting(address[0]))
    yield greeting
    if greeting.passed:
        yield check("devices", lambda: _devices(address[0]))


def _files() -> str:
    for name in LIBRARIES:
        path = native_file(f"client/{name}.so.1")
        found = soname(path)
        if found != path.name:
            raise UserError(
                f"{path} has the SONAME {found}, not {path.name}: it is damaged; install the package again."
            )
    schema = Teleport().schema.hex()
    return f"{client_folder()} (schema {schema})"


def _loader(for_command: bool) -> str:
    folder = str(client_folder())
    if folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") or folder in os.environ.get("LD_PRELOAD", ""):
        return "this shell's environment loads the client files"
    if not for_command and os.environ.get(CONNECTION_INFO):
        raise UserError(
            f"{CONNECTION_INFO} is set but neither LD_LIBRARY_PATH nor LD_PRELOAD leads to {folder}: "
            "programs would not use it; start them with tensor-fusion run, or eval the output of tensor-fusion env."
        )
    return "this shell is not set up; tensor-fusion run sets up the program it starts"


def _string(connection: str | None, address: list[Address]) -> str:
    text = connection if connection is not None else os.environ.get(CONNECTION_INFO, "")
    if not text:
        if os.environ.get(CONNECTION_URL):
            raise UserError(
                f"Only {CONNECTION_URL} is set; GET it, for example by curl, and pass its answer with --connect."
            )
        raise UserError("No worker is named; pass --connect native+HOST+PORT+0, or set " + CONNECTION_INFO + ".")
    parsed = parse_connection(text)
    address.append(parsed)
    return str(parsed) + (" with a secret" if parsed.secret else "")


def _reach(address: Address) -> str:
    if isinstance(address, ShmemAddress):
        with SegmentFile(address.path, address.megabytes) as segment:
            segment.header()
            beats = segment.pulse()
            return f"{address.path}, {describe(segment.size)}, open to {user()}, {beats:.0f} beats per second"
    with connect(address) as connection:
        host, port = connection.getpeername()[:2]
        return f"{host} port {port} answers"


def _greeting(address: Address) -> str:
    if isinstance(address, ShmemAddress):
        with SegmentFile(address.path, address.megabytes) as segment:
            welcome = segment.ask(address.secret, address.version, "tensor-fusion doctor", Role.CONTROL)
    else:
        with connect(address) as connection:
            welcome = greet(connection, address, Teleport().schema)
    if welcome.status != Status.ACCEPTED:
        raise UserError(f"The worker refused: {welcome.sentence}")
    return f"accepted, protocol {welcome.version}, {welcome.data_connections} data connections"


def _devices(address: Address) -> str:
    string = str(address) + (f"+{address.secret}" if address.secret else "")
    environment = {**os.environ, **client_environment(string, os.environ)}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tensor_fusion.demo.program", "devices"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEVICES_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"No device list came within {DEVICES_TIMEOUT:.0f} s; look at the worker's log (TF_ENABLE_LOG=1)."
        ) from error
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise UserError(f"The device list failed: {last}")
    names: list[str] = json.loads(result.stdout)["devices"]
    if not names:
        raise UserError("The worker has no device for this client; check CUDA_VISIBLE_DEVICES here and there.")
    return ", ".join(names)
