"""The guest's disk, made from packages that this file makes: no virtual machine runs."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
from vm import root
from vm.root import MODULES, Cpio

MODULE = b"\x7fELF a module, more or less " * 100


def package(folder: Path, ending: str, packed: bytes, built_in: tuple[str, ...] = ()) -> Path:
    """A kernel package with its modules packed in one way, like Debian's."""
    tree = folder / "tree"
    modules = tree / "usr/lib/modules/6.12-cloud/kernel/drivers"
    modules.mkdir(parents=True)
    for name in MODULES:
        if name not in built_in:
            (modules / f"{name}.ko{ending}").write_bytes(packed)
    lines = "".join(f"kernel/drivers/virtio/{name}.ko\n" for name in ("other", *built_in))
    (modules.parent.parent / "modules.builtin").write_text(lines)
    (modules / f"{MODULES[0]}.ko.sig").write_bytes(b"no module")
    (tree / "boot").mkdir()
    (tree / "boot/vmlinuz-6.12-cloud").write_bytes(b"a kernel")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: k\nVersion: 1\nArchitecture: all\nMaintainer: m <m@m>\nDescription: d\n"
    )
    deb = folder / "linux-image-k.deb"
    subprocess.run(["dpkg-deb", "-b", "-Zgzip", str(tree), str(deb)], check=True, capture_output=True, timeout=60)
    return deb


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb: the guest is made on Debian only")
@pytest.mark.parametrize("ending", ["", ".xz", ".zst"])
def test_modules_are_unpacked(tmp_path: Path, ending: str) -> None:
    if ending == ".zst":
        zstandard = pytest.importorskip("zstandard")
        packed = zstandard.ZstdCompressor().compress(MODULE)
    else:
        packed = lzma.compress(MODULE, check=lzma.CHECK_CRC32) if ending else MODULE
    out = io.BytesIO()
    disk = Cpio(out)
    assert root.take_kernel(package(tmp_path, ending, packed), disk) == b"a kernel"
    assert {f"modules/{number}-{name}.ko" for number, name in enumerate(MODULES)} <= disk.names
    assert out.getvalue().count(MODULE) == len(MODULES)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb: the guest is made on Debian only")
def test_modules_packed_in_an_unknown_way_are_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"linux-image-k.deb has no \['failover'"):
        root.take_kernel(package(tmp_path, ".lz4", b"?"), Cpio(io.BytesIO()))


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb: the guest is made on Debian only")
def test_what_the_kernel_has_in_itself_is_no_module(tmp_path: Path) -> None:
    """As virtio in the kernel of Debian 13."""
    disk = Cpio(io.BytesIO())
    assert root.take_kernel(package(tmp_path, "", MODULE, MODULES[2:6]), disk) == b"a kernel"
    assert sum(name.startswith("modules/") for name in disk.names) == len(MODULES) - 4
