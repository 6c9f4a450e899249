"""The SONAME of a shared library, read from the file."""

from __future__ import annotations

import struct
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SONAME = 5, 14


def soname(path: Path) -> str | None:
    """The SONAME, or None when the file is no 64-bit little-endian ELF library or has none."""
    try:
        return _soname(path.read_bytes())
    except (struct.error, ValueError, IndexError):
        return None


def _soname(image: bytes) -> str | None:
    if image[:6] != b"\x7fELF\x02\x01":
        return None
    (offset,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    segments = [struct.unpack_from("<IIQQQQ", image, offset + size * index) for index in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return None
    entries = dict(struct.iter_unpack("<QQ", image[dynamic[2] : dynamic[2] + dynamic[5] // 16 * 16]))
    if _DT_SONAME not in entries:
        return None
    address = entries[_DT_STRTAB] + entries[_DT_SONAME]
    for kind, _, start, virtual, _, length in segments:
        if kind == _PT_LOAD and virtual <= address < virtual + length:
            at = start + address - virtual
            return image[at : image.index(b"\0", at)].decode()
    return None
