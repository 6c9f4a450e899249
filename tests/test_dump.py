"""tensor-fusion dump: captures of real connections, over both transports, and damaged ones."""

from __future__ import annotations

import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stack import harness
from stack.harness import Worker, whole_stack

from tensor_fusion.client.files import client_environment
from tensor_fusion.config import ShmemAddress, UserError, parse_connection, segment_path
from tensor_fusion.dump.command import dump
from tensor_fusion.dump.schema import Schema
from tensor_fusion.worker.protocol import Greeting, Status, Welcome

pytestmark = whole_stack

PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
out, address, by, size = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.byref, ctypes.c_size_t
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(by(out), 0) == 0
assert cuda.cuCtxSetCurrent(out) == 0
assert cuda.cuMemAlloc_v2(by(address), size(1 << 20)) == 0
assert cuda.cuMemAlloc_v2(by(ctypes.c_uint64()), size(1 << 60)) == 2
assert cuda.cuMemcpyHtoD_v2(address, b"some bytes of the program", size(24)) == 0
big = ctypes.create_string_buffer(1 << 20)
assert cuda.cuMemcpyHtoD_v2(address, big, size(1 << 20)) == 0
assert cuda.cuMemcpyDtoH_v2(big, address, size(1 << 20)) == 0
stream = ctypes.c_void_p()
assert cuda.cuStreamCreate(by(stream), 1) == 0
assert cuda.cuMemsetD8Async(address, 7, size(64), stream) == 0
priority = ctypes.create_string_buffer(64)
assert cuda.cuStreamGetAttribute(stream, 8, priority) == 0
assert cuda.cuCtxSynchronize() == 0
print("there", flush=True)
sys.stdin.readline()
"""
Packets = list[tuple[float, int, bool, bytes]]  # time, connection, from the client, bytes


class Relay:
    """Between a client and a worker: keeps what passes."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self.packets: Packets = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        for number in range(1, 100):
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            worker = socket.create_connection(self._to)
            for source, target, of_client in ((client, worker, True), (worker, client, False)):
                threading.Thread(target=self._pass, args=(number, source, target, of_client), daemon=True).start()

    def _pass(self, number: int, source: socket.socket, target: socket.socket, of_client: bool) -> None:
        try:
            while data := source.recv(1 << 14):
                self.packets.append((time.time(), number, of_client, data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._socket.close()


def running(connection: str) -> subprocess.Popen[str]:
    """The program, at its end: nothing is on its way any more."""
    environment = harness.clean_environment()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**environment, **client_environment(connection, environment)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout and program.stdout.readline() == "there\n"
    return program


def ended(program: subprocess.Popen[str]) -> None:
    program.communicate("\n", timeout=60)
    assert program.returncode == 0


@pytest.fixture(scope="module")
def packets() -> Packets:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TRANSPORT", "native")
        with Worker(program=Path(sys.executable)) as worker:
            address = worker.connection.split("+")
            with closing(Relay(address[1], int(address[2]))) as relay:
                ended(running(f"native+127.0.0.1+{relay.port}+{address[3]}"))
                return list(relay.packets)


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a segment's file while a client has a slot."""
    copy = tmp_path_factory.mktemp("segment") / "segment"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TRANSPORT", "shmem")
        with Worker(program=Path(sys.executable)) as worker:
            address = parse_connection(worker.connection)
            assert isinstance(address, ShmemAddress)
            program = running(worker.connection)
            copy.write_bytes(segment_path(address.file).read_bytes())
            ended(program)
    return copy


def tcp(source: int, target: int, sequence: int, flags: int, data: bytes) -> bytes:
    """A packet from 127.0.0.1 to itself, from IP on."""
    segment = struct.pack(">HHIIBBHHH", source, target, sequence % (1 << 32), 0, 5 << 4, flags, 0, 0, 0) + data
    address = bytes([127, 0, 0, 1])
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0, address, address) + segment


def network(packets: Packets, *, shuffled: bool = False) -> list[tuple[float, bytes]]:
    """As IP packets, with the connections' beginnings; numbers of bytes pass the end of 32 bits."""
    made: list[tuple[float, bytes]] = []
    next_byte: dict[tuple[int, bool], int] = {}
    for when, number, of_client, data in packets:
        ports = (40000 + number, 9000) if of_client else (9000, 40000 + number)
        if (number, of_client) not in next_byte:
            next_byte[number, of_client] = (1 << 32) - 300 + number
            start = next_byte[number, of_client] - 1
            made.append((when, tcp(*ports, start, 2 if of_client else 18, b"")))
        at = next_byte[number, of_client]
        pieces = [(at + k, data[k : k + 1400]) for k in range(0, len(data), 1400)]
        next_byte[number, of_client] += len(data)
        if shuffled:  # the last first, everything twice, and one that overlaps
            pieces = [*pieces[::-1], *pieces, (at + len(data) // 2, data[len(data) // 2 :])]
        made += [(when, tcp(*ports, where, 24, piece)) for where, piece in pieces]
    return made


def pcap(made: list[tuple[float, bytes]], link: int = 101, before: bytes = b"", order: str = "<") -> bytes:
    file = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    for when, packet in made:
        data = before + packet
        file += struct.pack(order + "IIII", int(when), int(when % 1 * 1e6), len(data), len(data)) + data
    return file


def pcapng(made: list[tuple[float, bytes]], order: str = "<") -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        size = struct.pack(order + "I", len(body) + 12)
        return struct.pack(order + "I", kind) + size + body + size

    file = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    file += block(1, struct.pack(order + "HHI", 101, 0, 0) + struct.pack(order + "HHB3xHH", 9, 1, 9, 0, 0))
    file += block(5, b"statistics")
    for when, packet in made:
        ticks = int(when * 1e9)
        head = struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet))
        file += block(6, head + packet)
    return file


def read(path: Path) -> tuple[list[str], str]:
    """The lines, and the sentences at the end."""
    lines = []
    try:
        for line in dump(path):
            lines.append(line)
    except UserError as error:
        return lines, error.sentence
    return lines, ""


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def without_times(lines: list[str]) -> list[str]:
    return [line[13:] for line in lines]


def check_frames(lines: list[str]) -> None:
    """Of the program, in the words of CUDA."""
    text = "\n".join(lines)
    assert re.search(r"> frame 1: start\(flags=0\), 24 bytes, thread 1, context 0x0, waits", text)
    assert re.search(r"< answer to 1: start = CUDA_SUCCESS \(0\) \(.*driver_version=\d+.*\), \d+ bytes, thread 1", text)
    assert "memory_alloc(size=1048576), 24 bytes, thread 1, context 0x" in text
    assert re.search(r"< answer to \d+: memory_alloc = CUDA_ERROR_OUT_OF_MEMORY \(2\), 24 bytes, thread 1", text)
    assert b"some bytes".hex(" ") in text
    assert re.search(r"cuMemsetD8Async\(.*hStream=stream 0x406", text)
    assert "attr=CU_LAUNCH_ATTRIBUTE_PRIORITY" in text
    assert max(map(len, lines)) < 1000


def test_a_capture_of_the_network(packets: Packets, tmp_path: Path) -> None:
    lines, sentence = read(written(tmp_path / "file", pcap(network(packets))))
    assert not sentence
    check_frames(lines)
    assert lines[0].startswith("    0.000000 1 > greeting: control connection, protocol 2, program ")
    text = "\n".join(lines)
    assert "secret none" in text
    assert re.search(r"1 < welcome: accepted, protocol 2, session 0x[0-9a-f]+, key masked, \d data connections", text)
    assert re.search(r"> greeting: data connection \d, ", text)
    sent = [int(n) for n in re.findall(r"> chunk: transfer \d+, (\d+) bytes from", text)]
    came = [int(n) for n in re.findall(r"< chunk: transfer \d+, (\d+) bytes from", text)]
    assert sum(sent) == sum(came) == 1 << 20
    assert "completes download 1" in text
    numbers = [int(n) for n in re.findall(r"> frame (\d+):", text)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_kind_of_capture_says_the_same(packets: Packets, tmp_path: Path) -> None:
    made = network(packets)
    lines = without_times(read(written(tmp_path / "file", pcap(made)))[0])
    ether = bytes(12)
    kinds = {
        "ethernet": pcap(made, 1, ether + b"\x08\x00"),
        "tagged": pcap(made, 1, ether + b"\x81\x00\x00\x05\x08\x00"),
        "any": pcap(made, 113, bytes(14) + b"\x08\x00"),
        "any2": pcap(made, 276, b"\x08\x00" + bytes(18)),
        "null": pcap(made, 0, bytes([2, 0, 0, 0])),
        "big": pcap(made, order=">"),
        "next": pcapng(made),
        "next big": pcapng(made, ">"),
        "other packets": pcap([(0.0, b""), (0.0, b"\x45" + bytes(30)), *made, (0.0, tcp(1, 2, 3, 24, b"GET /"))]),
    }
    for kind, data in kinds.items():
        assert read(written(tmp_path / "file", data)) == (read(tmp_path / "file")[0], ""), kind
        assert without_times(read(tmp_path / "file")[0]) == lines, kind
    # Out of order and twice: each direction's lines are the same, in its order.
    shuffled, sentence = read(written(tmp_path / "file", pcap(network(packets, shuffled=True))))
    assert not sentence
    for arrow in "<>":
        for number in (1, 2):
            mine = f"{number} {arrow} "
            wanted = [line for line in lines if line.startswith(mine)]
            assert [line for line in without_times(shuffled) if line.startswith(mine)] == wanted


def test_one_direction_alone(packets: Packets, tmp_path: Path) -> None:
    for of_client, words in ((True, "> frame 1: start(flags=0)"), (False, "< answer: start = CUDA_SUCCESS (0)")):
        data = b"".join(data for _, number, client, data in packets if number == 1 and client is of_client)
        lines, sentence = read(written(tmp_path / "file", data))
        assert not sentence and words in "\n".join(lines)
        lines, sentence = read(written(tmp_path / "file", data[:-3]))
        assert f"offset {len(data) - 3}: the capture ends inside " in sentence
    used = max(number for _, number, client, data in packets if client and len(data) > 4096)
    data = b"".join(data for _, number, client, data in packets if number == used and client)
    lines, sentence = read(written(tmp_path / "file", data))
    assert not sentence and lines[0].startswith("> greeting: data connection ") and "> chunk" in lines[1]


def test_a_segment(segment: Path, tmp_path: Path) -> None:
    lines, sentence = read(segment)
    assert not sentence
    check_frames(lines)
    # The greeting is gone: the worker wipes it, because of the secret.
    assert lines[0].startswith("slot 0: accepted, ") and lines[1].startswith("< welcome: accepted, ")
    assert sum(line.startswith(("commands: ", "replies: ")) for line in lines) == 2
    # A ring that has gone round: frames are found again from the end.
    data = bytearray(segment.read_bytes())
    at = 4096 + 1280
    (head,) = struct.unpack_from("<Q", data, at)
    (first,) = struct.unpack_from("<I", data, 4096 + 4)
    begin, room = (4096 + 64 * 8192 + 65535) // 65536 * 65536 + first * 65536, 2 << 20
    ring = data[begin : begin + room]
    ring[head:] = b"\xff" * (room - head)
    shift = 4096
    data[begin : begin + room] = ring[-shift:] + ring[:-shift]
    struct.pack_into("<Q", data, at, head + room + shift)
    struct.pack_into("<Q", data, at + 128, room + shift)
    again, sentence = read(written(tmp_path / "segment", bytes(data)))
    assert not sentence
    mine = [line for line in lines if line.startswith("> frame")]
    shown = [line.removesuffix("  (unread)") for line in again if line.startswith("> frame")]
    assert [re.sub(r"frame \d+:", "frame:", line) for line in mine] == shown
    assert any(f"shown from {room + shift}" in line for line in again)


def commanded(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tensor_fusion", "dump", str(path)],
        env=harness.clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def client_stream(*frames: bytes) -> bytes:
    return Greeting.build(Schema().hash, client_pid=7, program="p") + b"".join(frames)


def frame(op: int, body: bytes = b"", flags: int = 1, size: int | None = None) -> bytes:
    return struct.pack("<IHHII", 16 + len(body) if size is None else size, op, flags, 1, 0) + body


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "offset 0: this is no capture: "),
        (b"something else", "offset 0: this is no capture: "),
        (b"TFUSION\0", "offset 8: the file ends inside its greeting or welcome"),
        (Greeting.build(Schema().hash, client_pid=7, role=9), "offset 12: 9 is no role"),
        (Welcome.build(Status.ACCEPTED, bytes(16)), "offset 16: the schema is 0000"),
        (client_stream(frame(65000)), "offset 260: 65000 is the number of no operation"),
        (client_stream(frame(366, size=17)), "offset 256: a frame of 17 bytes"),
        (client_stream(frame(366, size=2 << 20)), "offset 256: a frame of 2097152 bytes"),
        (client_stream(frame(366, flags=8)), "offset 262: a client's frame has no flags 0x8"),
        (client_stream(frame(366, bytes(8))), "offset 272: 8 bytes lie behind the last field"),
        (client_stream(frame(366)[:9]), "offset 265: the capture ends inside a frame's header: 9 bytes of 16"),
        (b"\xd4\xc3\xb2\xa1", "offset 4: the file ends inside the header of the file"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, 147), "offset 20: packets of the kind of link 147"),
        (pcap([]), "offset 0: no connection to a worker begins in this capture"),
        (pcap([(0.0, b"")])[:-3], "offset 37: the file ends inside the head of a packet"),
        (pcapng([])[:-1], "the file ends inside a block"),
        (b"TSEGMENT", "offset 8: the file ends before the arena of the segment"),
        (b"TSEGMENT" + bytes(1 << 20), "offset 8: the segment has version 0"),
    ],
)
def test_damage_gets_one_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    done = commanded(written(tmp_path / "damaged", data))
    assert done.returncode == 1
    assert f"{tmp_path / 'damaged'}, " in done.stderr and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "offset" in line]) <= 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        done = commanded(path)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_missing_packets_are_said_and_others_are_shown(packets: Packets, tmp_path: Path) -> None:
    made = network(packets)
    from_client = struct.pack(">H", 40001)
    third = [i for i, (_, packet) in enumerate(made) if packet[20:22] == from_client and len(packet) > 40][2]
    lines, sentence = read(written(tmp_path / "file", pcap([*made[:third], *made[third + 1 :]])))
    missing = r"offset \d+: connection 1, from the client: \d+ bytes before this packet are missing in the capture"
    assert re.search(missing, sentence)
    assert any("< welcome" in line or "> greeting: data" in line for line in lines)


