"""Every environment variable and every connection string, parsed in one place and used by all.

The variables keep the names and meanings that users of the product already have; `VARIABLES` is the one table of them
and `tensor-fusion config` prints it. The connection-string rules are shared with the C parser in the client libraries:
tests/data/connection_strings.json holds the cases that both must pass.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

MEGABYTE = 1 << 20
MAX_STRING = 1024
# The greeting carries the version and the secret in 64 bytes each, zero-terminated.
MAX_TEXT_FIELD = 63
MAX_HOST = 253
MAX_NAME = 255
MAX_SHMEM_MEGABYTES = 1 << 20
DEFAULT_MEGABYTES = 256
DEFAULT_SESSION_MEGABYTES = 16384
LEAST_SESSION_MEGABYTES = 512
LOG_LEVELS = ("trace", "debug", "info", "warn", "error")

CONNECTION_INFO = "TENSOR_FUSION_OPERATOR_CONNECTION_INFO"
CONNECTION_URL = "TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL"


def product_version() -> str:
    # Its import takes as long as Python's own start, and every command and worker reads this file.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tensor-fusion")
    except PackageNotFoundError:
        return "(not installed)"


class UserError(Exception):
    """Wrong input or a wrong environment: one sentence for the person, and the exit code of the command."""

    def __init__(self, sentence: str, exit_code: int = 2) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


@dataclass(frozen=True)
class Variable:
    """One environment variable: who reads it, what holds when it is not set, what it means."""

    name: str
    reader: str
    default: str
    meaning: str


VARIABLES = (
    Variable(
        CONNECTION_INFO,
        "client",
        "",
        "Worker to use, native+HOST+PORT+VERSION[+SECRET] or shmem+FILE+MB+VERSION[+SECRET].",
    ),
    Variable(CONNECTION_URL, "client", "", "URL, http or https, that answers a GET with the connection string."),
    Variable("TF_CONNECTION_URL_CA_FILE", "client", "", "Authorities to trust for it, PEM, in place of the system's."),
    Variable("https_proxy", "client", "", "Proxy on the way to an https URL; also http_proxy, all_proxy and no_proxy."),
    Variable("TENSOR_FUSION_OPERATOR_TOKEN_FILE", "client", "", "Bearer token for it; else the pod's own token."),
    Variable("TF_MAX_CACHE_REQUEST_COUNT", "client", "100", "Pending calls after which the client sends what it has."),
    Variable("TF_STRICT", "client", "0", "1: wait for the result of every call, for debugging."),
    Variable("TF_STATS_PATH", "client", "", "File for the call statistics at exit; %p becomes the process id."),
    Variable("TF_TRACE_PATH", "client", "", "File for the records of tensor-fusion trace; %p becomes the process id."),
    Variable("CUDA_VISIBLE_DEVICES", "client", "", "Devices the program sees, by index or UUID; -1 hides all."),
    Variable("CUDA_DEVICE_ORDER", "client", "", "PCI_BUS_ID: devices in the order of their bus addresses."),
    Variable("CUDA_MODULE_LOADING", "client", "LAZY", "EAGER: the mode that cuModuleGetLoadingMode answers."),
    Variable("CUDA_CACHE_DISABLE", "client", "0", "1: what NVRTC compiles is not kept."),
    Variable(
        "CUDA_CACHE_PATH",
        "client",
        "${XDG_CACHE_HOME:-~/.cache}/tensor-fusion/nvrtc",
        "Folder in whose folder tensor-fusion the client keeps what NVRTC compiles.",
    ),
    Variable("CUDA_CACHE_MAXSIZE", "client", "1073741824", "Bytes that are kept of it."),
    Variable("TF_ENABLE_LOG", "both", "0", "1: write a log; 0, if set: not a word about unsupported calls."),
    Variable("TF_LOG_LEVEL", "both", "info", "trace (every call and frame), debug, info, warn or error."),
    Variable("TF_LOG_PATH", "both", "", "Log file; empty: the worker's standard output, the client's standard error."),
    Variable(
        "TF_LOG_SIZE", "worker", "256", "MB after which the log file becomes FILE.1 and a new one begins; 0: never."
    ),
    Variable("TF_GPU_MEMORY_LIMIT", "worker", "0", "MB of device memory for all clients together; 0: no limit."),
    Variable("TF_CUDA_MEMORY_LIMIT", "worker", "0", "Older name of TF_GPU_MEMORY_LIMIT, which wins if both are set."),
    Variable(
        "TF_CUDA_SM_PERCENT_LIMIT",
        "worker",
        "100",
        "1 to 100: percent of each GPU's multiprocessors that a client's work may use.",
    ),
    Variable(
        "TF_SESSION_MEMORY_LIMIT",
        "worker",
        "16384",
        "MB of host memory of one client's session, but no more than half the machine's; 0: no limit.",
    ),
    Variable("TF_ENABLE_URL_AUTH", "worker", "0", "1: a client must send a secret that TF_AUTHORIZED_KEY_PATH lists."),
    Variable(
        "TF_AUTHORIZED_KEY_PATH",
        "worker",
        "",
        "File of accepted secrets, one per line, with their limits; # begins a comment.",
    ),
    Variable(
        "TF_CONNECTION_INFO_PATH",
        "worker",
        "",
        "File of clients that the worker keeps: address,port,pid.",
    ),
    Variable(
        "TF_IMAGE_CACHE_PATH",
        "worker",
        "${XDG_CACHE_HOME:-~/.cache}/tensor-fusion/images",
        "Folder in which the worker keeps module images for the next client; empty: it keeps none.",
    ),
    Variable("TF_IMAGE_CACHE_SIZE", "worker", "4096", "MB of that folder; the least recently used images are removed."),
    Variable(
        "TF_RUNTIME_PATH",
        "worker",
        "${XDG_RUNTIME_DIR}/tensor-fusion, /run/tensor-fusion or /tmp/tensor-fusion-UID",
        "Folder of the socket at which the worker tells tensor-fusion top how it is.",
    ),
    Variable("TF_SIM_DEVICES", "worker", "1", "Number of simulated GPUs with --gpu sim."),
    Variable("TF_SIM_PEERS", "worker", "", "none: no simulated GPU reaches the memory of another, for tests."),
    Variable("TF_SIM_NVLINKS", "worker", "", "NVLinks of each simulated GPU, to switches: 0 to 18, for tests."),
    Variable("TF_SIM_MEMORY_MB", "worker", "", "Memory of a simulated GPU; empty: that of an H200."),
    Variable("TF_SIM_FAULTS", "worker", "", "Errors that the simulated GPU is to produce, for tests."),
    Variable("TF_SIM_DEAD_HANDLES", "worker", "", "abort: a handle of nothing ends the simulated GPU, for tests."),
    Variable("TF_SIM_QUEUES", "worker", "", "Queues that the streams of a simulated context share, for tests."),
    Variable("TF_SIM_UNKNOWN_KERNELS", "worker", "", "skip: the simulated GPU skips kernels it has no body for."),
    Variable("TF_NATIVE_DIR", "both", "", "Folder of native files instead of the installed ones."),
)


class Fault(str, Enum):
    """What is wrong with a connection string; the C parser has the same classes, tested in the same order."""

    EMPTY = "empty"
    LENGTH = "length"
    CHARACTERS = "characters"
    PROTOCOL = "protocol"
    FIELDS = "fields"
    HOST = "host"
    PORT = "port"
    FILE = "file"
    SIZE = "size"
    VERSION = "version"
    SECRET = "secret"


class ConnectionStringError(UserError):
    def __init__(self, fault: Fault, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = fault


@dataclass(frozen=True)
class NativeAddress:
    """A worker reached over TCP. `host` is without brackets; `version` is opaque text."""

    host: str
    port: int
    version: str
    secret: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"native+{host}+{self.port}+{self.version}"


@dataclass(frozen=True)
class ShmemAddress:
    """A worker reached over shared memory: a file to map (or the name of a POSIX segment) and its size in MB."""

    file: str
    megabytes: int
    version: str
    secret: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"shmem+{self.file}+{self.megabytes}+{self.version}"

    @property
    def path(self) -> Path:
        return segment_path(self.file)


Address = NativeAddress | ShmemAddress

SHARED_MEMORY_FOLDER = Path("/dev/shm")


def segment_path(text: str) -> Path:
    """The file of a segment: "/name" and "name" are POSIX names and lie in /dev/shm, what has another slash is a path.

    Raises UserError for a name that cannot be.
    """
    name = text.removeprefix("/")
    if "/" in name:
        return Path(text)
    if name in ("", ".", "..") or len(name) > MAX_NAME:
        raise UserError(f"{text!r} is no name of shared memory; use a name such as /my_shm, or the path of a file.")
    return SHARED_MEMORY_FOLDER / name


FORM = "native+HOST+PORT+VERSION[+SECRET] or shmem+FILE+MB+VERSION[+SECRET]"
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


def without_secret(text: str) -> str:
    """The connection string as it may be shown: what follows the fourth field is left out."""
    fields = text.split("+")
    return text if len(fields) <= 4 else "+".join(fields[:4]) + "+…"


def parse_connection(text: str) -> Address:
    """Parse a connection string. Raises ConnectionStringError with a sentence that never shows the secret."""
    text = text.strip(" \t\r\n")
    shown = without_secret(text)
    if not text:
        raise ConnectionStringError(Fault.EMPTY, f"The connection string is empty; it has the form {FORM}.")
    if len(text) > MAX_STRING:
        raise ConnectionStringError(
            Fault.LENGTH, f"The connection string has {len(text)} characters; at most {MAX_STRING} are allowed."
        )
    if any(not "!" <= character <= "~" for character in text):
        raise ConnectionStringError(
            Fault.CHARACTERS, f"The connection string {shown!r} holds a space or a character that is not plain ASCII."
        )
    protocol, *fields = text.split("+")
    if re.fullmatch(r"[A-Za-z0-9_.-]+:[0-9]{1,5}", text):
        meant = f"native+{text.replace(':', '+')}+0"
        raise ConnectionStringError(
            Fault.PROTOCOL, f"Unknown protocol {protocol!r} in the connection string; is {meant} meant?"
        )
    if protocol.lower() not in ("native", "shmem"):
        raise ConnectionStringError(
            Fault.PROTOCOL, f"Unknown protocol {protocol!r} in the connection string; the form is {FORM}."
        )
    if len(fields) not in (3, 4):
        raise ConnectionStringError(
            Fault.FIELDS,
            f"The connection string {shown!r} has {len(fields) + 1} fields instead of 4 or 5; the form is {FORM}.",
        )
    if protocol.lower() == "native":
        host, port = _host(fields[0]), _number(fields[1], 65535)
        if host is None:
            raise ConnectionStringError(
                Fault.HOST,
                f"{fields[0]!r} in the connection string {shown!r} is no host name or address; "
                "write an IPv6 address in brackets.",
            )
        if port is None:
            raise ConnectionStringError(
                Fault.PORT, f"{fields[1]!r} in the connection string {shown!r} is no port; use 1 to 65535."
            )
        version, secret = _version_and_secret(fields, shown)
        return NativeAddress(host, port, version, secret)
    size = _number(fields[1], MAX_SHMEM_MEGABYTES)
    if not fields[0]:
        raise ConnectionStringError(Fault.FILE, f"The connection string {shown!r} names no file of shared memory.")
    if size is None:
        raise ConnectionStringError(
            Fault.SIZE,
            f"{fields[1]!r} in the connection string {shown!r} is no size in MB; use 1 to {MAX_SHMEM_MEGABYTES}.",
        )
    version, secret = _version_and_secret(fields, shown)
    return ShmemAddress(fields[0], size, version, secret)


def _version_and_secret(fields: list[str], shown: str) -> tuple[str, str]:
    version = fields[2]
    if not 0 < len(version) <= MAX_TEXT_FIELD:
        raise ConnectionStringError(
            Fault.VERSION,
            f"The version, fourth field of {shown!r}, has {len(version)} characters; "
            f"1 to {MAX_TEXT_FIELD} are allowed, and 0 is the usual version.",
        )
    if len(fields) == 3:
        return version, ""
    secret = fields[3]
    if not 0 < len(secret) <= MAX_TEXT_FIELD:
        raise ConnectionStringError(
            Fault.SECRET,
            f"The secret, fifth field of the connection string, has {len(secret)} characters; "
            f"1 to {MAX_TEXT_FIELD} are allowed.",
        )
    return version, secret


def _host(text: str) -> str | None:
    if text.startswith("[") and text.endswith("]"):
        address, _, zone = text[1:-1].partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return None
        if "%" in text and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", zone):
            return None
        return text[1:-1]
    if len(text) > MAX_HOST or not _HOST_NAME.fullmatch(text):
        return None
    if re.fullmatch(r"[0-9.]+", text):
        try:
            ipaddress.IPv4Address(text)
        except ValueError:
            return None
    return text


def _number(text: str, largest: int) -> int | None:
    """A decimal number from 1 to `largest`, with no sign, and no more digits than `largest` has."""
    if not re.fullmatch(r"[0-9]+", text) or len(text) > len(str(largest)):
        return None
    value = int(text)
    return value if 1 <= value <= largest else None


def switch(environ: Mapping[str, str], name: str) -> bool:
    """An on/off variable."""
    text = environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("", "0", "false", "no", "off"):
        return False
    raise UserError(f"{name} is {environ[name]!r}; use 1 or 0.")


def memory_limit(environ: Mapping[str, str]) -> int:
    """The worker's device memory limit in bytes; 0 when there is none."""
    for name in ("TF_GPU_MEMORY_LIMIT", "TF_CUDA_MEMORY_LIMIT"):
        text = environ.get(name, "").strip()
        if text:
            if not re.fullmatch(r"[0-9]{1,9}", text):
                raise UserError(
                    f"{name} is {environ[name]!r}, which is no number of megabytes; "
                    f"use a whole number such as {name}=20000, or unset it."
                )
            return int(text) * MEGABYTE
    return 0


