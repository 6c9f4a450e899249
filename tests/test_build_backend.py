"""The build without a compiler: which one it takes, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from test_binaries import glibc_versions

from tensor_fusion.abi import native_folder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packaging"))

import build_backend
import wheel_tag


def test_zig_is_told_where_to_keep_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes into the home folder, and what it wrote goes with the build; it aims at an old C library."""
    zig = tmp_path / "zig"
    zig.write_text('#!/bin/sh\necho "$ZIG_GLOBAL_CACHE_DIR $ZIG_LOCAL_CACHE_DIR" "$@"\n')
    zig.chmod(0o755)
    module = types.ModuleType("ziglang")
    module.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "ziglang", module)
    monkeypatch.setattr(build_backend, "has_compiler", lambda: False)
    before = dict(os.environ)
    with build_backend.compiler():
        said = subprocess.run([os.environ["CC"], "x.c"], capture_output=True, text=True, check=True).stdout.split()
        folder = Path(os.environ["CC"]).parent
        assert said[:2] == [f"{folder}/cache"] * 2
        assert said[2:] == ["cc", "-target", "x86_64-linux-gnu.2.17", "x.c"]
    assert not folder.exists()
    assert dict(os.environ) == before


def wheel_of(folder: Path, *files: Path) -> Path:
    wheel = folder / "tensor_fusion-1.0-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in files:
            archive.write(file, f"tensor_fusion/{file.name}")
        info = "tensor_fusion-1.0.dist-info"
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-linux_x86_64\n")
        archive.writestr(f"{info}/RECORD", f"{info}/WHEEL,sha256=x,1\n{info}/RECORD,,\n")
    return wheel


CLIENT = [f"client/{name}.so.1" for name in ("libcuda", "libnvidia-ml", "libteleport")]


def test_a_wheel_is_called_by_its_c_library(tmp_path: Path) -> None:
    """The client alone asks for 2.17, or less, which pip knows by two names."""
    wheel = wheel_tag.tagged(wheel_of(tmp_path, *(native_folder() / name for name in CLIENT)))
    assert wheel.name == "tensor_fusion-1.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    assert list(tmp_path.glob("*.whl")) == [wheel]
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("tensor_fusion-1.0.dist-info/WHEEL").decode().splitlines()
        record = archive.read("tensor_fusion-1.0.dist-info/RECORD").decode().splitlines()
        size = archive.getinfo("tensor_fusion-1.0.dist-info/WHEEL").file_size
        assert archive.testzip() is None
    assert lines[1:] == ["Tag: py3-none-manylinux_2_17_x86_64", "Tag: py3-none-manylinux2014_x86_64"]
    assert [line.rpartition(",")[2] for line in record] == ["", str(size)]


def test_a_wheel_with_newer_files_says_so(tmp_path: Path) -> None:
    session = native_folder() / "bin/tensor-fusion-session"
    newest = max(glibc_versions("bin/tensor-fusion-session"))
    if any(not wheel_tag.ALLOWED.fullmatch(name) for name in wheel_tag.Elf(session.read_bytes()).needed()):
        pytest.skip("built with sanitizers")
    tag = wheel_tag.platform_tag(wheel_of(tmp_path, session))
    assert tag and tag.split(".")[0] == f"manylinux_2_{max(newest[1], 17)}_x86_64"


def test_a_wheel_that_needs_more_than_libc_keeps_its_tag(tmp_path: Path) -> None:
    """Python's own _ssl, or whatever else here needs another library."""
    other = next(path for path in map(Path, ("/usr/bin/ls", "/bin/bash", sys.executable)) if needs_more(path))
    assert wheel_tag.tagged(wheel := wheel_of(tmp_path, other)) == wheel


def needs_more(path: Path) -> bool:
    names = wheel_tag.Elf(path.read_bytes()).needed() if path.is_file() else []
    return any(not wheel_tag.ALLOWED.fullmatch(name) for name in names)


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else CMake says so at the end of forty lines."""
    wanted = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
    assert f'requires-python = ">={".".join(map(str, build_backend.OLDEST_PYTHON))}"' in wanted
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"^Tensor Fusion needs Python 3\.10 or newer, and this is 3\.9\.18\.$"):
        build_backend.get_requires_for_build_wheel()
