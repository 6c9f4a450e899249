"""The worker's command line and environment, turned into one checked `Settings`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tensor_fusion.config import (
    DEFAULT_MEGABYTES,
    ImageCache,
    LogSettings,
    UserError,
    memory_limit,
    segment_path,
    session_memory,
    sm_percent,
    switch,
    unknown_variables,
)
from tensor_fusion.worker.keys import AuthorizedKeys
from tensor_fusion.worker.leftover import SMALLEST_MEGABYTES
from tensor_fusion.worker.quota import ROWS
from tensor_fusion.worker.segment import LARGEST_MEGABYTES, SegmentSettings

PROGRAM = "tensor-fusion-worker"
DEFAULT_PORT = 8000
MAX_WARM = 16
EVERY_ADDRESS = ("0.0.0.0", "::", "*")

# The first block is the original's text to the letter; tools and people know it.
HELP = """\
Usage: tensor-fusion-worker [option]
Options
  -h, --help            Display this information.
  -v, --version         Display version information.
  -n, --net             Specified network protocol.
  -p, --port            Specified the port for server.
  -l, --load            Specified the file path of snapshot.
  -m, --shmem-file      Specified the file path of shared memory.
  -M, --shmem-size      Specified the size(MB) of shared memory.

More options
  --gpu {nvidia,sim}    Driver: NVIDIA's, the default, or the simulated GPU.
  --host ADDRESS        Address to listen on; by default 0.0.0.0, all of IPv4.
  --warm N              Sessions kept ready for the next clients; 1 by default.
  --max-clients N       Clients served at the same time; 128 by default.
  --max-clients-per-address N
                        Of those, how many may come from one address (of IPv6:
                        a /64); by default all but a sixteenth, 120 of 128.
  --max-clients-per-secret N
                        And with one secret; 0, the default: no such bound.
  --jail {basic,full,off}
                        basic, the default, takes from sessions what they do not
                        need: no capabilities of root, no new privileges. full:
                        namespaces of their own, no files but the driver's,
                        fewer system calls; what is not here of it is said.
  --require-jail        Do not start where a layer of that jail is missing.
  --seccomp FILE        Leave sessions only the system calls of a list that was
                        recorded with this driver; off by default.
  --kernel-timeout SECONDS
                        End a client whose kernel runs for longer; 0, the
                        default: kernels run as long as they like.
  --metrics ADDRESS:PORT
                        Tell Prometheus there how it is, at /metrics; off by
                        default.
  --shmem-group GROUP   Group, by name or number, that may open the segment.

The protocol is native by default and the port 8000; port 0 takes a free one.
With -n shmem, -m names the segment: /my_shm is /dev/shm/my_shm, a path with
more slashes is a file; its size is 256 MB by default.
"""


@dataclass(frozen=True)
class Settings:
    """What a worker was asked to do."""

    segment: SegmentSettings | None
    port: int
    host: str
    gpu: str | None
    warm: int
    max_clients: int
    max_clients_per_address: int
    max_clients_per_secret: int
    jail: str
    require_jail: bool
    seccomp: Path | None
    kernel_timeout: int
    metrics: tuple[str, int] | None
    memory_limit: int
    sm_percent: int
    session_memory: int
    keys: AuthorizedKeys | None
    connections_file: Path | None
    images: ImageCache
    log: LogSettings
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A command line that asks for a text and nothing else: 'help' or 'version'."""

    text: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; run {PROGRAM} -h to see the options.")


