"""The worker as one file: its starter (native/onefile) unpacks a folder into the user's cache and becomes the worker.

The folder here is a small one, whose worker says who it is; tools/release.py tries the real one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import release
from worker_harness import eventually

from tensor_fusion.abi import native_file

ROOT = os.geteuid() == 0
WORKER = """\
#!/bin/sh
echo "pid $$ arguments $*"
cat "${0%/*}/inside/data"
case "$*" in *wait*) read -r line ;; esac
"""


def make(folder: Path, data: str = "data", size: int = 100_000) -> Path:
    """The one file, made of a worker, a file in a folder, and an empty one."""
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    (source / "inside").mkdir(parents=True)
    (source / "tensor-fusion-worker").write_text(WORKER)
    (source / "tensor-fusion-worker").chmod(0o755)
    (source / "inside/data").write_text(f"{data}\n")
    (source / "inside/empty").touch()
    (source / "large").write_bytes(os.urandom(size))
    target = folder / "tensor-fusion-worker"
    target.unlink(missing_ok=True)
    release.pack(native_file("bin/tensor-fusion-onefile").read_bytes(), source, target)
    return target


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that only its user can change, down from the root; pytest's own lies in such a place."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return make(tmp_path)


def start(program: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [program, *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(program: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    process = start(program, *arguments, **variables)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output.replace(str(process.pid), "PID"), errors


WORKS = (0, "pid PID arguments -p 1\ndata\n", "")


def cache(home: Path) -> Path:
    return home / ".cache/tensor-fusion/worker"


def unpacked(home: Path) -> list[Path]:
    return sorted(path for path in cache(home).iterdir() if path.name != "lock")


def test_it_becomes_the_worker(program: Path, home: Path) -> None:
    """The process that was started, so that systemd's signals reach the worker and its end is seen."""
    assert run(program, "-p", "1", HOME=str(home)) == WORKS
    (folder,) = unpacked(home)
    assert re.fullmatch("[0-9a-f]{32}", folder.name)
    modes = {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert modes == {
        ".in-use": 0o600,
        "inside": 0o700,
        "inside/data": 0o600,
        "inside/empty": 0o600,
        "large": 0o600,
        "tensor-fusion-worker": 0o700,
    }


def test_the_second_start_writes_nothing(program: Path, home: Path) -> None:
    run(program, "-p", "1", HOME=str(home))
    before = {path: path.stat() for path in home.rglob("*")}
    assert run(program, "-p", "1", HOME=str(home)) == WORKS
    after = {path: path.stat() for path in home.rglob("*")}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }


def test_what_it_is_killed_by_reaches_the_worker(program: Path, home: Path) -> None:
    process = start(program, "wait", HOME=str(home))
    assert process.stdout and process.stdout.readline() == f"pid {process.pid} arguments wait\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_many_starts_at_once_unpack_once(tmp_path: Path, home: Path) -> None:
    program = make(tmp_path, size=4_000_000)
    processes = [start(program, "-p", "1", HOME=str(home)) for _ in range(8)]
    ended = [(process.communicate(timeout=120), process) for process in processes]
    assert [(text.replace(str(p.pid), "PID"), p.returncode) for (text, _), p in ended] == [(WORKS[1], 0)] * 8
    assert len(unpacked(home)) == 1


def damage_bytes(folder: Path) -> None:
    (folder / "inside/data").write_text("dat4\n")


def damage_length(folder: Path) -> None:
    with (folder / "large").open("ab") as file:
        file.write(b"x")


def damage_missing(folder: Path) -> None:
    (folder / "inside/empty").unlink()


def damage_mode(folder: Path) -> None:
    (folder / "tensor-fusion-worker").chmod(0o600)


def damage_link(folder: Path) -> None:
    """The same bytes, in a file that somebody else may own."""
    (folder / "large").rename(folder / "other")
    (folder / "large").symlink_to("other")


def damage_open(folder: Path) -> None:
    folder.chmod(0o777)


