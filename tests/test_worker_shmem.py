"""The supervisor over shared memory with a stand-in session and a native client that only greets, in real processes."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from segment_harness import (
    ACCEPTED,
    ENDED,
    FREE,
    HEADER,
    MB,
    SLOT,
    SLOT_AT,
    SLOT_SIZE,
    SegmentClient,
    SegmentWorker,
    worker_environment,
)
from worker_harness import HERE, alive, command, environment, eventually, suspend

from tensor_fusion.abi import Asked, Teleport
from tensor_fusion.worker.protocol import Greeting, Role, Status

COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def fails(*arguments: str) -> str:
    """The sentence of a worker that must not start."""
    result = subprocess.run(
        command("--gpu", "sim", *arguments),
        env=worker_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "ready" not in result.stdout
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_layout(tmp_path: Path) -> None:
    checks = "\n".join(
        f'_Static_assert(offsetof(struct {name}, {field}) == {offset}, "{field}");'
        for name, fields in (("tp_segment_header", HEADER), ("tp_slot", SLOT))
        for field, offset in fields.items()
    )
    source = tmp_path / "layout.c"
    source.write_text(f"#include <stddef.h>\n#include <tp_segment.h>\n{checks}\n")
    folders = [f"-I{HERE.parent / 'native' / name}" for name in ("base", "wire", "ring")]
    words = [COMPILER or "", "-std=gnu17", "-D_GNU_SOURCE", "-fsyntax-only", *folders, str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_segment_is_made_as_asked_and_gone_at_the_end(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    previous = os.umask(0o077)
    try:
        worker = SegmentWorker(segment_name, tmp_path)
    finally:
        os.umask(previous)
    with worker:
        assert worker.ready == f"ready shmem {segment_name} 64 MB (Fake GPU, 2 GPUs)\n"
        found = worker.path.stat()
        assert (found.st_size, found.st_mode & 0o7777) == (64 * MB, 0o660)
        assert found.st_blocks * 512 >= 64 * MB
        assert worker.word(0, "<Q") == 0x544E454D47455354
        assert (worker.word(HEADER["version"]), worker.word(HEADER["state"])) == (2, 1)
        assert worker.word(HEADER["size"], "<Q") == 64 * MB
        assert worker.path.read_bytes()[HEADER["schema"] :][:16] == schema
        before = worker.word(HEADER["heartbeat"], "<Q")
        time.sleep(0.3)
        assert worker.word(HEADER["heartbeat"], "<Q") > before
        assert worker.stop() == 0
        assert not worker.path.exists()


def test_idle_worker_costs_little(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        time.sleep(1)
        process = psutil.Process(worker.process.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(3)
        assert sum(process.cpu_times()[:2]) - before < 0.15


def test_client_gets_a_slot_and_a_session(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    connections = tmp_path / "connections"
    with SegmentWorker(segment_name, tmp_path, TF_CONNECTION_INFO_PATH=str(connections)) as worker:
        client = SegmentClient(worker.path, Greeting.build(schema, client_pid=77, program="train.py"))
        assert client.status() is Status.ACCEPTED
        assert client.welcome
        assert client.welcome.data_connections == 0
        assert client.welcome.session_id
        assert eventually(lambda: len(worker.adopted()) == 1)
        (told,) = worker.adopted().values()
        assert told["slot"] == 0
        assert told["text"] == f"train.py@{segment_name}"
        assert told["size"] == [64 * MB, 64 * MB]
        blocks = told["blocks"]
        assert isinstance(blocks, int) and 1 <= blocks <= 16
        assert told["granules"] == (2 * MB + (256 << 10) + (64 << 10) + 2 * blocks * MB) // 65536
        assert worker.slot_state(0) == ACCEPTED
        assert connections.read_text() == f"{segment_name},0,77\n"
        client.end()
        assert eventually(lambda: worker.slot_state(0) == FREE)
        assert eventually(lambda: connections.read_text() == "")
        assert "its client's process has ended" in worker.log


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"version": 1}, Status.PROTOCOL_DIFFERS, "The client is of release 0.1 and this worker of "),
        ({"role": Role.DATA}, Status.NOT_A_GREETING, "role 2"),
        ({"role": 9}, Status.NOT_A_GREETING, "role 9"),
        ({"role": Role.PROBE}, Status.PROBED, "let the client in"),
    ],
)
def test_refusals(
    segment_name: str, tmp_path: Path, schema: bytes, fields: dict[str, object], status: Status, words: str
) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        greeting = Greeting.build(**{"schema": schema, **fields})  # type: ignore[arg-type]
        client = SegmentClient(worker.path, greeting)
        assert client.status() is status
        assert client.welcome
        assert words in client.welcome.sentence
        client.end()
        assert eventually(lambda: worker.slot_state(0) == FREE)
        assert not worker.adopted()


def test_junk_is_refused(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        client = SegmentClient(worker.path, b"\xff" * 256)
        assert client.status() is Status.NOT_A_GREETING
        client.end()


def test_secret(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    with SegmentWorker(segment_name, tmp_path, TF_ENABLE_URL_AUTH="1", TF_AUTHORIZED_KEY_PATH=str(keys)) as worker:
        for role in (Role.CONTROL, Role.PROBE):
            wrong = SegmentClient(worker.path, Greeting.build(schema, role=role, secret="wrong"))
            assert wrong.status() is Status.SECRET_REFUSED
            wrong.end()
        right = SegmentClient(worker.path, Greeting.build(schema, secret="right"))
        assert right.status() is Status.ACCEPTED
        right.end()
        assert "wrong" not in worker.log


def test_more_clients_than_allowed(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    with SegmentWorker(segment_name, tmp_path, "--max-clients", "1") as worker:
        first = SegmentClient(worker.path, Greeting.build(schema))
        refused = SegmentClient(worker.path, Greeting.build(schema))
        assert refused.status() is Status.NO_SESSION
        assert refused.welcome
        assert "1 clients" in refused.welcome.sentence
        refused.end()
        first.end()
        assert eventually(lambda: worker.slot_state(0) == FREE)
        second = SegmentClient(worker.path, Greeting.build(schema))
        assert second.status() is Status.ACCEPTED
        second.end()


def test_full_arena_refuses_and_goes_on(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    with SegmentWorker(segment_name, tmp_path, "--warm", "0", megabytes=16) as worker:
        clients = [SegmentClient(worker.path, Greeting.build(schema)) for _ in range(4)]
        accepted = [client for client in clients if client.status() is Status.ACCEPTED]
        refused = [client for client in clients if client.status() is Status.NO_SESSION]
        assert len(accepted) >= 2
        assert eventually(lambda: len(psutil.Process(worker.process.pid).children()) == len(accepted)), (
            "a session was started for nobody"
        )
        assert refused and refused[0].welcome
        assert "no room" in refused[0].welcome.sentence and "-M" in refused[0].welcome.sentence
        for client in clients:
            client.end()
        assert eventually(lambda: all(worker.slot_state(slot) == FREE for slot in range(4)))
        again = SegmentClient(worker.path, Greeting.build(schema))
        assert again.status() is Status.ACCEPTED
        again.end()


def test_slot_of_a_dead_session_waits_for_its_client(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    """The program may still look at its pinned memory: nobody else gets it while the process lives."""
    with SegmentWorker(segment_name, tmp_path) as worker:
        client = SegmentClient(worker.path, Greeting.build(schema))
        assert eventually(lambda: len(worker.adopted()) == 1)
        (session,) = worker.adopted()
        os.kill(session, signal.SIGSEGV)
        assert eventually(lambda: worker.slot_state(0) == ENDED)
        other = SegmentClient(worker.path, Greeting.build(schema))
        assert other.status() is Status.ACCEPTED
        assert eventually(lambda: len(worker.adopted()) == 2)
        told = {report["slot"]: report for report in worker.adopted().values()}
        assert told[0]["first"] != told[1]["first"]
        assert worker.slot_state(0) == ENDED
        client.end()
        assert eventually(lambda: worker.slot_state(0) == FREE)
        other.end()


def test_claimer_that_died_is_forgotten(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        suspend(worker.process)
        client = SegmentClient(worker.path, Greeting.build(schema), seconds=0.3)
        assert client.outcome is Asked.NOT_SEEN
        stuck = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "segment_client.py"), str(worker.path)),
                *(Greeting.build(schema).hex(), "60"),
            ],
            env=environment(**{key: os.environ[key] for key in ("TF_NATIVE_DIR",) if key in os.environ}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert eventually(lambda: worker.slot_state(0) != FREE)
        stuck.kill()
        stuck.communicate()
        client.end()
        worker.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: worker.slot_state(0) == FREE)
        assert eventually(lambda: len(psutil.Process(worker.process.pid).children()) <= 2)


def test_guest_started_anew_ends_what_it_left(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    """A machine that vanishes marks nothing; its successor's boot id says that it is gone."""
    teleport = Teleport()
    with (
        SegmentWorker(segment_name, tmp_path) as worker,
        worker.path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        host = SegmentClient(worker.path, Greeting.build(schema))
        for slot, boot in ((1, b"11111111-old"), (2, b"11111111-old"), (3, b"22222222-new")):
            claim(memory, slot, Greeting.build(schema), boot)
            assert eventually(lambda slot=slot: worker.slot_state(slot) == ACCEPTED)  # type: ignore[misc]
        # Nobody is left to use their granules: the slots do not wait for a beat that will not come.
        assert eventually(lambda: worker.slot_state(1) == worker.slot_state(2) == FREE)
        assert worker.slot_state(0) == worker.slot_state(3) == ACCEPTED
        assert worker.log.count("started anew") == 2
        host.end()
    assert teleport.schema == schema


def claim(memory: mmap.mmap, slot: int, greeting: bytes, boot_id: bytes) -> None:
    """Greet as a client on another machine would, without a life that this kernel could end."""
    at = SLOT_AT + SLOT_SIZE * slot
    memory[at + SLOT["client_boot_id"] : at + SLOT["client_boot_id"] + len(boot_id)] = boot_id
    memory[at + SLOT["greeting"] : at + SLOT["greeting"] + len(greeting)] = greeting
    struct.pack_into("<I", memory, at + SLOT["client_life"], 12345)  # held by a thread of that machine
    struct.pack_into("<I", memory, at, 2)


def test_forged_greeting_in_a_served_slot_changes_nothing(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    with (
        SegmentWorker(segment_name, tmp_path) as worker,
        worker.path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        client = SegmentClient(worker.path, Greeting.build(schema))
        struct.pack_into("<I", memory, SLOT_AT, 2)
        time.sleep(0.3)
        assert len(worker.adopted()) == 1
        client.end()
        assert eventually(lambda: "process has ended" in worker.log)
        again = SegmentClient(worker.path, Greeting.build(schema))
        assert again.status() is Status.ACCEPTED
        again.end()


def test_random_words_in_slots_do_not_disturb_the_worker(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    with (
        SegmentWorker(segment_name, tmp_path) as worker,
        worker.path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            at = SLOT_AT + SLOT_SIZE * (1 + secrets.randbelow(63)) + 4 * secrets.randbelow(100)
            struct.pack_into("<I", memory, at, secrets.choice([0, 1, 2, 3, 4, 5, 6, secrets.randbits(32)]))
        assert worker.process.poll() is None
        assert "Traceback" not in worker.log


def test_client_that_is_silent_too_long_is_ended(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    """Ten minutes, which the stand-in for the command makes one second; a beat is enough to live on."""
    with (
        SegmentWorker(segment_name, tmp_path, FAKE_LONGEST_PAUSE="1") as worker,
        worker.path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        silent = SegmentClient(worker.path, Greeting.build(schema))
        living = SegmentClient(worker.path, Greeting.build(schema))
        for beat in range(1, 25):
            struct.pack_into("<Q", memory, SLOT_AT + SLOT_SIZE + SLOT["beat"], beat)
            time.sleep(0.1)
        assert worker.slot_state(0) == ENDED
        assert worker.slot_state(1) == ACCEPTED
        assert worker.log.count("no sign of life") == 1
        silent.end()
        living.end()


# The file


def test_second_worker_is_refused_by_name(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        holder = psutil.Process(worker.process.pid)
        sentence = fails("-n", "shmem", "-m", segment_name, "-M", "64")
        assert f"{segment_name} belongs to another worker (process {holder.pid})" in sentence
        sentence = fails("-n", "shmem", "-m", segment_name, "-M", "32")
        assert "belongs to another worker" in sentence
        assert worker.path.stat().st_size == 64 * MB


def test_workers_side_by_side(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    other = segment_name + "-b"
    try:
        with SegmentWorker(segment_name, folders[0]) as first, SegmentWorker(other, folders[1], megabytes=32) as second:
            clients = [SegmentClient(worker.path, Greeting.build(schema)) for worker in (first, second)]
            assert [client.status() for client in clients] == [Status.ACCEPTED] * 2
            assert eventually(lambda: len(first.adopted()) == len(second.adopted()) == 1)
            for client in clients:
                client.end()
    finally:
        Path("/dev/shm" + other).unlink(missing_ok=True)


def test_takeover_after_kill(segment_name: str, tmp_path: Path, schema: bytes) -> None:
    first = SegmentWorker(segment_name, tmp_path)
    client = SegmentClient(first.path, Greeting.build(schema))
    assert eventually(lambda: first.word(HEADER["epoch"], "<Q") != 0)
    inode, epoch = first.path.stat().st_ino, first.word(HEADER["epoch"], "<Q")
    sessions = psutil.Process(first.process.pid).children(recursive=True)
    first.process.kill()
    first.process.communicate()
    assert eventually(lambda: not [one for one in sessions if alive(one)])
    with SegmentWorker(segment_name, tmp_path) as second:
        assert second.path.stat().st_ino == inode
        assert second.word(HEADER["epoch"], "<Q") != epoch
        assert second.slot_state(0) == FREE
        client.end()
        again = SegmentClient(second.path, Greeting.build(schema))
        assert again.status() is Status.ACCEPTED
        again.end()


def test_file_that_somebody_maps_stays(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path) as worker:
        with worker.path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        inode = worker.path.stat().st_ino
        assert worker.stop() == 0
    assert worker.path.stat().st_ino == inode
    assert f"{worker.path} stays, 64 MB of memory" in worker.errors and "goes with the last of them" in worker.errors
    assert struct.unpack_from("<I", mapped, HEADER["state"])[0] == 2
    sentence = fails("-n", "shmem", "-m", segment_name, "-M", "32")
    assert "64 MB" in sentence and "32 MB" in sentence
    with SegmentWorker(segment_name, tmp_path) as second:
        assert second.path.stat().st_ino == inode
        assert struct.unpack_from("<I", mapped, HEADER["state"])[0] == 1
        mapped.close()
    assert not worker.path.exists()
    assert "stays" not in second.errors and "killed" not in second.errors


def test_stale_file_of_another_size_is_replaced(segment_name: str, tmp_path: Path) -> None:
    path = Path("/dev/shm" + segment_name)
    path.write_bytes(b"\0" * 12345)
    with SegmentWorker(segment_name, tmp_path) as worker:
        assert worker.path.stat().st_size == 64 * MB


# Below the slots, which the worker reads all the time; above them, where only clients go; one byte more.
@pytest.mark.parametrize("size", [4096, 0, 8 << 20, (64 << 20) + 1])
def test_truncated_file_ends_the_worker_with_a_sentence(segment_name: str, tmp_path: Path, size: int) -> None:
    """Whoever may write the file may cut it short; that is no way to end a worker by a signal."""
    with SegmentWorker(segment_name, tmp_path) as worker:
        os.truncate(worker.path, size)
        _, errors = worker.process.communicate(timeout=30)
        assert worker.process.returncode == 1
        assert f"The segment {segment_name} was truncated by another process, so this worker ends" in errors
        assert "Traceback" not in errors


def test_what_is_no_file_of_ours_is_refused(segment_name: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    path = Path("/dev/shm" + segment_name)
    path.symlink_to(target)
    assert "symbolic link" in fails("-n", "shmem", "-m", segment_name, "-M", "64")
    path.unlink()
    os.link(target, tmp_path / "second")
    assert "second name" in fails("-n", "shmem", "-m", str(target), "-M", "64")
    assert target.read_bytes() == b"keep"
    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in fails("-n", "shmem", "-m", str(tmp_path / "fifo"), "-M", "64")
    assert "no regular file" in fails("-n", "shmem", "-m", str(tmp_path), "-M", "64")
    assert "cannot be created" in fails("-n", "shmem", "-m", str(tmp_path / "no" / "file"), "-M", "64")
    if os.geteuid() == 0:
        (tmp_path / "second").unlink()
        os.chown(target, 12345, -1)
        assert "belongs to user 12345" in fails("-n", "shmem", "-m", str(target), "-M", "64")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_no_room_is_a_sentence(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(room)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        sentence = fails("-n", "shmem", "-m", str(room / "segment"), "-M", "64")
        assert "room for 20 MB" in sentence and "64 MB" in sentence
        assert not list(room.iterdir())
    finally:
        subprocess.run(["umount", str(room)], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_end_while_it_allocates_it_leaves_no_file(segment_name: str, number: int) -> None:
    path = Path("/dev/shm" + segment_name)
    room = shutil.disk_usage(path.parent).free // MB
    if room < 4096:
        pytest.skip(f"{path.parent} has {room} MB, which are allocated in no time")
    process = subprocess.Popen(
        command("--gpu", "sim", "-n", "shmem", "-m", segment_name, "-M", "2048"),
        env=worker_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert eventually(path.exists, 20)
    process.send_signal(number)
    assert process.wait(20) in (0, 128 + number)
    assert not path.exists()


def test_limit_of_file_sizes_is_a_sentence(segment_name: str) -> None:
    result = subprocess.run(
        ["sh", "-c", 'ulimit -f 16384; exec "$@"', "sh", *command("--gpu", "sim", "-n", "shmem", "-m", segment_name)],
        env=worker_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "256 MB" in result.stderr and "Traceback" not in result.stderr
    assert not Path("/dev/shm" + segment_name).exists()


def test_group(segment_name: str, tmp_path: Path) -> None:
    group = os.getgroups()[-1] if os.getgroups() else os.getegid()
    with SegmentWorker(segment_name, tmp_path, "--shmem-group", str(group)) as worker:
        assert worker.path.stat().st_gid == group
        assert worker.path.stat().st_mode & 0o7777 == 0o660
    for wrong in ("no-such-group", "", "4294967295", "99999999999"):
        assert f"--shmem-group {wrong!r}" in fails("-n", "shmem", "-m", segment_name, "--shmem-group", wrong)
    assert not Path("/dev/shm" + segment_name).exists()


def test_size_larger_than_memory(segment_name: str) -> None:
    assert "larger than this machine's memory" in fails("-n", "shmem", "-m", segment_name, "-M", "1048576")


def test_options_without_effect_are_named(segment_name: str, tmp_path: Path) -> None:
    with SegmentWorker(segment_name, tmp_path, "-p", "12345", megabytes=48) as worker:
        worker.stop()
        assert "-p/--port 12345 has no effect" in worker.errors
        assert "48 MB is no power of two" in worker.errors


@pytest.mark.parametrize("size", [10, 32 * MB])
def test_a_file_of_something_else_is_left_as_it_is(size: int, tmp_path: Path) -> None:
    """Of the same user, as everything is for root: -m /etc/passwd would take it for its segment, and remove it."""
    path = tmp_path / "something"
    path.write_bytes(b"\0" * (size - 1) + b"x")
    line = fails("-n", "shmem", "-m", str(path), "-M", "32")
    assert f"{path} is there and holds something else than a segment; " in line
    assert path.read_bytes() == b"\0" * (size - 1) + b"x"


def test_a_segment_whose_header_was_written_over_is_taken(segment_name: str, tmp_path: Path) -> None:
    """By a guest: it could otherwise keep its worker from starting again."""
    path = Path("/dev/shm" + segment_name)
    with path.open("xb") as file:
        file.write(b"\xff" * 4096)
        file.truncate(64 * MB)
        os.fchmod(file.fileno(), 0o660)
    with SegmentWorker(segment_name, tmp_path) as worker:
        assert worker.path.stat().st_ino == path.stat().st_ino