def _parser() -> _Parser:
    parser = _Parser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-v", "--version", action="store_true")
    parser.add_argument("-n", "--net", default="native")
    parser.add_argument("-p", "--port")
    parser.add_argument("-l", "--load")
    parser.add_argument("-m", "--shmem-file")
    parser.add_argument("-M", "--shmem-size")
    parser.add_argument("--gpu")
    parser.add_argument("--host")
    parser.add_argument("--warm", default="1")
    parser.add_argument("--max-clients", default="128")
    parser.add_argument("--max-clients-per-address")
    parser.add_argument("--max-clients-per-secret", default="0")
    parser.add_argument("--jail", default="basic")
    parser.add_argument("--require-jail", action="store_true")
    parser.add_argument("--seccomp", default="off")
    parser.add_argument("--kernel-timeout", default="0")
    parser.add_argument("--metrics")
    parser.add_argument("--shmem-group")
    return parser


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings | Request:
    """Raises UserError with one sentence for everything that is wrong."""
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unknown option {unknown[0]!r}")
    if given.help:
        return Request("help")
    if given.version:
        return Request("version")
    protocol = given.net.lower()
    if protocol not in ("native", "shmem"):
        raise UserError(f"Unknown network protocol {given.net!r}; use -n native or -n shmem.")
    if given.load is not None:
        raise UserError(
            f"Loading a snapshot (-l {given.load}) is not yet there in this version; start the worker without -l."
        )
    if given.gpu not in (None, "nvidia", "sim"):
        raise UserError(f"Unknown GPU {given.gpu!r}; use --gpu nvidia or --gpu sim.")
    if given.jail not in ("basic", "full", "off"):
        raise UserError(f"Unknown jail {given.jail!r}; use --jail basic, --jail full or --jail off.")
    if given.jail == "off" and (given.require_jail or given.seccomp != "off"):
        option = "--require-jail" if given.require_jail else "--seccomp"
        raise UserError(f"{option} and --jail off contradict each other; leave one of them out.")
    keys = _keys(environ)
    # A row of the quota page for each client, with room for the warm sessions and those about to end.
    most = _number("--max-clients", given.max_clients, 1, ROWS - 2 * MAX_WARM)
    of_one = str(most - most // 16) if given.max_clients_per_address is None else given.max_clients_per_address
    return Settings(
        segment=_segment(given, protocol),
        port=_number("-p/--port", str(DEFAULT_PORT) if given.port is None else given.port, 0, 65535),
        host="0.0.0.0" if given.host is None else given.host,
        gpu=given.gpu,
        warm=_number("--warm", given.warm, 0, MAX_WARM),
        max_clients=most,
        max_clients_per_address=_number("--max-clients-per-address", of_one, 1, ROWS),
        max_clients_per_secret=_number("--max-clients-per-secret", given.max_clients_per_secret, 0, ROWS),
        jail=given.jail,
        require_jail=given.require_jail,
        seccomp=None if given.seccomp == "off" else Path(given.seccomp),
        kernel_timeout=_number("--kernel-timeout", given.kernel_timeout, 0, 86400),
        metrics=None if given.metrics is None else metrics_address(given.metrics),
        memory_limit=memory_limit(environ),
        sm_percent=sm_percent(environ),
        session_memory=session_memory(environ, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        keys=keys,
        connections_file=_file(environ, "TF_CONNECTION_INFO_PATH"),
        images=ImageCache.read(environ),
        log=LogSettings.read(environ),
        notices=(*unknown_variables(environ), *_notices(given, protocol, keys)),
    )


def _segment(given: argparse.Namespace, protocol: str) -> SegmentSettings | None:
    if protocol == "native":
        for option in ("-m/--shmem-file", "-M/--shmem-size", "--shmem-group"):
            value = getattr(given, option.rpartition("--")[2].replace("-", "_"))
            if value is not None:
                raise UserError(f"{option} {value} belongs to shared memory; add -n shmem, or leave it out.")
        return None
    if not given.shmem_file:
        raise UserError("-n shmem needs the name of the shared memory; add for example -m /my_shm -M 256.")
    size = str(DEFAULT_MEGABYTES) if given.shmem_size is None else given.shmem_size
    if not re.fullmatch(r"[0-9]{1,7}", size) or not SMALLEST_MEGABYTES <= int(size) <= LARGEST_MEGABYTES:
        raise UserError(
            f"-M/--shmem-size is {size!r}; use a number of MB from {SMALLEST_MEGABYTES} (less is too small to serve) "
            f"to {LARGEST_MEGABYTES}."
        )
    segment_path(given.shmem_file)
    if not re.fullmatch(r"[!-*,-~]+", given.shmem_file):
        raise UserError(
            f"-m/--shmem-file is {given.shmem_file!r}; a connection string cannot hold a name with +, spaces or "
            "characters that are not plain ASCII."
        )
    return SegmentSettings(given.shmem_file, int(size), given.shmem_group)


def _notices(given: argparse.Namespace, protocol: str, keys: AuthorizedKeys | None) -> tuple[str, ...]:
    """What was said that has no effect, or less than was perhaps hoped."""
    notices = []
    if keys is not None and keys.readable_by_all():
        notices.append(
            f"TF_AUTHORIZED_KEY_PATH {keys.path} can be read by every user of this machine; chmod o-r hides it."
        )
    if protocol == "native" and keys is None and (given.host or "0.0.0.0") in EVERY_ADDRESS:
        notices.append(
            "everybody who reaches this port uses the GPU: the worker listens on every address and asks for no secret. "
            "Bind it to one address with --host, or ask for secrets: TF_ENABLE_URL_AUTH=1 TF_AUTHORIZED_KEY_PATH=FILE."
        )
    if given.metrics is not None and metrics_address(given.metrics)[0] in EVERY_ADDRESS:
        notices.append("--metrics tells everybody who reaches its port the names and addresses of clients.")
    if protocol == "native":
        return tuple(notices)
    notices += [
        f"{option} {value} has no effect with -n shmem, which listens on no port."
        for option, value in (("-p/--port", given.port), ("--host", given.host))
        if value is not None
    ]
    size = int(given.shmem_size or DEFAULT_MEGABYTES)
    if size & (size - 1):
        notices.append(
            f"{size} MB is no power of two: containers and processes can use this segment, a virtual machine cannot, "
            "because the memory of its ivshmem device must be one."
        )
    return tuple(notices)


def metrics_address(text: str) -> tuple[str, int]:
    """Host and port of --metrics. Raises UserError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if re.fullmatch(r"\[.*\]", host) else host
    if not bare or (":" in bare and bare == host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise UserError(f"--metrics is {text!r}; use ADDRESS:PORT, such as 127.0.0.1:9400 or [::1]:9400.")
    return bare, int(port)


def _number(option: str, text: str, smallest: int, largest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or not smallest <= int(text) <= largest:
        raise UserError(f"{option} is {text!r}; use a whole number from {smallest} to {largest}.")
    return int(text)


def _file(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]) if environ.get(name) else None


def _keys(environ: Mapping[str, str]) -> AuthorizedKeys | None:
    path = _file(environ, "TF_AUTHORIZED_KEY_PATH")
    if not switch(environ, "TF_ENABLE_URL_AUTH"):
        if path is not None and not environ.get("TF_ENABLE_URL_AUTH", "").strip():
            raise UserError(
                f"TF_AUTHORIZED_KEY_PATH {path} is set, but nobody would be asked for a secret; set "
                "TF_ENABLE_URL_AUTH=1 to ask for one, or TF_ENABLE_URL_AUTH=0 to let everybody in."
            )
        return None
    if path is None:
        raise UserError(
            "TF_ENABLE_URL_AUTH is on but TF_AUTHORIZED_KEY_PATH is not set; "
            "set it to a file with one accepted secret per line."
        )
    keys = AuthorizedKeys(path)
    keys.check_use()
    return keys