def parts_of(packets: Packets, segment: Path) -> Iterator[bytes]:
    small = [packet for packet in packets if len(packet[3]) < 4000][:60]
    yield pcap(network(small))
    yield pcapng(network(small))
    yield b"".join(data for _, number, client, data in packets if number == 1 and client)
    yield b"".join(data for _, number, client, data in packets if number == 1 and not client)
    yield segment.read_bytes()[: 4 << 20]


def test_no_damage_is_a_traceback_or_an_endless_loop(packets: Packets, segment: Path, tmp_path: Path) -> None:
    """Cut anywhere, with bytes changed, doubled and left out; each result is lines, and sentences with offsets."""
    random.seed(4)
    damaged = tmp_path / "damaged"
    for whole in parts_of(packets, segment):
        large = len(whole) > 1 << 20
        for turn in range(6 if large else 150):
            data = bytearray(whole)
            for _ in range(random.choice((1, 3, 30))):
                at = random.randrange(len(data) if not large or turn % 2 else 16384)
                what = random.randrange(4)
                if what == 0:
                    data[at] ^= 1 << random.randrange(8)
                elif what == 1:
                    data[at : at + 8] = random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
                elif what == 2 and not large:
                    del data[at : at + random.randrange(1, 40)]
                elif not large:
                    data[at:at] = data[at : at + random.randrange(1, 40)]
                if len(data) < 64:
                    break
            if turn % 3 == 0:
                del data[random.randrange(len(data)) :]
            begin = time.monotonic()
            _, sentence = read(written(damaged, bytes(data)))
            assert time.monotonic() - begin < 20
            assert all(line.startswith(f"{damaged}, offset ") for line in sentence.splitlines())


def test_packets_of_the_kernel(tmp_path: Path) -> None:
    """As tcpdump would take them from the loopback, where this may listen there."""
    try:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        listener.bind(("lo", 0))
    except PermissionError as error:
        pytest.skip(f"packets may not be captured here: {error.strerror}")
    listener.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TRANSPORT", "native")
        with Worker(program=Path(sys.executable)) as worker:
            ended(running(worker.connection))
            port = int(worker.connection.split("+")[2])
    listener.setblocking(False)
    made: list[tuple[float, bytes]] = []
    while True:
        try:
            data, where = listener.recvfrom(1 << 17)
        except BlockingIOError:
            break
        mine = struct.pack(">H", port) in (data[34:36], data[36:38])
        if mine and where[2] != socket.PACKET_OUTGOING:  # each is seen twice on the loopback
            made.append((0.0, data))
    listener.close()
    lines, sentence = read(written(tmp_path / "file", pcap(made, 1)))
    assert not sentence, sentence
    check_frames(lines)
