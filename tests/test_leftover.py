"""Segments that outlive their worker, in real processes: they are said, and go with the last that has them open."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import struct
import time
from pathlib import Path

import psutil
import pytest
from segment_harness import MB, SegmentWorker
from worker_harness import alive, eventually

from tensor_fusion.worker.leftover import SWEPT_AFTER, sweep
from tensor_fusion.worker.protocol import SEGMENT_MAGIC


def killed(name: str, folder: Path) -> SegmentWorker:
    """A worker that had no time to do anything about its segment; its sessions have ended after it."""
    worker = SegmentWorker(name, folder)
    sessions = psutil.Process(worker.process.pid).children(recursive=True)
    worker.process.kill()
    worker.process.communicate()
    assert eventually(lambda: not [one for one in sessions if alive(one)])
    return worker


@pytest.mark.parametrize("end", ["in order", "killed"])
def test_segment_goes_with_the_last_that_has_it_open(end: str, segment_name: str, tmp_path: Path) -> None:
    held = Path("/dev/shm" + segment_name)
    worker = SegmentWorker(segment_name, tmp_path)
    with held.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    if end == "killed":
        worker.process.kill()
        worker.process.communicate()
    else:
        worker.stop()
    time.sleep(1.2)  # more than one look
    assert held.exists()
    mapped.close()
    assert eventually(lambda: not held.exists())


def test_killed_without_a_client_it_leaves_nothing(segment_name: str, tmp_path: Path) -> None:
    worker = killed(segment_name, tmp_path)
    assert eventually(lambda: not worker.path.exists())


def keepers(path: Path) -> list[psutil.Process]:
    """Of workers on that file. They have none of it open, and its name in their command."""
    found = [one for one in psutil.process_iter() if one.pid != os.getpid()]
    return [one for one in found if alive(one) and f"/{path.name}" in cmdline(one)]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_keeper_holds_nothing_and_ends_with_its_file(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        (keeper,) = [one for one in keepers(worker.path) if one.pid != worker.process.pid]
        links = [str(link.readlink()) for link in Path(f"/proc/{keeper.pid}/fd").iterdir()]
        assert sorted(link.partition(":")[0] for link in links) == ["/dev/null"] * 3 + ["pipe"]
        assert segment_name not in Path(f"/proc/{keeper.pid}/maps").read_text()
        keeper.send_signal(signal.SIGTERM)  # as of pkill, which means the worker
        assert worker.stop() == 0
        assert eventually(lambda: not alive(keeper))


def old(path: Path) -> None:
    os.utime(path, (time.time() - 2 * SWEPT_AFTER,) * 2)


def test_next_worker_says_and_takes_what_a_killed_one_left(segment_name: str, tmp_path: Path) -> None:
    """Its keeper has been killed, too, as systemd does it."""
    worker = SegmentWorker(segment_name, tmp_path)
    other = segment_name + "-b"
    with worker.path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    for process in keepers(worker.path):
        process.kill()
    worker.process.communicate()
    assert list(sweep(Path("/dev/shm" + other))) == [], "a file that was made just now is not for others to judge"
    old(worker.path)
    left = f"{worker.path}, 64 MB, was left by a worker that is gone"
    try:
        with SegmentWorker(other, tmp_path, megabytes=16) as second:
            assert worker.path.exists()
            assert second.stop() == 0
            assert f"{left}, and a client or a virtual machine has it open" in second.errors
        with SegmentWorker(segment_name, tmp_path) as third:
            assert third.stop() == 0
            assert f"{worker.path} was left by a worker that was killed; this one takes it" in third.errors
        mapped.close()
        assert eventually(lambda: not worker.path.exists())
        for _ in range(10):  # a worker of another test may be the one that comes next
            fourth = SegmentWorker(segment_name, tmp_path)
            for process in keepers(worker.path):
                process.kill()
            fourth.process.communicate()
            with contextlib.suppress(FileNotFoundError):
                old(worker.path)
            with SegmentWorker(other, tmp_path, megabytes=16) as fifth:
                assert not worker.path.exists()
                assert fifth.stop() == 0
            if f"{left}; it is removed" in fifth.errors:
                break
        else:
            raise AssertionError(fifth.errors)
    finally:
        Path("/dev/shm" + other).unlink(missing_ok=True)


@pytest.mark.parametrize("what", ["of another kind", "of another user", "locked by a worker"])
def test_sweep_leaves_alone_what_is_not_left(what: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    header = struct.pack("<QIIQQ", SEGMENT_MAGIC if what != "of another kind" else 1, 1, 1, 16 * MB, 7)
    path.write_bytes(header.ljust(16 * MB, b"\0"))
    with path.open("r+b") as locked:
        if what == "locked by a worker":
            fcntl.flock(locked, fcntl.LOCK_EX)
        elif what == "of another user":
            if os.geteuid() != 0:
                pytest.skip("only root can give a file away")
            os.chown(path, 12345, -1)
        old(path)
        if what != "locked by a worker":
            locked.close()
        assert list(sweep(tmp_path / "own", tmp_path)) == []
        assert path.exists()
