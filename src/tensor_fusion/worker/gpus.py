"""What NVML says of the GPUs that this worker lends, and of its sessions on them.

NVML may take long, and hangs when a GPU does. So a thread of its own asks it, only while somebody wants to know, and
nobody waits for it longer than `PATIENCE`: then the GPUs are unknown. The thread ends with the process.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tensor_fusion.abi import NVML_NOT_SUPPORTED, Nvml, NvmlError
from tensor_fusion.worker.log import LOGGER

PATIENCE = 2.0
# Two who ask at the same time get one answer.
FRESH = 0.5
# How far back a sample of a process's load may lie.
WINDOW = 3.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Gpus:
    """What NVML does not tell is left out."""

    devices: list[dict[str, Any]] = field(default_factory=list)
    processes: list[dict[int, int | None]] = field(default_factory=list)  # bytes by process, by device
    shares: list[dict[int, int] | None] = field(default_factory=list)  # percent by process, by device; None: not told


class Sampler:
    """Entered by the event loop's thread; `uuids` says which devices the sessions have, once it is known."""

    def __init__(self, library: Path, uuids: Callable[[], list[bytes]]) -> None:
        self._library = library
        self._uuids = uuids
        self._thread: threading.Thread | None = None
        self._wanted: queue.SimpleQueue[tuple[list[bytes], asyncio.Future[Gpus]]] = queue.SimpleQueue()
        self._asked: asyncio.Future[Gpus] | None = None
        self._answer, self._answered = Gpus(), float("-inf")
        self._nvml: Nvml | None = None
        self._said: set[str] = set()

    async def look(self) -> Gpus:
        loop = asyncio.get_running_loop()
        if loop.time() - self._answered < FRESH:
            return self._answer
        if self._asked is None or self._asked.done():
            self._asked = loop.create_future()
            self._wanted.put((self._uuids(), self._asked))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(loop,), name="nvml", daemon=True)
            self._thread.start()
        try:
            self._answer = await asyncio.wait_for(asyncio.shield(self._asked), PATIENCE)
            self._answered = loop.time()
            return self._answer
        except asyncio.TimeoutError:
            LOGGER.warning("NVML has not answered for %.0f s: the load of the GPUs is not known", PATIENCE)
            return Gpus()

    # The thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            uuids, asked = self._wanted.get()
            found = self._sample(uuids)
            try:
                loop.call_soon_threadsafe(self._settle, asked, found)
            except RuntimeError:  # the loop has been closed
                return

    @staticmethod
    def _settle(asked: asyncio.Future[Gpus], found: Gpus) -> None:
        if not asked.done():
            asked.set_result(found)

    def _sample(self, uuids: list[bytes]) -> Gpus:
        try:
            self._nvml = self._nvml or Nvml(self._library)
        except (NvmlError, OSError) as error:
            self._say(f"NVML cannot be used: {error}: the load of the GPUs is not known")
            return Gpus()
        gpus, since = Gpus(), time.time() - WINDOW
        for index, raw in enumerate(uuids):
            name = f"GPU-{uuid.UUID(bytes=raw)}"
            device = self._try(Nvml.device, name) if any(raw) else None
            if device is None:
                gpus.devices.append({"index": index, "uuid": name})
                gpus.processes.append({})
                gpus.shares.append(None)
                continue
            gpus.devices.append(self._device(index, name, device))
            gpus.processes.append(self._try(Nvml.processes, device) or {})
            gpus.shares.append(self._try(Nvml.shares, device, since))
        return gpus

    def _device(self, index: int, name: str, device: Any) -> dict[str, Any]:
        load = self._try(Nvml.utilization, device) or (None, None)
        clocks = self._try(Nvml.megahertz, device) or (None, None)
        memory = self._try(Nvml.memory, device) or {}
        power = self._try(Nvml.milliwatts, device)
        found = {
            "host_index": self._try(Nvml.index, device),
            "minor": self._try(Nvml.minor, device),
            "name": self._try(Nvml.name, device),
            "gpu_percent": load[0],
            "memory_percent": load[1],
            **{f"memory_{what}_bytes": count for what, count in memory.items()},
            "temperature_celsius": self._try(Nvml.temperature, device),
            "power_watts": None if power is None else power / 1000,
            "energy_millijoules": self._try(Nvml.millijoules, device),
            "sm_megahertz": clocks[0],
            "memory_megahertz": clocks[1],
        }
        return {"index": index, "uuid": name, **{what: value for what, value in found.items() if value is not None}}

    def _try(self, ask: Callable[..., _T], *arguments: Any) -> _T | None:
        """None for what it does not have; any other error is said once."""
        assert self._nvml
        try:
            return ask(self._nvml, *arguments)
        except NvmlError as error:
            if error.code != NVML_NOT_SUPPORTED:
                self._say(str(error))
            return None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            LOGGER.warning("%s", text)
