"""NVIDIA's compiler for the tests: of the packages that `.[test]` installs, or the machine's own where they are not.

The packages come first: so every machine compiles with the release that tests/kernels/*.ptx was made by.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


def put_on_path() -> None:
    """Puts the packages' nvcc and ptxas before those of the machine, for this process and its children."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "cu13" / "bin"
        if (folder / "nvcc").is_file():
            os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
            return


def nvcc() -> str:
    found = shutil.which("nvcc")
    assert found, "there is no nvcc; `pip install '.[test]'` brings one"
    return found


def libraries() -> Path:
    """The folder of the runtime library that belongs to nvcc: lib64 of a toolkit, lib of the packages."""
    root = Path(nvcc()).resolve().parent.parent
    return next(folder for name in ("lib64", "lib") if (folder := root / name).is_dir())


def linked(cudart: str) -> list[str]:
    """Options of nvcc that link with cudart, "static" or "shared"; the packages have no link libcudart.so."""
    folder = libraries()
    if cudart == "static":
        return ["-cudart", "static", f"-L{folder}"]
    shared = next(folder.glob("libcudart.so*"))
    return ["-cudart", "none", "-Xlinker", f"{shared},-rpath={folder}"]