@pytest.mark.parametrize("damage", [damage_bytes, damage_length, damage_missing, damage_mode, damage_link, damage_open])
def test_what_was_changed_is_not_run(damage: object, program: Path, home: Path) -> None:
    run(program, HOME=str(home))
    (folder,) = unpacked(home)
    damage(folder)  # type: ignore[operator]
    code, output, errors = run(program, "-p", "1", HOME=str(home))
    assert (code, output) == WORKS[:2]
    assert errors == f"tensor-fusion-worker: {folder} was damaged, and was unpacked anew.\n"
    assert unpacked(home) == [folder]
    assert run(program, "-p", "1", HOME=str(home)) == WORKS


def test_another_version_goes_when_nobody_runs_it(tmp_path: Path, home: Path) -> None:
    old = start(make(tmp_path, "old"), "wait", HOME=str(home))
    assert old.stdout and old.stdout.readline()
    (first,) = unpacked(home)
    program = make(tmp_path, "data")
    (cache(home) / "of the user").mkdir()  # not ours
    assert run(program, "-p", "1", HOME=str(home)) == WORKS
    assert first in unpacked(home) and len(unpacked(home)) == 3
    old.communicate("\n", timeout=60)
    assert run(program, "-p", "1", HOME=str(home)) == WORKS
    assert first not in unpacked(home) and len(unpacked(home)) == 2


def test_a_start_that_was_killed_leaves_nothing_for_long(program: Path, home: Path) -> None:
    (cache(home) / "new/inside").mkdir(parents=True, mode=0o700)
    for folder in (home / ".cache", home / ".cache/tensor-fusion", cache(home)):
        folder.chmod(0o700)
    (cache(home) / "new/inside/half").write_text("x")
    assert run(program, "-p", "1", HOME=str(home)) == WORKS
    assert len(unpacked(home)) == 1


# Places


def test_the_environment_names_the_cache(program: Path, home: Path) -> None:
    assert run(program, "-p", "1", HOME=str(home), XDG_CACHE_HOME=str(home / "own")) == WORKS
    assert (home / "own/tensor-fusion/worker").is_dir() and not (home / ".cache").exists()


def test_the_cache_of_a_service_is_a_link(program: Path, home: Path) -> None:
    """As systemd makes it for a user that exists while it runs."""
    (home / "private/tensor-fusion").mkdir(parents=True, mode=0o700)
    (home / "private").chmod(0o700)
    (home / "tensor-fusion").symlink_to("private/tensor-fusion")
    assert run(program, "-p", "1", XDG_CACHE_HOME=str(home)) == WORKS
    assert (home / "private/tensor-fusion/worker").is_dir()


def test_without_a_home_it_takes_a_folder_of_its_own(program: Path, home: Path) -> None:
    assert run(program, "-p", "1", TMPDIR=str(home)) == WORKS
    (folder,) = home.iterdir()
    assert folder.name == f"tensor-fusion-{os.geteuid()}" and stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_is_not_there_is_said(program: Path, home: Path) -> None:
    code, output, errors = run(program, "-p", "1", HOME="/nonexistent", TMPDIR=str(home))
    assert (code, output) == WORKS[:2]
    assert errors == (
        "tensor-fusion-worker: /nonexistent/.cache/tensor-fusion/worker cannot be opened: No such file or directory.\n"
        f"tensor-fusion-worker: so it is unpacked into {home}/tensor-fusion-{os.geteuid()}/worker.\n"
    )


def refused(program: Path, **variables: str) -> str:
    code, output, errors = run(program, **variables)
    assert (code, output) == (1, "")
    assert errors.splitlines()[-1] == (
        "tensor-fusion-worker: it found no place to unpack itself; name a folder of your own by XDG_CACHE_HOME."
    )
    return errors


def test_a_folder_that_others_can_write_is_refused(program: Path, home: Path) -> None:
    home.chmod(0o777)
    errors = refused(program, HOME=str(home), TMPDIR=str(home))
    assert f"{home} can be written by other users, so {cache(home)} is not used; chmod go-w {home}.\n" in errors
    home.chmod(0o1777)  # as /tmp
    assert run(program, "-p", "1", TMPDIR=str(home)) == WORKS


def test_a_link_in_the_temporary_folder_is_refused(program: Path, home: Path) -> None:
    (home / "elsewhere").mkdir(mode=0o700)
    (home / f"tensor-fusion-{os.geteuid()}").symlink_to("elsewhere")
    assert "cannot be opened: Not a directory" in refused(program, TMPDIR=str(home))
    assert not list((home / "elsewhere").iterdir())


