"""The guest's disk, made from packages that this file makes: no virtual machine runs."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from vm import root
from vm.root import MODULES, Cpio
from worker_harness import environment

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


# What is told while it is made


def test_of_alternatives_the_last_is_taken() -> None:
    said = "a\n  PreDepends: b\n |Depends: c\n  Depends: d\n  Depends: <virtual>\n    e\n<virtual>\nb\n"
    said += "  Depends: dpkg\nd\n"
    tree = root.depends(said)
    assert tree == {"a": ["b", "d"], "b": ["dpkg"], "d": []}
    assert root.closure(["a"], tree) == ["a", "b", "d"]


APT = """#!/bin/sh
[ "$FAILS" ] && { echo "E: nowhere" >&2; exit 100; }
head -c 3000000 /dev/zero > one.deb; sleep 0.4
head -c 3000000 /dev/zero >> one.deb
"""


def test_a_download_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt-get").write_text(APT)
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(root, "SAID_EVERY", 0.1)
    told: list[tuple[str, float | None]] = []
    packages = [root.Package("one", "one.deb", 6_000_000)]
    root.download(packages, tmp_path, lambda what, left: told.append((what, left)))
    assert any(what == "the guest's packages: 2 of 5 MB of 1 are here" and left for what, left in told), told
    assert all(left is None or 0 < left < 60 for _, left in told), told
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(
        AssertionError, match=r"apt-get download one … failed, is `apt-get update` missing\? E: nowhere"
    ):
        root.download(packages, tmp_path, root.unsaid)


def test_what_takes_long_is_said_between_pytest_s_lines(tmp_path: Path) -> None:
    """By a process that runs tests for another one, whose output is caught."""
    (tmp_path / "test_it.py").write_text(
        "pytest_plugins = ['vm.fixtures']\n"
        "def test_it(announced):\n"
        "    for left in (90, 60, 30):\n"
        "        announced('a disk: a part', left)\n"
        "    announced('another thing', None)\n"
    )
    words = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", str(tmp_path / "test_it.py")]
    env = environment(PYTHONPATH=f"{Path(__file__).parent}:{environment()['PYTHONPATH']}")
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("tests: ")]
    assert said == ["tests: a disk: a part, about 1 min 30 s left", "tests: another thing"]
