"""A service on a port of this machine that does with each connection what a test says."""

from __future__ import annotations

import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Service:
    """Listens, and does with each connection what it is told."""

    def __init__(
        self, serve: Callable[[socket.socket], None], accepts: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0 if not accepts else 16)
        self.port = self.listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self._serve = serve
        self._tls = tls
        if accepts:
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._one, args=[connection], daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with suppress(OSError):  # the client is gone, which is what most tests here are about
            self._serve(self._tls.wrap_socket(connection, server_side=True) if self._tls else connection)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.listener.close()


def silent(connection: socket.socket) -> None:
    connection.recv(1)
    time.sleep(30)


@contextmanager
def service(serve: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    started = Service(serve, tls=tls)
    yield started.port
    started.close()


def limit_too_low(place: Any) -> None:
    """A shell in which files may not be as large as what a client sends through, which is memory that counts as one."""
    place.connection = place.worker.connection
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    place.stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
