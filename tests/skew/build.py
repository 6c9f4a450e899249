"""A build of another release: of a description with other numbers, one operation less, and one of another layout."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from stack.harness import ROOT, clean_environment

from tensor_fusion.abi import native_folder

TARGETS = ("teleport", "cuda", "nvidia_ml", "session")
GONE = "cuStreamGetAttribute"
OTHER = "host_function"
KEPT = "layouts"  # whose number is part of the frame version


def describe(folder: Path) -> Path:
    """The description of the other release, with the headers that it refers to beside it."""
    api = folder / "api"
    shutil.copytree(ROOT / "api", api, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "native").symlink_to(ROOT / "native")
    _replace(api / "cuda/stream.py", f'    call("{GONE}"),\n', "")
    gone = (
        f'from tensor_fusion.apigen.describe import unsupported\n\nFUNCTIONS = [unsupported("it is gone", "{GONE}")]\n'
    )
    (api / "cuda/gone.py").write_text(gone)
    operations = api / "cuda/operations.py"
    [line] = [line for line in operations.read_text().splitlines() if f'op("{OTHER}", ' in line]
    _replace(operations, line, line.replace('told="unsigned int"', 'told="uint64_t"'))
    rows = [line.split() for line in (api / "opcodes.lock").read_text().splitlines()]
    names = [name for _, name in rows if name != KEPT]
    places = [number for number, name in rows if name != KEPT]
    moved = [*zip(places, [*names[1:], names[0]], strict=True), *(tuple(row) for row in rows if row[1] == KEPT)]
    text = "".join(f"{number} {name}\n" for number, name in sorted(moved, key=lambda row: int(row[0])))
    (api / "opcodes.lock").write_text(text)
    return api


def _replace(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, after))


def build(folder: Path) -> Path:
    """A native folder of the other release. What does not differ, as the simulated GPU, is this one's."""
    api = describe(folder)
    launcher = ["-DCMAKE_C_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    place = folder / "build"
    options = [f"-DTP_API={api}", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O1"]
    _run("cmake", "-S", str(ROOT), "-B", str(place), *ninja, *launcher, *options)
    _run("cmake", "--build", str(place), "-j", str(min(os.cpu_count() or 1, 2)), "--target", *TARGETS)
    native = folder / "other"
    shutil.copytree(native_folder(), native, symlinks=True)
    for target in ("libteleport", "libcuda", "libnvidia-ml"):
        shutil.copy(place / f"{target}.so", native / f"client/{target}.so.1")
    shutil.copy(place / "tensor-fusion-session", native / "bin/tensor-fusion-session")
    return native


def _run(*command: str) -> None:
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