@pytest.mark.skipif(not ROOT, reason="only root can make a file another user's")
@pytest.mark.parametrize("whose", ["", ".cache", ".cache/tensor-fusion", ".cache/tensor-fusion/worker"])
def test_another_user_s_folder_is_refused(whose: str, program: Path, home: Path) -> None:
    run(program, HOME=str(home))
    os.chown(home / whose, 12345, 12345)
    errors = refused(program, HOME=str(home), TMPDIR="/nonexistent")
    assert f"{home / whose} belongs to another user (12345), so {cache(home)} is not used.\n" in errors


@pytest.mark.skipif(not ROOT, reason="only root can make a file another user's")
def test_another_user_s_files_are_unpacked_anew(program: Path, home: Path) -> None:
    run(program, HOME=str(home))
    (folder,) = unpacked(home)
    os.chown(folder / "inside/data", 12345, 12345)
    assert "was damaged" in run(program, HOME=str(home))[2]
    assert (folder / "inside/data").stat().st_uid == 0


def mounted(options: str, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell, with another file system on the folder."""
    script = f'mount -t tmpfs -o {options} tmpfs "$1" || exit 77; {command}'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine mounts nothing for a test")
    return done


def test_where_programs_may_not_run_it_goes_elsewhere(program: Path, home: Path) -> None:
    other = home / "other"
    other.mkdir(mode=0o700)
    mount = home / "mount"
    mount.mkdir(mode=0o700)
    done = mounted("noexec,mode=700", mount, f'HOME="$1" TMPDIR={other} exec {program} -p 1')
    assert done.returncode == 0 and "arguments -p 1\n" in done.stdout, done.stderr
    assert "lies where programs may not be run (mounted with noexec)." in done.stderr


def test_a_full_disk_is_a_sentence(tmp_path: Path, home: Path) -> None:
    program = make(tmp_path, size=2_000_000)
    done = mounted("size=1m,mode=700", home, f'HOME="$1" TMPDIR="$1" {program}; echo $? $(find "$1" -type f)')
    assert f"cannot be unpacked into {cache(home)}: No space left on device (2 MB are needed).\n" in done.stderr
    assert done.stdout.startswith("1 ") and "large" not in done.stdout


# A file that is not whole


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_a_copy_that_was_cut_short_says_so(keep: float, program: Path, home: Path) -> None:
    size = program.stat().st_size
    starter = native_file("bin/tensor-fusion-onefile").stat().st_size
    os.truncate(program, max(starter, int(size * keep)))
    code, output, errors = run(program, HOME=str(home))
    assert (code, output) == (1, "")
    assert errors == (
        "tensor-fusion-worker: this file is not whole; copy it again, and compare it with SHA256SUMS of its release.\n"
    )
    assert not list(home.iterdir())


@pytest.mark.parametrize("path", [b"../escape", b"/escape", b"inside/../x", b"a//b"])
def test_a_path_that_leads_out_is_refused(path: bytes, program: Path, home: Path) -> None:
    text = program.read_bytes()
    here = next(name for name in (b"inside/data", b"large") if name in text)
    start_of_name = text.index(here, native_file("bin/tensor-fusion-onefile").stat().st_size)
    changed = text[:start_of_name] + path.ljust(len(here), b"x")[: len(here)] + text[start_of_name + len(here) :]
    program.write_bytes(changed)
    code, _, errors = run(program, HOME=str(home))
    assert code == 1 and "not whole" in errors
    assert not list(home.iterdir())


def test_who_holds_the_lock_for_long_is_waited_for_and_said(program: Path, home: Path) -> None:
    run(program, HOME=str(home))
    holder = subprocess.Popen(["flock", str(cache(home) / "lock"), "sh", "-c", "echo held; read line"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "held\n"
    process = start(program, "-p", "1", HOME=str(home))
    assert process.stderr and process.stderr.readline() == (
        f"tensor-fusion-worker: waiting for another start, which unpacks into {cache(home)}, for up to 60 s.\n"
    )
    holder.communicate("\n", timeout=60)
    output, _ = process.communicate(timeout=60)
    assert output.endswith("data\n") and eventually(lambda: process.returncode == 0)
