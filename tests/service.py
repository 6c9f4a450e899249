"""A service on a port of this machine that does with each connection what a test says."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tensor_fusion.client.files import client_environment


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
    """A shell that bounds addresses so that a program starts in it, and what a client sends through has no room."""
    place.connection = place.worker.connection
    shell = place.folder / "python"
    environment = os.environ | client_environment(place.connection, os.environ)
    for kilobytes in range(20000, 200000, 2000):
        shell.write_text(f'#!/bin/sh\nulimit -v {kilobytes}\nexec {sys.executable} "$@"\n')
        shell.chmod(0o755)
        words = [str(shell), "-c", "import ctypes; ctypes.CDLL('libcuda.so.1').cuInit(0)"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if "No memory for the connection" in done.stderr:
            break
    else:
        raise AssertionError("no limit is too low for the client and enough for Python")
    place.patch.setattr(sys, "executable", str(shell))
