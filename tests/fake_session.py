"""A stand-in for tensor-fusion-session that speaks the control channel, so that the supervisor is tested without CUDA.

It behaves as FAKE_SESSION says: "" (well), "fail" (no driver), "hang" (never ready), "die" (exits at once), "free"
(exits at once in a jail), "unconfined" (in the full one), "junk" (a packet of a wrong size), "stubborn" (ignores the
end of the control channel), "once:FILE" (well if it is the first), "late:FILE" (well if it is the first, else ready
when its client says so).
As the session of a client it answers each line that the client sends: "row", "text", "pid", "env NAME", "driver",
"limit", "total", "greeting", "jail", "gone N" (says so many times that its client is gone), "reserve N" (bytes on
device 0), "data" (indexes of the data connections so far), "crash" (SIGSEGV), "exit N", "context" (says that it is
ready).
Over shared memory it serves nobody: it writes what it was told into the folder FAKE_ADOPTED, as PID.json.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import hashlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

PACKET = struct.Struct("<IIQQQ224s256s")
CELLS = 4096 + 32 * 1024  # of the quota page
WELCOME = struct.Struct("<8sII16sQQII8x448s")


def receive(control: socket.socket) -> tuple[int, int, bytes, int, int | None, bytes] | None:
    """Type, argument, text, value, descriptor and greeting of a packet; None at the end."""
    raw, ancillary, _, _ = control.recvmsg(PACKET.size, socket.CMSG_SPACE(4))
    if not raw:
        return None
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[:4])
    kind_, argument, session, key, value, text, greeting = PACKET.unpack(raw)
    if fds and greeting[96]:
        greet_in_tls(socket.socket(fileno=os.dup(fds[0])), greeting, session, key)
    return kind_, argument, text.rstrip(b"\0"), value, fds[0] if fds else None, greeting


def greet_in_tls(client: socket.socket, greeting: bytes, session: int, key: int) -> None:
    """Take the hello that the supervisor has left, and say what shows that the key came along. The rest is plain."""
    head = client.recv(5, socket.MSG_WAITALL)
    client.recv(int.from_bytes(head[3:], "big"), socket.MSG_WAITALL)
    welcome = WELCOME.pack(greeting[:8], 1, 0, greeting[16:32], session, key, 8, 0, b"")
    client.sendall(b"\x16" + hashlib.sha256(greeting[64:96]).digest() + welcome)
    client.close()


def adopted_in_slot(given: argparse.Namespace, argument: int, value: int, text: bytes) -> None:
    """Say what this session was given, and what it finds behind the descriptors."""
    with mmap.mmap(given.owners_fd, 0) as owners:
        mine = struct.pack("<H", argument)
        granules = sum(owners[at : at + 2] == mine for at in range(0, len(owners), 2))
    report = {
        "slot": argument - 1,
        "first": value >> 32,
        "blocks": value & 0xFFFFFFFF,
        "granules": granules,
        "text": text.decode(),
        "size": [given.segment_size, os.fstat(given.segment_fd).st_size],
    }
    path = Path(os.environ["FAKE_ADOPTED"], f"{os.getpid()}.json")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report))
    part.rename(path)


def send(control: socket.socket, kind: int, argument: int = 0, value: int = 0, text: str = "") -> None:
    control.send(PACKET.pack(kind, argument, 0, 0, value, text.encode(), b""))


def total(limits: mmap.mmap) -> str:
    """What all sessions have reserved on device 0."""
    rows = struct.unpack_from("<Q", limits, 24)[0]
    return str(sum(struct.unpack_from("<Q", limits, CELLS + 4096 * row)[0] for row in range(rows)))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--control-fd", "--quota-fd", "--cells-fd", "--row"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--driver", "--nvml"):
        parser.add_argument(name, required=True)
    for name in ("--segment-fd", "--segment-size", "--owners-fd"):
        parser.add_argument(name, type=int)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--jail", action="store_true")
    for name in ("--confine", "--calls"):
        parser.add_argument(name, default="")
    if "--layers" in sys.argv:
        lacks = os.environ.get("FAKE_LACKS", "").split(",")
        for name in ("user", "mount", "net", "ipc", "uts", "landlock", "calls"):
            print(f"{name}\toff\tit is not allowed here" if name in lacks else f"{name}\ton")
        return
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, as the real one does
    control = socket.socket(fileno=given.control_fd)
    limits = mmap.mmap(given.quota_fd, 0, prot=mmap.PROT_READ)
    cell = mmap.mmap(given.cells_fd, 4096, offset=CELLS + 4096 * given.row)
    mode = os.environ.get("FAKE_SESSION", "")
    if mode == "die" or (mode == "free" and given.jail) or (mode == "unconfined" and given.confine):
        sys.exit(7)
    if mode.startswith("once:"):
        try:
            os.close(os.open(mode.removeprefix("once:"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            sys.exit(7)
    late = False
    if mode.startswith("late:"):
        try:
            os.close(os.open(mode.removeprefix("late:"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            late = True
    client: socket.socket | None = None
    spoken = False
    greeting = b""
    text = b""
    data: list[int] = []
    streams: list[socket.socket] = []
    while True:
        sources = [control] if client is None else [control, client]
        for source in select.select(sources, [], [])[0]:
            if source is control:
                packet = receive(control)
                if packet is None:
                    while mode == "stubborn":
                        time.sleep(1)
                    sys.exit(0)
                kind, argument, body, value, descriptor, said = packet
                if kind == 3:
                    if mode == "fail":
                        send(control, 17, 100, text="no CUDA-capable device is detected")
                    elif mode == "junk":
                        control.send(b"x" * 100)
                    elif mode != "hang" and not late:
                        send(control, 16, 2, 527 << 20, "Fake GPU")
                elif kind == 1 and descriptor is None:
                    adopted_in_slot(given, argument, value, body)
                elif kind == 1:
                    text, greeting = body, said
                    client = socket.socket(fileno=descriptor)
                elif kind == 2:
                    data.append(argument)
                    streams.append(socket.socket(fileno=descriptor))
                continue
            assert client is not None
            line = client.recv(200).decode().split()
            if not line:
                send(control, 18, value=5)
                sys.exit(0)
            if not spoken:
                spoken = True
                send(control, 19)
            answer = "?"
            if line[0] == "row":
                answer = str(given.row)
            elif line[0] == "text":
                answer = text.decode()
            elif line[0] == "pid":
                answer = str(os.getpid())
            elif line[0] == "env":
                answer = os.environ.get(line[1], "(unset)")
            elif line[0] == "driver":
                answer = f"{given.driver} {given.nvml} {given.simulated}"
            elif line[0] == "jail":
                answer = str(given.jail)
            elif line[0] == "confine":
                answer = given.confine or "nothing"
            elif line[0] == "calls":
                answer = given.calls or "nothing"
            elif line[0] == "gone":
                for _ in range(int(line[1])):
                    send(control, 18)
            elif line[0] == "greeting":
                answer = greeting.hex()
            elif line[0] == "data":
                answer = ",".join(map(str, sorted(data)))
            elif line[0] == "reserve":
                struct.pack_into("<Q", cell, 0, struct.unpack_from("<Q", cell)[0] + int(line[1]))
                answer = total(limits)
            elif line[0] == "limit":
                answer = str(struct.unpack_from("<Q", limits, 8)[0])
            elif line[0] == "total":
                answer = total(limits)
            elif line[0] == "context":
                send(control, 16, 2)
                answer = "ready"
            elif line[0] == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif line[0] == "exit":
                sys.exit(int(line[1]))
            client.sendall((answer + "\n").encode())


if __name__ == "__main__":
    main()
