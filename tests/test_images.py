"""What the supervisor makes of images that sessions hand over, which may be anything."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tensor_fusion.worker import images
from tensor_fusion.worker.images import DAMAGED, KEEP, USED, Images
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import Packet, PacketType

pytestmark = pytest.mark.fast
IMAGE = bytes(range(256)) * 1024


@dataclass
class Session:
    id: int = 1
    name: str = "session 1"


def packet(news: int, image: bytes, size: int | None = None) -> Packet:
    body = hashlib.sha256(image).digest()
    return Packet(PacketType.IMAGE, news, value=len(image) if size is None else size, body=body.ljust(256, b"\0"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory(image: bytes) -> int:
    descriptor = os.memfd_create("image")
    os.write(descriptor, image)
    return descriptor


def name_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def handed(kept: Images, *said: tuple[Packet, int | None]) -> None:
    async def run() -> None:
        for one, descriptor in said:
            kept.said(Session(), one, descriptor)
        await kept.close()

    asyncio.run(run())


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *words: lines.append(text % words))
    assert isinstance(LOGGER, logging.Logger)
    return lines


def test_an_image_is_kept_under_its_hash(tmp_path: Path) -> None:
    handed(Images(tmp_path, 1 << 20), (packet(KEEP, IMAGE), memory(IMAGE)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name_of(IMAGE): IMAGE}
    assert (tmp_path / name_of(IMAGE)).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("claimed", "size", "make"),
    [
        (IMAGE, None, lambda: memory(IMAGE[:-1] + b"x")),
        (IMAGE, None, lambda: memory(IMAGE[:-1])),
        (IMAGE, len(IMAGE) + 1, lambda: memory(IMAGE)),
        (IMAGE[:1024], None, lambda: memory(IMAGE[:1024])),
        (IMAGE * 8, None, lambda: memory(IMAGE * 8)),
        (b"", 0, lambda: os.open("/dev/zero", os.O_RDONLY)),
        (b"", len(IMAGE), lambda: os.open("/dev/zero", os.O_RDONLY)),
        (b"", len(IMAGE), lambda: os.open("/", os.O_RDONLY)),
    ],
    ids=["other bytes", "cut", "longer", "too small", "larger than the cache", "device", "long device", "folder"],
)
def test_what_is_none_is_not_kept(
    tmp_path: Path, warned: list[str], claimed: bytes, size: int | None, make: Callable[[], int]
) -> None:
    before = descriptors()
    handed(Images(tmp_path, 1 << 20), (packet(KEEP, claimed, size), make()))
    assert list(tmp_path.iterdir()) == []
    assert len(warned) == 1 and warned[0].startswith("session 1 hands over an image")
    assert descriptors() == before


def test_bytes_that_are_cut_meanwhile(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor, read = memory(IMAGE), os.pread

    def cut(file: int, size: int, at: int) -> bytes:
        os.truncate(file, 0)
        return read(file, size, at)

    monkeypatch.setattr(os, "pread", cut)
    handed(Images(tmp_path, 1 << 20), (packet(KEEP, IMAGE), descriptor))
    assert list(tmp_path.iterdir()) == [] and len(warned) == 1


def test_what_is_there_stays(tmp_path: Path) -> None:
    """Whoever is not believed removes nothing: the bytes are looked at."""
    path = tmp_path / name_of(IMAGE)
    path.write_bytes(IMAGE)
    handed(Images(tmp_path, 1 << 20), (packet(DAMAGED, IMAGE), None), (packet(KEEP, IMAGE), memory(IMAGE)))
    assert path.read_bytes() == IMAGE


def test_what_is_damaged_is_removed_and_kept_anew(tmp_path: Path, warned: list[str]) -> None:
    path = tmp_path / name_of(IMAGE)
    path.write_bytes(IMAGE[1:])
    handed(Images(tmp_path, 1 << 20), (packet(DAMAGED, IMAGE), None), (packet(KEEP, IMAGE), memory(IMAGE)))
    assert path.read_bytes() == IMAGE
    assert warned == [f"the image {name_of(IMAGE)} of the cache is damaged and is removed"]


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    made = [bytes([number]) * len(IMAGE) for number in range(6)]
    kept = Images(tmp_path, 4 * len(IMAGE))
    handed(kept, *((packet(KEEP, image), memory(image)) for image in made[:4]))
    for age, image in enumerate(made[:4]):
        os.utime(tmp_path / name_of(image), (100 + age, 1))
    (tmp_path / "note").write_text("not ours")
    (tmp_path / "new-1-2").write_text("left over")
    os.utime(tmp_path / "new-1-2", (1, 1))
    handed(kept, (packet(USED, made[0]), None), *((packet(KEEP, image), memory(image)) for image in made[4:]))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"note", *(name_of(image) for image in (made[0], made[3], made[4], made[5]))}


def test_one_session_does_not_fill_the_queue(tmp_path: Path) -> None:
    before = descriptors()
    made = [bytes([number]) * len(IMAGE) for number in range(3 * images.WAITING_MOST)]
    handed(Images(tmp_path, 1 << 30), *((packet(KEEP, image), memory(image)) for image in made))
    assert len(list(tmp_path.iterdir())) == images.WAITING_MOST
    assert descriptors() == before


def test_other_news_are_nothing(tmp_path: Path) -> None:
    before = descriptors()
    handed(Images(tmp_path, 1 << 20), (packet(7, IMAGE), memory(IMAGE)), (packet(KEEP, IMAGE), None))
    assert list(tmp_path.iterdir()) == []
    assert descriptors() == before


def test_a_disk_that_is_full_is_said(tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, size: int, at: int) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pread", full)
    handed(Images(tmp_path, 1 << 20), (packet(KEEP, IMAGE), memory(IMAGE)), (packet(DAMAGED, IMAGE), None))
    assert list(tmp_path.iterdir()) == []
    assert warned == ["an image is not kept: [Errno 28] No space left on device"]
