"""How a worker is, for those who run it: its sessions, what they hold and what they have counted.

Entered by the event loop's thread only. Names of programs and users are a client's own words: `Greeting.parse` has made
printable ASCII of them. A connection to the socket gets one JSON text and nothing is read from it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tensor_fusion.config import UserError, product_version
from tensor_fusion.runtime import PATIENCE, address, own_folder, peer_user
from tensor_fusion.terminal import complain
from tensor_fusion.worker.gpus import Gpus, Sampler
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.sessions import Session, Sessions

BACKLOG = 16


class Place(Protocol):
    """A supervisor, as far as it says where it listens."""

    @property
    def place(self) -> str: ...


class Status:
    def __init__(self, sessions: Sessions, place: Place, gpus: Sampler, *, simulated: bool, limit: int) -> None:
        self._sessions = sessions
        self._gpus = gpus
        self._fixed = {
            "pid": os.getpid(),
            "version": product_version(),
            "place": place.place,
            "simulated": simulated,
            "since": time.time(),
            "memory_limit_bytes": limit,
        }

    async def tell(self) -> dict[str, Any]:
        gpus = await self._gpus.look()
        serving = sorted(self._sessions.serving(), key=lambda session: session.since)
        told = [self._session(session, gpus) for session in serving]
        jail = {"jail": self._sessions.jail, "layers": self._sessions.layers}
        return {**self._fixed, **jail, "now": time.time(), "gpus": gpus.devices, "sessions": told}

    def _session(self, session: Session, gpus: Gpus) -> dict[str, Any]:
        figures, held = self._sessions.figures(session), self._sessions.held(session)
        number = session.process.pid
        # What NVML lists under our number; in another process namespace than the driver's it lists nobody of ours.
        listed = {str(device): found[number] for device, found in enumerate(gpus.processes) if number in found}
        where, port, pid = session.connection or ("", 0, 0)
        return {
            "pid": session.process.pid,
            "program": session.program,
            "user": session.user,
            "tenant": session.tenant_name,
            "address": where,
            "port": port,
            "client_pid": pid,
            "since": session.since,
            "devices": [device for device in range(len(held)) if figures.contexts >> device & 1],
            "memory_bytes": {str(device): count for device, count in enumerate(held) if count},
            "gpu_memory_bytes": {device: count for device, count in listed.items() if count is not None},
            "gpu_percent": {
                device: shares.get(number, 0) for device in listed if (shares := gpus.shares[int(device)]) is not None
            },
            "host_memory_bytes": session.host_memory(),
            "calls": figures.calls,
            "round_trips": figures.round_trips,
            "received_bytes": figures.received,
            "sent_bytes": figures.sent,
        }


class StatusSocket:
    """Open from `start` to `close`. A worker that cannot have one serves all the same, and says so."""

    def __init__(self, status: Status, environ: Mapping[str, str]) -> None:
        self._status = status
        self._environ = environ
        self._name = f"worker-{os.getpid()}.sock"
        self._folder: Path | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        try:
            folder = own_folder(self._environ)
            self._server = await asyncio.start_unix_server(self._told, sock=self._listen(folder))
            self._folder = folder
        except UserError as error:
            complain(f"NOTICE: tensor-fusion top will not see this worker: {error.sentence}")
        except OSError as error:
            complain(f"NOTICE: tensor-fusion top will not see this worker: its socket failed: {error.strerror}.")

    def _listen(self, folder: Path) -> socket.socket:
        """It gets its name when it listens: what has the name and does not is left of a worker that was killed."""
        opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        hidden = f".{self._name}"
        try:
            (folder / hidden).unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(address(opened, hidden))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            (folder / hidden).rename(folder / self._name)
        except BaseException:
            listener.close()
            raise
        finally:
            os.close(opened)
        self._remove_dead(folder)
        return listener

    def _remove_dead(self, folder: Path) -> None:
        for path in folder.glob("worker-*.sock"):
            # A process that is there is not asked: whoever connects makes it look at its GPUs.
            if Path("/proc", path.stem.removeprefix("worker-")).exists():
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
                opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    probe.setblocking(False)
                    probe.connect(address(opened, path.name))
                except ConnectionRefusedError:
                    path.unlink(missing_ok=True)
                except OSError as error:  # it lives and is busy, or has just gone
                    LOGGER.debug("%s: %s", path, error)
                finally:
                    os.close(opened)

    async def _told(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = peer_user(writer.get_extra_info("socket"))
        try:
            if user in (0, os.geteuid()):
                writer.write(json.dumps(await self._status.tell()).encode())
                await asyncio.wait_for(writer.drain(), PATIENCE)
            else:
                LOGGER.warning("user %d may not ask how this worker is", user)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), PATIENCE)
        except (OSError, asyncio.TimeoutError) as error:
            LOGGER.debug("who asked how this worker is has gone: %s", error)
            writer.transport.abort()
        except asyncio.CancelledError:  # the worker ends; Python 3.11 writes a traceback for a cancelled handler
            writer.transport.abort()

    def close(self) -> None:
        if self._server is None or self._folder is None:
            return
        (self._folder / self._name).unlink(missing_ok=True)
        self._server.close()
        self._server = None
