"""Why does it not work: every step from the files to the device list, each with what to do next."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tensor_fusion.abi import Teleport, native_file
from tensor_fusion.client.causes import explain
from tensor_fusion.client.check import Check, Waiting, check, unseen
from tensor_fusion.client.elf import soname
from tensor_fusion.client.files import LIBRARIES, client_environment, client_folder
from tensor_fusion.client.probe import TIMEOUT, connect, greet
from tensor_fusion.client.segment import ANSWER_TIME, PULSE_TIME, SegmentFile, describe, user
from tensor_fusion.client.settings import odd_settings
from tensor_fusion.client.vmcheck import READ_TIME, enabled, is_device, memory_type
from tensor_fusion.config import (
    CONNECTION_INFO,
    CONNECTION_URL,
    Address,
    ShmemAddress,
    UserError,
    parse_connection,
)
from tensor_fusion.terminal import counted
from tensor_fusion.worker.protocol import PROTOCOL_VERSION, RELEASE, Role, Status, Welcome, release_name

DEVICES_TIMEOUT = 60.0
LOAD_TIMEOUT = 30.0
# What the client waits for it says after 4 s where nobody sits at a terminal.
URL_TIMEOUT = 8.0
LOOK_TIME = 0.1
NOT_READY = "a GPU worker: "
_LINE = re.compile(r"^\S+ (?:ERROR|WARN ) +client\[\d+\]: (.*)$", re.MULTILINE)
_WAITING = re.compile(r"Waiting for (.*), for up to \d+ \w+ more")


def examine(connection: str | None, waiting: Waiting = unseen) -> Iterator[Check]:
    """All checks in order; those that need an earlier one that failed are left out."""
    known = {"url": os.environ.get(CONNECTION_URL, "")}
    for found in _examine(connection, known, waiting):
        cause, command = ("", "") if found.passed and not found.cause else explain(found.text, known)
        yield replace(found, cause=cause, command=command)


def _examine(connection: str | None, known: dict[str, str], waiting: Waiting) -> Iterator[Check]:
    for sentence in odd_settings(os.environ):
        yield Check("settings", True, sentence, cause="to be explained")
    shell = _Shell()
    during = waiting("a program that loads libcuda", LOAD_TIMEOUT)
    loader = check("loader", lambda: shell.look(connection is not None, known), during)
    if not shell.ours and loader.passed:
        yield (files := check("client files", _files))
        if not files.passed:
            return
    yield loader
    if not loader.passed:
        return
    address: list[Address] = []
    during = waiting(f"an answer of {urlsplit(known['url']).netloc.rpartition('@')[2] or 'the URL'}", URL_TIMEOUT)
    string = check("connection string", lambda: _string(connection, address), during)
    yield string
    if not string.passed:
        return
    known.update(_words(address[0]))
    shared = isinstance(address[0], ShmemAddress)
    if isinstance(address[0], ShmemAddress) and is_device(folder := address[0].path.parent):  # of a virtual machine
        yield (device := check("device", lambda: enabled(folder)))
        if not device.passed:
            return
    during = waiting("the worker's heart" if shared else "a connection", PULSE_TIME if shared else TIMEOUT)
    reach = check("worker reachable", lambda: _reach(address[0]), during)
    yield reach
    if not reach.passed:
        return
    if isinstance(address[0], ShmemAddress):
        segment = address[0]
        yield (memory := check("memory type", lambda: _memory(segment), waiting("memory to be read", READ_TIME)))
        if not memory.passed:
            return
    during = waiting("the worker's welcome", ANSWER_TIME if shared else TIMEOUT)
    greeting = check("greeting", lambda: _greeting(address[0]), during)
    yield greeting
    if greeting.passed:
        during = waiting("the device list", DEVICES_TIMEOUT)
        yield check("devices", lambda: _devices(shell.environment(address[0])), during)


def _words(address: Address) -> dict[str, str]:
    if isinstance(address, ShmemAddress):
        return {"file": str(address.path), "megabytes": str(address.megabytes)}
    return {"host": address.host, "port": str(address.port)}


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


class _Shell:
    """What a program gets that this shell starts: the loader is asked, because every set-up ends there."""

    ours = False

    def look(self, for_command: bool, known: dict[str, str]) -> str:
        """Raises UserError when programs are meant to use the worker and would not."""
        for entry in filter(None, os.environ.get("LD_PRELOAD", "").replace(" ", ":").split(":")):
            if "/" in entry and not Path(entry).exists():
                raise UserError(f"LD_PRELOAD names {entry}, which is not there: programs run without it.")
        result = _program("loaded", os.environ, LOAD_TIMEOUT)
        wanted = not for_command and bool(os.environ.get(CONNECTION_INFO) or os.environ.get(CONNECTION_URL))
        if result.returncode == 0:
            libraries: list[str] = json.loads(result.stdout)["libraries"]
            self.ours = any(Path(path).name.startswith("libteleport.so") for path in libraries)
            (cuda,) = [path for path in libraries if Path(path).name.startswith("libcuda.so")][:1] or ["libcuda.so"]
            known["library"] = cuda
            if self.ours:
                return f"programs of this shell load {cuda}"
            if wanted:
                raise UserError(
                    f"Programs of this shell load {cuda}, which is not ours: they would not use the worker. Start them "
                    "with tensor-fusion run, or eval the output of tensor-fusion env --preload."
                )
            return (
                f"this shell is not set up (its programs load {cuda}); tensor-fusion run sets up the program it starts"
            )
        said = _LINE.findall(result.stderr)
        if said:
            known["library"] = (re.findall(r"\((/\S+)\)", said[0]) or ["libcuda.so"])[0]
            raise UserError(said[0])
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        if "No such file or directory" in last and "libcuda.so.1:" in last:
            if wanted:
                raise UserError(
                    "A worker is named, but nothing leads programs of this shell to the client files: start them with "
                    "tensor-fusion run, or eval the output of tensor-fusion env."
                )
            return "this shell is not set up; tensor-fusion run sets up the program it starts"
        known["library"] = (re.findall(r"(/\S+?\.so[.\d]*)", last) or ["libcuda.so"])[0]
        raise UserError(f"libcuda.so.1 cannot be loaded here: {last.removeprefix('libcuda.so.1 cannot be loaded: ')}")

    def environment(self, address: Address) -> dict[str, str]:
        """As the shell is when it is set up, else as tensor-fusion run sets it."""
        string = str(address) + (f"+{address.secret}" if address.secret else "")
        if self.ours:
            return {**os.environ, CONNECTION_INFO: string}
        return {**os.environ, **client_environment(string, os.environ)}


def _program(role: str, environment: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Runs a CUDA program that knows nothing of us. Raises TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-m", "tensor_fusion.demo.program", role],
        env=dict(environment),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def _string(connection: str | None, address: list[Address]) -> str:
    text = connection if connection is not None else os.environ.get(CONNECTION_INFO, "")
    url = os.environ.get(CONNECTION_URL, "")
    if connection is None and not text and url:
        text = _ask(url)
        try:
            address.append(parse_connection(text))
        except UserError as error:
            raise UserError(f"{url} does not answer with a connection string. {error.sentence}") from error
        return f"{address[0]}{' with a secret' if address[0].secret else ''}, from {url}"
    if not text and connection is None:
        raise UserError("No worker is named; pass --connect native+HOST+PORT+0, or set " + CONNECTION_INFO + ".")
    address.append(parse_connection(text))
    return str(address[0]) + (" with a secret" if address[0].secret else "")


def _ask(url: str) -> str:
    """The answer of the URL, as the client gets it. Raises UserError, also when there is none yet."""
    command = [sys.executable, "-m", "tensor_fusion.client.ask_url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = _listen(process, url)
        except BaseException:  # a Ctrl-C among them
            process.kill()
            raise
    if process.returncode:
        last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise UserError(f"{url} cannot be asked: {last}")
    answer: dict[str, str] = json.loads(output)
    if answer["sentence"]:
        raise UserError(answer["sentence"])
    return answer["text"]


def _listen(process: subprocess.Popen[str], url: str) -> tuple[str, str]:
    """What it has said at its end. Raises UserError where the client would go on: once it has asked several times and
    was told each time that no worker is ready yet, or when no answer came in time."""
    begin = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=LOOK_TIME)
        except subprocess.TimeoutExpired as unfinished:
            said = unfinished.stderr or b""
            waiting = _WAITING.findall(said if isinstance(said, str) else said.decode(errors="replace"))
            over = time.monotonic() - begin
            if over < URL_TIMEOUT and not (waiting and waiting[-1].startswith(NOT_READY)):
                continue
            what = waiting[-1].removeprefix(NOT_READY) if waiting else f"an answer of {url}"
            raise UserError(f"{what}; the client would go on waiting, {over:.0f} s are over here.") from None


def _reach(address: Address) -> str:
    if isinstance(address, ShmemAddress):
        with SegmentFile(address.path, address.megabytes) as segment:
            segment.header()
            beats = segment.pulse()
            return f"{address.path}, {describe(segment.size)}, open to {user()}, {beats:.0f} beats per second"
    with connect(address) as connection:
        host, port = connection.getpeername()[:2]
        return f"{host} port {port} answers"


def _memory(address: ShmemAddress) -> str:
    with SegmentFile(address.path, address.megabytes) as segment:
        return memory_type(segment)


def _greeting(address: Address) -> str:
    if isinstance(address, ShmemAddress):
        with SegmentFile(address.path, address.megabytes) as segment:
            welcome = segment.ask(address.secret, address.version, "tensor-fusion doctor", Role.CONTROL)
    else:
        with connect(address) as connection:
            welcome = greet(connection, address, Teleport().schema)
    if welcome.status == Status.PROBED:
        return f"would be accepted, {_release(welcome)}, in TLS with the secret"
    if welcome.status != Status.ACCEPTED:
        raise UserError(f"The worker refused: {welcome.sentence}")
    return f"accepted, {_release(welcome)}, {counted(welcome.data_connections, 'data connection')}"


def _release(welcome: Welcome) -> str:
    """Which release the worker is of, and what follows where it knows other operations than this client."""
    theirs, ours = release_name(welcome.version, welcome.release), release_name(PROTOCOL_VERSION, RELEASE)
    if welcome.schema == Teleport().schema:
        return f"release {theirs}"
    return f"release {theirs} (this client is of {ours}: what the two do not share is refused by name)"


def _devices(environment: Mapping[str, str]) -> str:
    try:
        result = _program("devices", environment, DEVICES_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"No device list came within {DEVICES_TIMEOUT:.0f} s; look at the worker's log (TF_ENABLE_LOG=1)."
        ) from error
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if result.returncode != 0:
        said = _LINE.findall(result.stderr)
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        if "cuInit returned 100" not in last or said:
            raise UserError(f"The device list failed: {said[0] if said else last}")
        names: list[str] = []
    else:
        names = json.loads(result.stdout)["devices"]
    if not names and hidden is not None:
        raise UserError(f"CUDA_VISIBLE_DEVICES={hidden} hides every device of the worker.")
    if not names:
        raise UserError("The worker has no device for this client; look at CUDA_VISIBLE_DEVICES of the worker.")
    return ", ".join(names)
