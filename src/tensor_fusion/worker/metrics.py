"""The status of a worker for Prometheus: GET /metrics on an address of its own.

Text in the exposition format, written here: that is twenty lines, and the worker as one file would carry a library and
its threads for them. Names are those of NVIDIA's DCGM exporter where the meaning is the same, and tensor_fusion_… for
the rest. Whoever reaches the address may read it: no request is believed, one connection holds one place for
`PATIENCE` seconds, and when all are taken the oldest goes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.status import Status
from tensor_fusion.worker.tcp import listen

MOST_CONNECTIONS = 16
LONGEST_REQUEST = 8192
PATIENCE = 5.0
MIB = 1 << 20

Labels = Mapping[str, str]
# Name, kind, meaning, key of a device and what its figure is divided by.
DCGM = (
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", "gpu_percent", 1),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Memory utilization (in %).", "memory_percent", 1),
    ("DCGM_FI_DEV_FB_TOTAL", "gauge", "Memory of the GPU (in MiB).", "memory_total_bytes", MIB),
    ("DCGM_FI_DEV_FB_FREE", "gauge", "Memory that is free (in MiB).", "memory_free_bytes", MIB),
    ("DCGM_FI_DEV_FB_USED", "gauge", "Memory in use (in MiB).", "memory_used_bytes", MIB),
    ("DCGM_FI_DEV_FB_RESERVED", "gauge", "Memory that the driver keeps (in MiB).", "memory_reserved_bytes", MIB),
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", "Temperature of the GPU (in C).", "temperature_celsius", 1),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw (in W).", "power_watts", 1),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Energy since boot (in mJ).", "energy_millijoules", 1),
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", "Clock of the multiprocessors (in MHz).", "sm_megahertz", 1),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Clock of the memory (in MHz).", "memory_megahertz", 1),
)
SESSION = (
    ("host_memory_bytes", "gauge", "Host memory of the session process.", "host_memory_bytes"),
    ("start_time_seconds", "gauge", "When the client came.", "since"),
    ("calls_total", "counter", "Calls of the client.", "calls"),
    ("round_trips_total", "counter", "Of these, those whose answer it waited for.", "round_trips"),
    ("received_bytes_total", "counter", "Bytes from the client.", "received_bytes"),
    ("sent_bytes_total", "counter", "Bytes to the client.", "sent_bytes"),
)


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _lines(name: str, kind: str, meaning: str, samples: Iterable[tuple[Labels, float | None]]) -> list[str]:
    """Nothing at all where no sample is known."""
    found = []
    for labels, value in samples:
        if value is not None:
            inside = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
            found.append(f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}")
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *found] if found else []


def exposition(status: Mapping[str, Any], host: str) -> str:
    """What a worker tells, in Prometheus' text format."""
    lines: list[str] = []
    gpus = [(_of_gpu(gpu, host), gpu) for gpu in status["gpus"]]
    for name, kind, meaning, key, unit in DCGM:
        lines += _lines(name, kind, meaning, ((labels, _divided(gpu.get(key), unit)) for labels, gpu in gpus))
    info = {"version": status["version"], "place": status["place"], "simulated": str(status["simulated"]).lower()}
    lines += _lines("tensor_fusion_worker_info", "gauge", "The worker.", [(info, 1)])
    for name, meaning, value in (
        ("start_time_seconds", "When the worker began.", status["since"]),
        ("memory_limit_bytes", "Device memory for all clients together; 0: no limit.", status["memory_limit_bytes"]),
        ("sessions", "Clients that are served.", len(status["sessions"])),
    ):
        lines += _lines(f"tensor_fusion_{name}", "gauge", meaning, [({}, value)])
    sessions = [(_of_session(session), session) for session in status["sessions"]]
    for key, meaning in (
        ("memory_bytes", "Device memory that the client has allocated."),
        ("gpu_memory_bytes", "Device memory of the session as the driver counts it, with its context."),
        ("gpu_percent", "Part of the multiprocessors' time."),
    ):
        by_device = (
            ({**labels, "device": device}, value)
            for labels, session in sessions
            for device, value in session[key].items()
        )
        lines += _lines(f"tensor_fusion_session_{key}", "gauge", meaning, by_device)
    for name, kind, meaning, key in SESSION:
        samples = ((labels, session[key]) for labels, session in sessions)
        lines += _lines(f"tensor_fusion_session_{name}", kind, meaning, samples)
    return "".join(f"{line}\n" for line in lines)


def _divided(value: float | None, unit: int) -> float | None:
    return value if value is None or unit == 1 else value / unit


def _of_gpu(gpu: Mapping[str, Any], host: str) -> Labels:
    """What NVML does not tell is left out; the UUID names it in any case."""
    labels = {"gpu": str(gpu["host_index"])} if "host_index" in gpu else {}
    labels["UUID"] = gpu["uuid"]
    if "minor" in gpu:
        labels["device"] = f"nvidia{gpu['minor']}"
    if "name" in gpu:
        labels["modelName"] = gpu["name"]
    return {**labels, "Hostname": host}


def _of_session(session: Mapping[str, Any]) -> Labels:
    names = ("pid", "program", "user", "address", "client_pid")
    labels = {"session" if name == "pid" else name: str(session[name]) for name in names}
    return {**labels, "tenant": session["tenant"]} if session["tenant"] else labels


class Metrics:
    """Has its address from its making to `close`, or raises UserError; answers from `start` on."""

    def __init__(self, address: tuple[str, int], status: Status) -> None:
        self._status = status
        self._host = socket.gethostname()
        self._listener = listen(*address, option="--metrics")
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, None] = {}

    @property
    def place(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._asked, sock=self._listener, limit=LONGEST_REQUEST)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            await asyncio.wait_for(self._answer(reader, writer), PATIENCE)
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.TimeoutError) as error:
            LOGGER.debug("a request for metrics ends: %r", error)
        except asyncio.CancelledError:  # the worker ends; Python 3.11 writes a traceback for a cancelled handler
            writer.transport.abort()
        finally:
            self._open.pop(writer, None)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.partition(b"\r\n")[0].split(b" ")
        path = words[1].partition(b"?")[0] if len(words) == 3 else b""
        if words[0] not in (b"GET", b"HEAD") or not path:
            result, kind, body = "405 Method Not Allowed", "text/plain", "GET /metrics\n"
        elif path != b"/metrics":
            result, kind, body = "404 Not Found", "text/plain", "The metrics are at /metrics.\n"
        else:
            result, kind = "200 OK", "text/plain; version=0.0.4; charset=utf-8"
            body = exposition(await self._status.tell(), self._host)
        raw = body.encode()
        headers = (f"HTTP/1.1 {result}", f"Content-Type: {kind}", f"Content-Length: {len(raw)}", "Connection: close")
        writer.write("\r\n".join((*headers, "\r\n")).encode() + (b"" if words[0] == b"HEAD" else raw))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def close(self) -> None:
        if self._server:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._listener.close()
