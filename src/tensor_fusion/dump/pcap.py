"""Files that tcpdump and Wireshark write: pcap and pcapng, down to the segments of TCP.

A file is made of records that say how long they are; each length is bounded before it is used, so the file is walked
once. Packets of other protocols are passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tensor_fusion.dump.damage import Damage

PACKET_MOST = 1 << 20
_BLOCK_MOST = PACKET_MOST + 4096
_PCAPNG = b"\n\r\r\n"
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1e-6),
    b"\xa1\xb2\xc3\xd4": (">", 1e-6),
    b"\x4d\x3c\xb2\xa1": ("<", 1e-9),
    b"\xa1\xb2\x3c\x4d": (">", 1e-9),
}
STARTS = (_PCAPNG, *_PCAP)
# Bytes in front of the IP header: of each kind of link, and where the protocol stands, if anywhere.
_LINKS = {1: (14, 12), 113: (16, 14), 276: (20, 0), 0: (4, None), 108: (4, None)}
_RAW_LINKS = (12, 14, 101, 228, 229)
_TAGS, _IPS = (0x8100, 0x88A8), (0x0800, 0x86DD)
_TCP = 6
_EXTENSIONS = (0, 43, 60)  # of IPv6, that only stand in the way


@dataclass(frozen=True)
class Segment:
    """One piece of one direction. `at` is where its bytes lie in the file."""

    time: float
    source: tuple[bytes, int]
    target: tuple[bytes, int]
    sequence: int
    syn: bool
    acknowledges: bool
    data: bytes
    at: int
    missing: int = 0  # bytes of it that were not captured


def segments(file: BinaryIO) -> Iterator[Segment]:
    """Every segment of TCP in the order of the file. Raises Damage with an offset in the file."""
    start = file.read(4)
    packets = _blocks(file) if start == _PCAPNG else _records(file, *_PCAP[start])
    for time, link, data, at in packets:
        found = _segment(time, link, data, at)
        if found:
            yield found


def _read(file: BinaryIO, size: int, at: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise Damage(at + len(data), f"the file ends inside {what}: {len(data)} bytes of {size}")
    return data


Packet = tuple[float, int, bytes, int]


def _records(file: BinaryIO, order: str, unit: float) -> Iterator[Packet]:
    head = _read(file, 20, 4, "the header of the file")
    link = struct.unpack_from(order + "I", head, 16)[0] & 0xFFFF
    _check_link(link, 20)
    at = 24
    while head := file.read(16):
        if len(head) < 16:
            raise Damage(at + len(head), f"the file ends inside the head of a packet: {len(head)} bytes of 16")
        seconds, parts, size, _ = struct.unpack(order + "IIII", head)
        if size > PACKET_MOST:
            raise Damage(at + 8, f"a packet of {size} bytes; it has {PACKET_MOST} at most")
        yield seconds + parts * unit, link, _read(file, size, at + 16, "a packet"), at + 16
        at += 16 + size


def _blocks(file: BinaryIO) -> Iterator[Packet]:
    """A section says the order of its bytes; interfaces are counted anew in each."""
    at, order = 0, "<"
    interfaces: list[tuple[int, float]] = []
    head = _PCAPNG + _read(file, 4, 4, "the head of a block")
    while head:
        if len(head) < 8:
            raise Damage(at + len(head), f"the file ends inside the head of a block: {len(head)} bytes of 8")
        magic = b""
        if head[:4] == _PCAPNG:
            magic = _read(file, 4, at + 8, "the head of a section")
            orders = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
            if magic not in orders:
                raise Damage(at + 8, "a section has no byte order that can be")
            order, interfaces = orders[magic], []
        kind, size = struct.unpack(order + "II", head)
        if size < 12 + len(magic) or size > _BLOCK_MOST or size % 4:
            raise Damage(at + 4, f"a block of {size} bytes; it has 12 to {_BLOCK_MOST}, a multiple of 4")
        body = magic + _read(file, size - 8 - len(magic), at + 8 + len(magic), "a block")
        if body[-4:] != head[4:]:
            raise Damage(at + size - 4, "a block does not end with its size")
        if kind == 1:
            interfaces.append(_interface(body[:-4], order, at + 8))
        elif kind == 6:
            yield _enhanced(body[:-4], order, interfaces, at + 8)
        elif kind == 3 and interfaces:
            yield 0.0, interfaces[0][0], body[4:-4], at + 12
        at += size
        head = file.read(8)


def _interface(body: bytes, order: str, at: int) -> tuple[int, float]:
    """Kind of link, and seconds of one tick."""
    if len(body) < 8:
        raise Damage(at, "an interface without its fields")
    link = struct.unpack_from(order + "H", body)[0]
    _check_link(link, at)
    options, unit = 8, 1e-6
    while len(body) - options >= 4:
        code, size = struct.unpack_from(order + "HH", body, options)
        value = body[options + 4 : options + 4 + size]
        if code == 9 and len(value) == 1:  # if_tsresol
            unit = 2.0 ** -(value[0] & 0x7F) if value[0] & 0x80 else 10.0 ** -value[0]
        if code == 0:
            break
        options += 4 + (size + 3) // 4 * 4
    return link, unit


def _enhanced(body: bytes, order: str, interfaces: list[tuple[int, float]], at: int) -> Packet:
    if len(body) < 20:
        raise Damage(at, "a packet without its fields")
    interface, high, low, size, _ = struct.unpack_from(order + "IIIII", body)
    if interface >= len(interfaces):
        raise Damage(at, f"a packet of interface {interface}, of which nothing was said")
    if size > len(body) - 20:
        raise Damage(at + 12, f"a packet of {size} bytes in a block with room for {len(body) - 20}")
    link, unit = interfaces[interface]
    return (high << 32 | low) * unit, link, body[20 : 20 + size], at + 20


def _check_link(link: int, at: int) -> None:
    if link not in _LINKS and link not in _RAW_LINKS:
        raise Damage(at, f"packets of the kind of link {link}, which is not known here; Ethernet, loopback and any are")


# ---- one packet ----


def _segment(time: float, link: int, data: bytes, at: int) -> Segment | None:
    """None for what is no whole segment of TCP over IP."""
    where = _network(link, data)
    if where is None or where >= len(data):
        return None
    found = _ipv4(data, where) if data[where] >> 4 == 4 else _ipv6(data, where) if data[where] >> 4 == 6 else None
    if found is None:
        return None
    source, target, begin, end = found
    if len(data) - begin < 20:
        return None
    source_port, target_port, sequence, _, offset, flags = struct.unpack_from(">HHIIBB", data, begin)
    payload = begin + (offset >> 4) * 4
    if offset >> 4 < 5 or payload > end:
        return None
    bytes_here = data[payload : min(end, len(data))]
    return Segment(
        time,
        (source, source_port),
        (target, target_port),
        sequence,
        bool(flags & 2),
        bool(flags & 16),
        bytes_here,
        at + payload,
        end - payload - len(bytes_here),
    )


def _network(link: int, data: bytes) -> int | None:
    """Where the IP header begins."""
    if link in _RAW_LINKS:
        return 0
    size, kind_at = _LINKS[link]
    if kind_at is None:
        return size
    while len(data) >= kind_at + 2:
        kind = int.from_bytes(data[kind_at : kind_at + 2], "big")
        if kind in _IPS:
            return size
        if kind not in _TAGS:
            return None
        kind_at, size = kind_at + 4, size + 4
    return None


Addresses = tuple[bytes, bytes, int, int]


def _ipv4(data: bytes, at: int) -> Addresses | None:
    if len(data) - at < 20:
        return None
    header, total, fragment = (data[at] & 15) * 4, *struct.unpack_from(">H2xH", data, at + 2)
    if header < 20 or total < header or fragment & 0x3FFF or data[at + 9] != _TCP:
        return None
    return data[at + 12 : at + 16], data[at + 16 : at + 20], at + header, at + total


def _ipv6(data: bytes, at: int) -> Addresses | None:
    if len(data) - at < 40:
        return None
    size, following = struct.unpack_from(">HB", data, at + 4)
    begin, end = at + 40, at + 40 + size
    while following in _EXTENSIONS and begin + 8 <= min(end, len(data)):
        following, begin = data[begin], begin + 8 + data[begin + 1] * 8
    if following != _TCP or begin > end:
        return None
    return data[at + 8 : at + 24], data[at + 24 : at + 40], begin, end
