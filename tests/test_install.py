"""tensor-fusion install: into a folder of one's own, into one that others use, and out again."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from stack.harness import Worker, clean_environment, succeed

from tensor_fusion.client import install as files
from tensor_fusion.client.files import LIBRARIES
from tensor_fusion.config import CONNECTION_INFO, UserError

NAMES = {f"{name}.so{version}" for name in LIBRARIES for version in ("", ".1")}
USE = (
    "import ctypes; cuda, n = ctypes.CDLL('libcuda.so.1'), ctypes.c_int(); ctypes.CDLL('libnvidia-ml.so'); "
    "print(cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(n)), n.value)"
)


def install(*words: str | Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "tensor_fusion", "install", *map(str, words)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_installed_files_work_and_go_again(tmp_path: Path) -> None:
    code, output, errors = install("--prefix", tmp_path)
    folder = tmp_path / "lib"
    assert (code, errors) == (0, "")
    assert output.splitlines()[0] == f"installed the client files in {folder}"
    assert output.splitlines()[-1] == f"export LD_LIBRARY_PATH={folder}"
    assert names(folder) == NAMES
    with Worker() as worker:
        env = clean_environment(LD_LIBRARY_PATH=str(folder), **{CONNECTION_INFO: worker.connection})
        assert succeed([sys.executable, "-c", USE], env) == "0 0 1\n"
    (folder / "libother.so").touch()
    before = (folder / "libcuda.so.1").stat().st_ino
    assert install("--prefix", tmp_path)[0] == 0  # again: an upgrade, by new files
    assert (folder / "libcuda.so.1").stat().st_ino != before
    code, output, errors = install("--prefix", tmp_path, "--remove")
    assert (code, errors) == (0, "")
    assert len(output.splitlines()) == len(NAMES)
    assert names(folder) == {"libother.so"}


@pytest.mark.parametrize("name", ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libteleport.so"])
@pytest.mark.parametrize("how", ["file", "link", "dangling"])
def test_what_is_not_ours_stays(tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    theirs = folder / name
    if how == "file":
        theirs.write_bytes(b"\x7fELF NVIDIA's own")
    else:
        (tmp_path / "libcuda.so.580").write_bytes(b"NVIDIA's own")
        theirs.symlink_to(tmp_path / "libcuda.so.580" if how == "link" else tmp_path / "libcuda.so.999")
    with pytest.raises(UserError, match=f"^{theirs} is there and is not ours"):
        files.install(tmp_path)
    assert names(folder) == {name}
    with pytest.raises(UserError, match=f"^There are no client files of ours below {tmp_path}"):
        files.remove(tmp_path)
    assert names(folder) == {name}


def test_refusal_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libcuda.so").write_bytes(b"NVIDIA's own")
    code, output, errors = install("--prefix", tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith(f"tensor-fusion: {tmp_path}/lib/libcuda.so is there and is not ours")


def test_folder_that_the_loader_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's folder below the prefix is taken when the loader knows it, and its cache is made anew."""
    asked: list[tuple[str, ...]] = []
    known = tmp_path / "lib/x86_64-linux-gnu"

    def ldconfig(*words: str) -> str:
        asked.append(words)
        return f"{known}: (from /etc/ld.so.conf.d/x.conf:1)\n\tlibx.so.1 -> libx.so.1\n{tmp_path}/other:\n"

    monkeypatch.setattr(files, "_ldconfig", ldconfig)
    done = files.install(tmp_path)
    assert done.found_by_loader and done.folder == known
    assert names(known) == NAMES
    assert asked == [("-N", "-X", "-v"), ()]
    assert len(files.remove(tmp_path)) == len(NAMES)


def test_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    done = files.install(tmp_path)
    assert names(done.folder) == NAMES
    assert not [path for path in done.files if path.is_symlink()]
    assert (done.folder / "libcuda.so").read_bytes() == (done.folder / "libcuda.so.1").read_bytes()


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, errors = install("--prefix", tmp_path / "file")
    assert code == 2
    assert "cannot be written (Not a directory); run it as a user who may" in errors


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    """The file that Python names then is the one that was read."""
    limited = ["sh", "-c", 'ulimit -f 64; exec "$@"', "sh", sys.executable, "-B", "-m", "tensor_fusion"]
    done = subprocess.run(
        [*limited, "install", "--prefix", str(tmp_path)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"tensor-fusion: The client files do not fit into {tmp_path}/lib (File too large); raise ulimit -f.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_gets_back_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what came before it was full. Folders and files that were there stay."""
    place = files._place

    def fill(source: Path, target: Path) -> None:
        if "teleport" in target.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        place(source, target)

    monkeypatch.setattr(files, "_place", fill)
    for prefix, left in ((tmp_path / "a/b", []), (tmp_path / "old", [tmp_path / "old"])):
        for path in left:
            path.mkdir()
        with pytest.raises(UserError) as caught:
            files.install(prefix)
        assert caught.value.sentence == (
            f"The client files do not fit into {prefix}/lib (No space left on device); make room there."
        )
        assert list(tmp_path.iterdir()) == left
        assert not left or list(prefix.iterdir()) == []
    (tmp_path / "old/lib").mkdir()
    (tmp_path / "old/lib/other").touch()
    with pytest.raises(UserError):
        files.install(tmp_path / "old")
    assert names(tmp_path / "old/lib") == {"other"}


def test_the_place_is_named_and_not_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", f"{target}.123")

    monkeypatch.setattr(files, "_place", refuse)
    with pytest.raises(UserError) as caught:
        files.install(tmp_path)
    assert caught.value.sentence.startswith(f"{tmp_path}/lib cannot be written (Permission denied); ")


def test_an_empty_prefix_is_refused(tmp_path: Path) -> None:
    """As of --prefix "$PREFIX" where nobody set it: the folder that the shell happens to be in is not meant."""
    code, output, errors = install("--prefix", "")
    assert (code, output) == (2, "")
    assert errors.startswith("tensor-fusion: --prefix names no folder; "), errors
