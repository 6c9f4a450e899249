"""The wheel's platform tag: the oldest C library that everything in it works with, read from the symbol versions.

A wheel is called manylinux_2_17 when its files ask glibc for nothing newer, and need no library that a system may lack.
pip then refuses it on an older system by name, where a file would fail at its first use.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_VERNEED, _DT_VERNEEDNUM = 1, 5, 0x6FFFFFFE, 0x6FFFFFFF
# What every system with glibc has (the manylinux policies of PEP 600 list more).
BUILT = "-linux_x86_64.whl"
ALLOWED = re.compile(r"(ld-linux-x86-64|lib(c|m|dl|rt|pthread))\.so\.\d+")


class Elf:
    """Just what the tag depends on, of a 64-bit little-endian file."""

    def __init__(self, image: bytes) -> None:
        self._image = image
        (offset,) = struct.unpack_from("<Q", image, 32)
        size, count = struct.unpack_from("<HH", image, 54)
        segments = [struct.unpack_from("<IIQQQQ", image, offset + size * index) for index in range(count)]
        self._loaded = [segment for segment in segments if segment[0] == _PT_LOAD]
        dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
        area = image[dynamic[2] : dynamic[2] + dynamic[5] // 16 * 16] if dynamic else b""
        self._entries: list[tuple[int, int]] = list(struct.iter_unpack("<QQ", area))

    def needed(self) -> list[str]:
        return [self._text(value) for tag, value in self._entries if tag == _DT_NEEDED]

    def versions(self) -> Iterator[str]:
        """Names like GLIBC_2.17 that it asks of its libraries."""
        found = dict(self._entries)
        at = self._offset(found[_DT_VERNEED]) if _DT_VERNEED in found else 0
        for _ in range(found.get(_DT_VERNEEDNUM, 0)):
            _, count, _, first, following = struct.unpack_from("<HHIII", self._image, at)
            name_at = at + first
            for _ in range(count):
                _, _, _, name, next_name = struct.unpack_from("<IHHII", self._image, name_at)
                yield self._text(name)
                name_at += next_name
            at += following

    def _offset(self, address: int) -> int:
        for _, _, start, virtual, _, length in self._loaded:
            if virtual <= address < virtual + length:
                return int(start + address - virtual)
        raise ValueError(f"address {address:#x} is in no part of the file")

    def _text(self, at: int) -> str:
        start = self._offset(dict(self._entries)[_DT_STRTAB]) + at
        return self._image[start : self._image.index(b"\0", start)].decode()


def platform_tag(wheel: Path) -> str | None:
    """None: the tag that the build gave it says all that is known."""
    newest = (0, 0)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            image = archive.read(name)
            if image[:6] != b"\x7fELF\x02\x01":
                continue
            elf = Elf(image)
            if any(not ALLOWED.fullmatch(library) for library in elf.needed()):
                return None
            for version in elf.versions():
                number = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", version)
                if number:
                    newest = max(newest, (int(number[1]), int(number[2])))
    if newest == (0, 0):
        return None
    # 2.17 is the first that has a name by its year, which is all that a pip of before 2020 knows.
    newest = max(newest, (2, 17))
    tag = f"manylinux_{newest[0]}_{newest[1]}_x86_64"
    return f"{tag}.manylinux2014_x86_64" if newest == (2, 17) else tag


def tagged(wheel: Path) -> Path:
    """Give the wheel its tag, in its name and inside; its new path."""
    tag = platform_tag(wheel)
    if tag is None or not wheel.name.endswith(BUILT):
        return wheel
    result = wheel.with_name(f"{wheel.name.removesuffix(BUILT)}-{tag}.whl")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        (about,) = (name for name in old.namelist() if name.endswith(".dist-info/WHEEL"))
        lines = [line for line in old.read(about).decode().splitlines() if not line.startswith("Tag: ")]
        lines += [f"Tag: py3-none-{one}" for one in tag.split(".")]
        content = "".join(f"{line}\n" for line in lines if line).encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        for item in old.infolist():
            data = old.read(item)
            if item.filename == about:
                data = content
            elif item.filename.endswith(".dist-info/RECORD"):
                kept = [line for line in data.decode().splitlines() if not line.startswith(f"{about},")]
                data = "".join(f"{line}\n" for line in [*kept, f"{about},sha256={digest},{len(content)}"]).encode()
            new.writestr(item, data)
    wheel.unlink()
    return result
