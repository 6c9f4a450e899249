"""Put the client files where the dynamic loader finds them, and take them away again.

What is not ours is never touched: a machine may have NVIDIA's libcuda, and one file too many replaced breaks every CUDA
program on it. A file is ours when it holds the name of the table that our libraries share.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tensor_fusion.abi import native_file
from tensor_fusion.client.elf import soname
from tensor_fusion.client.files import LIBRARIES
from tensor_fusion.config import UserError

MARK = b"tp_client_table"
# Below a prefix, in the order in which distributions look: Debian's, Red Hat's, everybody's.
FOLDERS = ("lib/x86_64-linux-gnu", "lib64", "lib")
LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig")


@dataclass(frozen=True)
class Installed:
    folder: Path
    files: list[Path]
    found_by_loader: bool


def is_ours(path: Path) -> bool:
    """True for one of our libraries under any name, and for a link of ours whose file is gone."""
    if path.is_symlink() and not path.exists():
        return str(path.readlink()) in {f"{name}.so.1" for name in LIBRARIES}
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return soname(path) in {f"{name}.so.1" for name in LIBRARIES} and MARK in content


def _names(folder: Path) -> list[Path]:
    return [folder / f"{name}.so{version}" for name in LIBRARIES for version in (".1", "")]


def _ldconfig(*words: str) -> str | None:
    """Its output; None when this machine has none or it fails, as it does for users who may not write its cache."""
    for program in LDCONFIG:
        if Path(program).exists():
            done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
            return done.stdout if done.returncode == 0 else None
    return None


def loader_folders() -> set[Path]:
    """The folders that the loader searches without being told, as ldconfig names them: lines that end with a colon."""
    text = _ldconfig("-N", "-X", "-v") or ""
    named = [line.partition(":")[0] for line in text.splitlines() if line.startswith("/") and ":" in line]
    return {Path(name) for name in named}


def choose_folder(prefix: Path) -> tuple[Path, bool]:
    """Where the files go below `prefix`, and whether the loader searches there."""
    known = loader_folders()
    for part in FOLDERS:
        if prefix / part in known or (prefix / part).resolve() in known:
            return prefix / part, True
    return prefix / "lib", False


def install(prefix: Path) -> Installed:
    """Copy the files. Raises UserError, before anything is changed, when a file of another owner is in the way."""
    if prefix == Path():  # --prefix "$X" with an X that is not set
        raise UserError("--prefix names no folder; use for example --prefix /usr/local, or ~/.local.")
    prefix = prefix.expanduser().absolute()
    folder, known = choose_folder(prefix)
    others = [path for path in _names(folder) if (path.exists() or path.is_symlink()) and not is_ours(path)]
    if others:
        raise UserError(
            f"{others[0]} is there and is not ours (NVIDIA's driver has files of that name); nothing was changed. "
            "Choose another --prefix, and put its lib folder first in LD_LIBRARY_PATH."
        )
    new = [path for path in (*_names(folder), folder, *folder.parents) if not (path.exists() or path.is_symlink())]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in LIBRARIES:
            _place(native_file(f"client/{name}.so.1"), folder / f"{name}.so.1")
            _link(folder / f"{name}.so", folder / f"{name}.so.1")
    except OSError as error:
        place = folder if folder.is_dir() else error.filename or folder  # not the name of a file that was to be renamed
        _take_back(new)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "raise ulimit -f" if error.errno == errno.EFBIG else "make room there"
            raise UserError(f"The client files do not fit into {folder} ({error.strerror}); {remedy}.") from error
        raise UserError(
            f"{place} cannot be written ({error.strerror}); run it as a user who may, or choose "
            "another --prefix, for example ~/.local."
        ) from error
    return Installed(folder, _names(folder), known and _ldconfig() is not None)


def _take_back(paths: list[Path]) -> None:
    """Files and folders that were not there before, innermost first; what replaced an older file of ours stays."""
    for path in paths:
        with contextlib.suppress(OSError):  # it was not made after all, or somebody else has put something there
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def _place(source: Path, target: Path) -> None:
    """In one step: programs that run keep the file that they have open."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _link(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:  # a file system without links, like FAT; a second copy shares the state of the first
        _place(target, link)
        return
    temporary.replace(link)


def remove(prefix: Path) -> list[Path]:
    """Take our files away below `prefix`; those of others stay. Raises UserError when there are none of ours."""
    prefix = prefix.expanduser().absolute()
    found = [path for part in FOLDERS for path in _names(prefix / part) if is_ours(path)]
    if not found:
        raise UserError(f"There are no client files of ours below {prefix}; nothing was changed.")
    try:
        for path in found:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be removed ({error.strerror}); run it as a user who may.") from error
    _ldconfig()
    return found
