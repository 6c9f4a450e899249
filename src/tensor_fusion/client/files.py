"""The client files and the environment that makes a program use them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from tensor_fusion.abi import native_file, native_folder
from tensor_fusion.config import CONNECTION_INFO, UserError

LIBRARIES = ("libcuda", "libnvidia-ml", "libteleport")
PRELOADED = ("libcuda", "libnvidia-ml")


def client_folder() -> Path:
    """The folder for LD_LIBRARY_PATH: each library under its SONAME, and a link without the version beside it.

    A wheel cannot hold links, and a copy instead of a link could be loaded twice into one process. So the links are
    made when the folder is first asked for; where it may not be written (installed by root, used by somebody else),
    a folder of links in the user's cache takes its place.
    """
    files = [native_file(f"client/{name}.so.1") for name in LIBRARIES]
    folder = files[0].parent
    if all((folder / f"{name}.so").exists() for name in LIBRARIES):
        return folder
    try:
        for name in LIBRARIES:
            _link(folder / f"{name}.so", Path(f"{name}.so.1"))
    except OSError:
        return _cached_links(files) or folder
    return folder


def _cached_links(files: list[Path]) -> Path | None:
    """Links in the user's cache; None when there is no place for them, and then only the SONAMEs can be loaded."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    identity = hashlib.sha256(str(native_folder()).encode()).hexdigest()[:12]
    folder = Path(base) / "tensor-fusion" / identity
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in files:
            _link(folder / file.name, file)
            _link(folder / file.name.removesuffix(".1"), Path(file.name))
    except OSError:
        return None
    return folder


def _link(link: Path, target: Path) -> None:
    """Make `link` point to `target` in one step, so that several processes may do it at once."""
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def client_environment(connection: str | None, environ: Mapping[str, str], preload: bool = False) -> dict[str, str]:
    """The variables to set, with their new values, for a program that is to use the worker at `connection`."""
    folder = client_folder()
    if ":" in str(folder) or (preload and " " in str(folder)):
        name = "LD_PRELOAD" if preload else "LD_LIBRARY_PATH"
        raise UserError(
            f"{name} cannot hold {folder!s}, as the loader would break it in two; install the package elsewhere."
        )
    paths = [entry for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry and Path(entry) != folder]
    changed = {
        "LD_LIBRARY_PATH": ":".join([str(folder), *paths]),
        # Triton looks for libcuda in the loader's cache, not on LD_LIBRARY_PATH, unless it is told.
        "TRITON_LIBCUDA_PATH": str(folder),
    }
    if connection is not None:
        changed[CONNECTION_INFO] = connection
    if preload:
        ours = [str(folder / f"{name}.so.1") for name in PRELOADED]
        others = [entry for entry in environ.get("LD_PRELOAD", "").replace(" ", ":").split(":") if entry]
        changed["LD_PRELOAD"] = ":".join([*ours, *(entry for entry in others if entry not in ours)])
    return changed
