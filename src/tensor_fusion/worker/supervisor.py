"""The supervisor: who listens, who is let in, and the file that says who is being served."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tensor_fusion.abi import Native
from tensor_fusion.config import UserError
from tensor_fusion.worker import processes
from tensor_fusion.worker.admission import Admission
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.options import Settings
from tensor_fusion.worker.segment import Segment
from tensor_fusion.worker.sessions import Sessions
from tensor_fusion.worker.shmem import ShmemListener
from tensor_fusion.worker.tcp import TcpListener

# Of a file of clients, to see that it is one: bytes, and the form of a line.
LOOKED_AT = 4096
_LINE = re.compile(rb"[^\x00-\x1f]{0,300},\d{1,5},\d{1,10}")


class Supervisor:
    def __init__(self, settings: Settings, native: Native, sessions: Sessions, segment: Segment | None) -> None:
        self._settings = settings
        self._sessions = sessions
        sessions.on_list = partial(processes.answer, sessions)
        admission = Admission(settings, native.schema, sessions)
        self.reload = admission.reload  # what SIGHUP asks for
        self._listener: TcpListener | ShmemListener = (
            ShmemListener(segment, native, admission)
            if segment
            else TcpListener(settings.host, settings.port, admission)
        )
        if settings.connections_file:
            _begin_connections(settings.connections_file)
            sessions.on_change = self._write_connections

    @property
    def place(self) -> str:
        """What the ready line says of the transport."""
        return self._listener.place

    def start(self, on_failure: Callable[[str], None]) -> None:
        """`on_failure` gets a sentence when nobody can be served any more."""
        if isinstance(self._listener, ShmemListener):
            self._listener.on_failure = on_failure
        self._listener.start()

    async def close(self) -> None:
        """Let nobody in any more."""
        await self._listener.close()

    def _write_connections(self) -> None:
        """Keep TF_CONNECTION_INFO_PATH equal to the clients being served; readers never see half a file."""
        path = self._settings.connections_file
        if path is None:
            return
        lines = [",".join(map(str, session.connection)) for session in self._sessions.serving() if session.connection]
        try:
            replace_text(path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            LOGGER.error("TF_CONNECTION_INFO_PATH %s cannot be written: %s", path, error.strerror)


def _begin_connections(path: Path) -> None:
    """Empty the file of the clients. Raises UserError where there cannot be one: whoever set it waits for its lines."""
    try:
        # What is put in its place is a file, and /dev/null must stay what it is.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"TF_CONNECTION_INFO_PATH {path} is no regular file; name a file, or unset it.")
        if path.exists() and not _is_list(path):
            raise UserError(
                f"TF_CONNECTION_INFO_PATH {path} holds something else than lines address,port,pid, and would be "
                "overwritten; name another file, or unset it."
            )
        replace_text(path, "")
    except OSError as error:
        raise UserError(
            f"TF_CONNECTION_INFO_PATH {path} cannot be written: {error.strerror}; name another file, or unset it."
        ) from error


def _is_list(path: Path) -> bool:
    """Whether a file is empty, or begins as one of another worker: what else it may be belongs to somebody."""
    with path.open("rb") as file:
        begin = file.read(LOOKED_AT)
    lines = begin.splitlines()
    whole = lines[:-1] if len(begin) == LOOKED_AT else lines
    return all(_LINE.fullmatch(line) for line in whole) and bool(whole or not lines)


def replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
