"""The build without a compiler: which one it takes, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packaging"))

import build_backend


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