def sm_percent(environ: Mapping[str, str]) -> int:
    """Percent of a device's multiprocessors that each client of the worker may use."""
    text = environ.get("TF_CUDA_SM_PERCENT_LIMIT", "").strip() or "100"
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= 100:
        raise UserError(
            f"TF_CUDA_SM_PERCENT_LIMIT is {environ['TF_CUDA_SM_PERCENT_LIMIT']!r}; use a whole number of percent from "
            "1 to 100, or unset it."
        )
    return int(text)


def session_memory(environ: Mapping[str, str], machine: int) -> int:
    """How many MB of host memory a client may make its session take; 0 when there is no limit."""
    text = environ.get("TF_SESSION_MEMORY_LIMIT", "").strip()
    if not text:
        return min(DEFAULT_SESSION_MEGABYTES, max(machine // 2 // MEGABYTE, LEAST_SESSION_MEGABYTES))
    if not re.fullmatch(r"[0-9]{1,9}", text) or 0 < int(text) < LEAST_SESSION_MEGABYTES:
        raise UserError(
            f"TF_SESSION_MEMORY_LIMIT is {text!r}; use a number of MB, {LEAST_SESSION_MEGABYTES} or more, which a "
            "driver needs, or 0 for no limit."
        )
    return int(text)


@dataclass(frozen=True)
class ImageCache:
    """The folder in which sessions keep module images, and its bound; sessions read both from their environment."""

    folder: Path | None
    megabytes: int

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> ImageCache:
        text = environ.get("TF_IMAGE_CACHE_SIZE", "").strip() or "4096"
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise UserError(
                f"TF_IMAGE_CACHE_SIZE is {text!r}, which is no number of megabytes; "
                "use a whole number such as TF_IMAGE_CACHE_SIZE=4096, or unset it."
            )
        return cls(cls._folder(environ) if int(text) else None, int(text))

    @staticmethod
    def _folder(environ: Mapping[str, str]) -> Path | None:
        if "TF_IMAGE_CACHE_PATH" in environ:
            path = environ["TF_IMAGE_CACHE_PATH"]
            return Path(path).absolute() if path else None
        base, home = environ.get("XDG_CACHE_HOME", ""), environ.get("HOME", "")
        # The XDG rules ignore a relative path. Without a home there is no place that is surely this user's.
        if Path(base).is_absolute():
            return Path(base) / "tensor-fusion/images"
        return Path(home) / ".cache/tensor-fusion/images" if Path(home).is_absolute() else None

    def environment(self) -> dict[str, str]:
        return {"TF_IMAGE_CACHE_PATH": str(self.folder or ""), "TF_IMAGE_CACHE_SIZE": str(self.megabytes)}


@dataclass(frozen=True)
class LogSettings:
    enabled: bool
    level: str
    path: Path | None
    megabytes: int = 256  # of the file, before it is moved away

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> LogSettings:
        level = environ.get("TF_LOG_LEVEL", "").strip().lower() or "info"
        if level not in LOG_LEVELS:
            raise UserError(f"TF_LOG_LEVEL is {environ['TF_LOG_LEVEL']!r}; use one of {', '.join(LOG_LEVELS)}.")
        path = environ.get("TF_LOG_PATH", "")
        size = environ.get("TF_LOG_SIZE", "") or "256"
        if not (size.isascii() and size.isdigit() and len(size) <= 7):
            raise UserError(f"TF_LOG_SIZE is {size!r}; use a number of MB, or 0 for no bound.")
        return cls(switch(environ, "TF_ENABLE_LOG"), level, Path(path) if path else None, int(size))


# TensorFlow and Terraform have variables that begin as ours do: of those only what looks like one of ours is named.
_OURS = "TENSOR_FUSION_"
_SHARED = "TF_"
_LIKENESS = 0.85


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that is ours by its name, and is not there: misspelt, it does nothing."""
    known = [variable.name for variable in VARIABLES]
    for name in sorted(environ):
        if name not in known and name.startswith((_OURS, _SHARED)):
            near = difflib.get_close_matches(name, known, 1, _LIKENESS)
            if near or name.startswith(_OURS):
                yield f"{name} is no variable of Tensor Fusion" + (f"; is {near[0]} meant?" if near else ".")
