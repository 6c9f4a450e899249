"""Runs programs in the guest for the tests on the host: `python3 agent.py PORT`.

One connection to the host is always open and idle. The host uses it for one program: a request, then frames both ways,
each one letter, a 32-bit length and that many bytes. To the guest: R a request (JSON), I input, E the end of the input,
S a signal. From the guest: O output, F its errors, X the exit code, which is negative after a signal. When the
connection ends, the program is killed.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress

HOST = "10.0.2.2"  # what QEMU's user-mode network calls the machine it runs on


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the host has hung up")
        data += part
    return data


def receive_frame(connection: socket.socket) -> tuple[bytes, bytes]:
    kind, size = struct.unpack("<cI", receive(connection, 5))
    return kind, receive(connection, size)


def send_frame(connection: socket.socket, kind: bytes, data: bytes) -> None:
    connection.sendall(struct.pack("<cI", kind, len(data)) + data)


def start(request: dict[str, object]) -> subprocess.Popen[bytes]:
    argv, env, user = request["argv"], request["env"], request["user"]
    assert isinstance(argv, list) and isinstance(env, dict) and isinstance(user, int)
    return subprocess.Popen(
        argv,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=user,
        group=user,
        extra_groups=[],
        start_new_session=True,
    )


def obey(process: subprocess.Popen[bytes], kind: bytes, data: bytes) -> None:
    assert process.stdin
    if kind == b"S":
        process.send_signal(int(data))
        return
    with suppress(BrokenPipeError):  # a program need not read what it is told
        if kind == b"I":
            process.stdin.write(data)
            process.stdin.flush()
        elif kind == b"E":
            process.stdin.close()


def attend(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Pass on what both sides say until the program has ended and all that it wrote is sent."""
    assert process.stdout and process.stderr
    host, ended = connection.fileno(), os.pidfd_open(process.pid)
    outputs = {process.stdout.fileno(): b"O", process.stderr.fileno(): b"F"}
    try:
        while True:
            readable, _, _ = select.select([host, ended, *outputs], [], [])
            if host in readable:
                obey(process, *receive_frame(connection))
            said = [descriptor for descriptor in outputs if descriptor in readable]
            for descriptor in said:
                data = os.read(descriptor, 65536)
                if data:
                    send_frame(connection, outputs[descriptor], data)
                else:
                    del outputs[descriptor]
            # What a program leaves running may hold its output open, so its end counts, not that of its output.
            if ended in readable and not said:
                send_frame(connection, b"X", str(process.wait()).encode())
                return
    finally:
        os.close(ended)


def serve(connection: socket.socket, request: dict[str, object]) -> None:
    with connection:
        try:
            process = start(request)
        except OSError as error:
            send_frame(connection, b"F", f"{error}\n".encode())
            send_frame(connection, b"X", b"127")
            return
        with process:
            try:
                attend(connection, process)
            except OSError:
                process.kill()


def main() -> None:
    port = int(sys.argv[1])
    while True:
        connection = socket.create_connection((HOST, port), timeout=None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            kind, data = receive_frame(connection)
        except OSError:
            return  # the tests are over
        assert kind == b"R"
        threading.Thread(target=serve, args=(connection, json.loads(data)), daemon=True).start()


if __name__ == "__main__":
    main()
