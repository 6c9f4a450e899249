"""Sharing between processes: two clients of one worker, over both transports, and their deaths."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from stack.harness import MIB, ROOT, Program, Worker, clean_environment, whole_stack
from worker_harness import eventually

from tensor_fusion.abi import native_folder

pytestmark = whole_stack
INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, MAP_FAILED, INVALID_HANDLE = 1, 2, 201, 205, 400
NOT_READY, NOT_PERMITTED, CAPTURE_UNSUPPORTED, UNKNOWN = 600, 800, 900, 999
LARGE = 4 * MIB


class Peer(Program):
    """A process that makes the calls it is told."""

    def __init__(self, env: dict[str, str], **variables: str) -> None:
        super().__init__([sys.executable, ROOT / "tests/stack/apart/share.py"], {**env, **variables})
        assert self.call("prepare") == 0

    def __enter__(self) -> Peer:
        return self

    def call(self, name: str, *arguments: Any) -> Any:
        return json.loads(self.ask(json.dumps([name, *arguments])))

    def good(self, name: str, *arguments: Any) -> Any:
        """What the call gives besides its code."""
        result, value, *_ = self.call(name, *arguments)
        assert result == 0, (name, arguments, result)
        return value

    def cannot(self, opens: str, handle: str, closes: str) -> bool:
        """Whether a handle has ended: the supervisor hears of that a moment later than this process may."""
        result, opened = self.call(opens, handle)
        assert result in (0, NOT_PERMITTED, MAP_FAILED)
        return bool(result) or self.call(closes, opened) != 0

    def free_bytes(self) -> int:
        return int(self.good("info"))

    def gives(self, address: int) -> str:
        return str(self.good("get", address))


@pytest.fixture(scope="module", params=["simulated", "native", "shmem"])
def env(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of the simulated GPU alone, which stands for a driver, and of both transports."""
    if request.param == "simulated":
        folder = tmp_path_factory.mktemp("simulated")
        (folder / "libcuda.so.1").symlink_to(native_folder() / "lib" / "libtf-simgpu.so")
        yield clean_environment(LD_LIBRARY_PATH=str(folder))
    else:
        with Worker(transport=request.param) as found:
            yield found.env


# What natively is not defined, or differs.
remote = pytest.mark.parametrize("env", ["native", "shmem"], indirect=True, scope="module")


@pytest.fixture
def peer(env: dict[str, str]) -> Iterator[Callable[..., Peer]]:
    with ExitStack() as stack:
        yield lambda **variables: stack.enter_context(Peer(env, **variables))


@pytest.mark.parametrize("size", [1000, LARGE, 3 * MIB + 1])
def test_both_see_what_either_writes(peer: Callable[..., Peer], size: int) -> None:
    a, b = peer(), peer()
    a.good("alloc", 512)  # what is shared does not begin where its granule does
    mine = a.good("alloc", size)
    assert a.call("fill", mine, 7, size) == 0
    handle = a.gives(mine)
    theirs = b.good("open", handle)
    assert b.good("read", theirs, size) == [[7, size]]
    assert b.call("fill", theirs, 8, size // 2) == 0
    assert a.good("read", mine, size) == [[8, size // 2], [7, size - size // 2]]
    assert b.call("range", theirs) == [0, theirs, size]
    assert b.call("read", theirs, size + 1)[0] == INVALID_VALUE, "the rest of the granule is not the importer's to copy"
    own = b.good("alloc", size)
    assert b.call("copy", own, theirs, size) == 0
    assert b.good("read", own, 1) == [[8, 1]]
    assert b.call("close", theirs) == 0
    assert b.call("read", theirs, 1)[0] == INVALID_VALUE
    assert a.good("read", mine, 1) == [[8, 1]]
    assert a.call("free", mine) == 0


def test_a_handle_stays_the_same_and_is_opened_again(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    mine = a.good("alloc", LARGE)
    handle = a.gives(mine)
    assert a.gives(mine) == handle
    assert a.gives(mine + 4096) == handle, "an address inside names its allocation"
    theirs = b.good("open", handle)
    assert b.good("open", handle) == theirs
    assert b.call("close", theirs) == 0
    assert b.call("fill", theirs, 1, LARGE) == 0
    assert b.call("close", theirs) == 0
    assert b.call("close", theirs) == INVALID_VALUE
    again = b.good("open", handle)
    assert b.good("read", again, LARGE) == [[1, LARGE]]


def test_other_memory_has_no_handle(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    for kind in ("map", "alloc_async", "alloc_managed", "alloc_host"):
        address = a.good(kind, 2 * MIB)
        assert a.call("get", address)[0] == INVALID_VALUE, kind
    mine = a.good("alloc", LARGE)
    assert a.call("get", mine, False)[0] == INVALID_VALUE
    assert a.call("get", mine + LARGE)[0] == INVALID_VALUE
    assert a.call("get", 0)[0] == INVALID_VALUE
    theirs = b.good("open", a.gives(mine))
    assert b.call("get", theirs)[0] == INVALID_VALUE, "who has opened it cannot pass it on"
    assert b.call("free", theirs) == INVALID_VALUE
    assert b.call("close", theirs + 512) == INVALID_VALUE
    assert a.call("close", mine) == INVALID_VALUE
    assert a.call("pointer", 10, mine) == [0, 1]  # IS_LEGACY_CUDA_IPC_CAPABLE
    assert b.call("pointer", 10, theirs) == [0, 0]


def test_wrong_ways_to_open(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    mine = a.good("alloc", LARGE)
    handle = a.gives(mine)
    assert a.call("open", handle) == [INVALID_CONTEXT, 0], "natively, too, only another process opens it"
    for flags in (0, 2, 3):
        assert b.call("open", handle, flags)[0] == INVALID_VALUE
    assert b.call("open", handle, 1, False)[0] == INVALID_VALUE
    whole = bytes.fromhex(handle)
    for place in (0, 8, 23, 24, 32, 39, 47, 48, 63):
        forged = bytearray(whole)
        forged[place] ^= 1
        # Of what a worker made, but not like this, it is not told whether that is there.
        assert b.call("open", forged.hex())[0] in (INVALID_VALUE, NOT_PERMITTED), place
    assert b.call("open", bytes(64).hex())[0] == INVALID_VALUE
    assert b.call("open", "ff" * 64)[0] == INVALID_VALUE


@remote
def test_a_handle_ends_with_its_memory(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    mine = a.good("alloc", LARGE)
    handle = a.gives(mine)
    theirs = b.good("open", handle)
    assert b.call("close", theirs) == 0
    assert a.call("free", mine) == 0
    assert eventually(lambda: b.cannot("open", handle, "close"), 20)


@remote
def test_guessing_ends_nothing_and_helps_nobody(peer: Callable[..., Peer]) -> None:
    a, b, c = peer(), peer(), peer()
    mine = a.good("alloc", LARGE)
    handle = a.gives(mine)
    for i in range(300):
        forged = handle[:64] + f"{i:032x}" + handle[96:]
        assert b.call("open", forged)[0] == NOT_PERMITTED
    assert c.call("open", handle)[0] == 0, "only who guesses waits"


def test_memory_outlives_its_owner(peer: Callable[..., Peer]) -> None:
    a, b, c = peer(), peer(), peer()
    mine = a.good("alloc", LARGE)
    assert a.call("fill", mine, 9, LARGE) == 0
    handle = a.gives(mine)
    theirs = b.good("open", handle)
    a.kill()
    assert eventually(lambda: c.cannot("open", handle, "close"), 20)
    assert b.good("read", theirs, LARGE) == [[9, LARGE]]
    assert b.call("fill", theirs, 1, LARGE) == 0
    assert b.call("close", theirs) == 0


@remote
def test_freed_memory_stays_with_who_has_it_open(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    mine = a.good("alloc", LARGE)
    assert a.call("fill", mine, 5, LARGE) == 0
    theirs = b.good("open", a.gives(mine))
    assert a.call("free", mine) == 0
    other = a.good("alloc", LARGE)
    assert a.call("fill", other, 6, LARGE) == 0
    assert b.good("read", theirs, LARGE) == [[5, LARGE]], "what was shared is not used for something else"


def test_an_importer_dies(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    mine = a.good("alloc", LARGE)
    handle = a.gives(mine)
    theirs = b.good("open", handle)
    assert b.call("fill", theirs, 3, LARGE) == 0
    b.kill()
    assert a.good("read", mine, LARGE) == [[3, LARGE]]
    c = peer()
    assert c.good("read", c.good("open", handle), LARGE) == [[3, LARGE]]


def test_what_a_context_opened_ends_with_it(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    handle = a.gives(a.good("alloc", LARGE))
    theirs = b.good("open", handle)
    assert b.call("reset") == 0
    assert b.call("prepare") == 0
    assert b.call("close", theirs) == INVALID_VALUE
    assert b.call("open", handle)[0] == 0


def test_one_context_has_what_is_open(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    handle = a.gives(a.good("alloc", LARGE))
    theirs = b.good("open", handle)
    assert b.call("open_elsewhere", handle)[0] == INVALID_HANDLE
    assert b.call("close", theirs) == 0
    assert b.call("open_elsewhere", handle)[0] == 0


def test_a_capture_takes_no_interprocess_event(peer: Callable[..., Peer]) -> None:
    a = peer()
    event, stream = a.good("event_create"), a.good("stream")
    assert a.call("captured_record", event, stream) == [CAPTURE_UNSUPPORTED, 1]
    assert a.call("record", event, stream) == 0
    assert a.call("event_get", 0)[0] == INVALID_VALUE


def test_streams_wait_for_events_of_others(peer: Callable[..., Peer]) -> None:
    """What PyTorch does with a tensor: the receiver's stream waits for the sender's work."""
    a, b = peer(), peer()
    word, mine, event, stream = a.good("alloc", 4), a.good("alloc", LARGE), a.good("event_create"), a.good("stream")
    assert a.call("fill", word, 0, 4) == 0
    assert a.call("fill", mine, 1, LARGE) == 0
    handle = a.good("event_get", event)
    assert a.good("event_get", event) == handle
    # The word stands in memory that the other frees: it is over when that has written it.
    of_b, its, go = b.good("open", a.gives(mine)), b.good("event_open", handle), b.good("open", a.gives(word))
    assert b.call("query", its) == 0, "never recorded"
    for turn in (2, 3):
        assert a.call("stand", stream, word) == 0
        assert a.call("fill_later", mine, turn, LARGE, stream) == 0
        assert a.call("record", event, stream) == 0
        assert b.call("query", its) == NOT_READY, "the record has been made when its call has returned"
        assert a.call("query", event) == NOT_READY
        later, own = b.good("stream"), b.good("alloc", LARGE)
        assert b.call("stream_wait", later, its) == 0
        assert b.call("fill_later", own, 9, LARGE, later) == 0
        assert b.good("read", of_b, 1) == [[turn - 1, 1]]
        assert b.call("fill", go, 1, 1) == 0
        assert b.call("wait", its) == 0
        assert b.good("read", of_b, LARGE) == [[turn, LARGE]]
        assert b.call("stream_sync", later) == 0
        assert b.good("read", own, LARGE) == [[9, LARGE]]
        assert a.call("query", event) == 0
        assert b.call("fill", go, 0, 1) == 0
    # And the other way round: who has opened it records.
    assert b.call("record", its, later) == 0
    assert a.call("wait", event) == 0
    assert b.call("event_destroy", its) == 0
    assert a.call("event_destroy", event) == 0


def test_events_that_are_not_shared(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    assert a.call("event_create", 4)[0] == INVALID_VALUE, "an interprocess event does not time"
    plain, event = a.good("event_create", 2), a.good("event_create")
    assert a.call("event_get", plain)[0] == INVALID_HANDLE
    assert a.call("event_get", event, False)[0] == INVALID_VALUE
    handle = a.good("event_get", event)
    assert a.call("event_open", handle)[0] == INVALID_CONTEXT
    assert b.call("event_open", handle, False)[0] == INVALID_VALUE
    for place in (0, 12, 63):
        forged = bytearray(bytes.fromhex(handle))
        forged[place] ^= 1
        assert b.call("event_open", forged.hex())[0] == MAP_FAILED, place
    memory = a.gives(a.good("alloc", LARGE))
    assert b.call("event_open", memory)[0] == MAP_FAILED
    assert b.call("open", handle)[0] == INVALID_VALUE
    its = b.good("event_open", handle)
    assert b.call("event_get", its)[0] == INVALID_HANDLE, "who has opened it cannot pass it on"


@remote
def test_handles_of_events_end_with_them(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    event = a.good("event_create")
    handle = a.good("event_get", event)
    its = b.good("event_open", handle)
    assert a.call("event_destroy", event) == 0
    assert eventually(lambda: b.cannot("event_open", handle, "event_destroy"), 20)
    assert b.call("query", its) == 0


def test_who_records_dies(peer: Callable[..., Peer]) -> None:
    a, b = peer(), peer()
    word, event, stream = a.good("alloc", 4), a.good("event_create"), a.good("stream")
    assert a.call("fill", word, 0, 4) == 0
    its, later = b.good("event_open", a.good("event_get", event)), b.good("stream")
    assert a.call("stand", stream, word) == 0
    assert a.call("record", event, stream) == 0
    assert b.call("stream_wait", later, its) == 0
    a.kill()
    assert b.call("stream_sync", later) == 0
    assert b.call("wait", its) == 0


def pass_on(a: Peer, fd: int, b: Peer, folder: Path) -> int:
    """Sends a descriptor over a unix socket; its number in the other process."""
    path = str(folder / f"{b.process.pid}")
    b.begin(json.dumps(["take_fd", path]))
    assert b.line() == '"listening"'
    assert a.call("send_fd", path, fd) == 0
    Path(path).unlink()
    return int(b.line())


def test_descriptors_of_memory(peer: Callable[..., Peer], tmp_path: Path) -> None:
    """Sent over a socket, imported twice, passed on; and the memory lives until nobody has any of these."""
    a, b = peer(), peer()
    before = a.free_bytes()
    handle = a.good("create", LARGE)
    mine = a.good("map_handle", handle, LARGE)
    assert a.call("fill", mine, 4, LARGE) == 0
    fd = a.good("export", handle)
    other = a.good("export", handle)
    assert other != fd
    assert a.call("close_fd", other) == 0
    theirs = pass_on(a, fd, b, tmp_path)
    assert a.call("close_fd", fd) == 0
    its = b.good("import", theirs)
    again = b.good("import", theirs)
    assert b.call("close_fd", theirs) == 0
    place, second = b.good("map_handle", its, LARGE), b.good("map_handle", again, LARGE)
    assert b.good("read", place, LARGE) == [[4, LARGE]]
    assert b.call("fill", second, 5, LARGE) == 0
    assert b.good("read", place, LARGE) == [[5, LARGE]]
    assert a.good("read", mine, LARGE) == [[5, LARGE]]
    assert a.call("unmap", mine, LARGE) == 0
    assert a.call("release", handle) == 0
    assert b.good("read", place, LARGE) == [[5, LARGE]]
    assert a.free_bytes() <= before
    for address, named in ((place, its), (second, again)):
        assert b.call("unmap", address, LARGE) == 0
        assert b.call("release", named) == 0
    assert eventually(lambda: a.free_bytes() == before, 20)


def test_a_descriptor_keeps_memory(peer: Callable[..., Peer], tmp_path: Path) -> None:
    a, b = peer(), peer()
    handle = a.good("create", LARGE)
    mine = a.good("map_handle", handle, LARGE)
    assert a.call("fill", mine, 6, LARGE) == 0
    fd = a.good("export", handle)
    assert a.call("unmap", mine, LARGE) == 0
    assert a.call("release", handle) == 0
    same = a.good("import", fd)
    assert a.good("read", a.good("map_handle", same, LARGE), LARGE) == [[6, LARGE]], "its own, too"
    its = b.good("import", pass_on(a, fd, b, tmp_path))
    assert b.good("read", b.good("map_handle", its, LARGE), LARGE) == [[6, LARGE]]


def test_descriptors_that_are_none(peer: Callable[..., Peer], tmp_path: Path) -> None:
    a, b = peer(), peer()
    handle, plain = a.good("create", LARGE), a.good("create", LARGE, 0)
    assert a.call("export", plain)[0] == INVALID_VALUE
    assert a.call("export", handle, 2)[0] == INVALID_VALUE
    assert a.call("export", handle, 1, 1)[0] == INVALID_VALUE
    assert a.call("export", 0x1230)[0] == INVALID_VALUE
    assert a.call("import", 1)[0] == UNKNOWN
    assert a.call("import", 1 << 20)[0] == UNKNOWN
    assert b.call("import", pass_on(a, 1, b, tmp_path))[0] == UNKNOWN
    assert b.call("import", pass_on(a, a.good("export", handle), b, tmp_path), 0)[0] == INVALID_VALUE


@pytest.mark.parametrize("transport", ["native", "shmem"])
@pytest.mark.parametrize("end", ["free", "kill"])
@pytest.mark.parametrize("kind", ["handle", "descriptor"])
def test_memory_counts_once(transport: str, end: str, kind: str, tmp_path: Path) -> None:
    """The owner pays, then one after the other of those who have it open."""
    with Worker(transport=transport, TF_GPU_MEMORY_LIMIT="300") as worker, ExitStack() as stack:
        a, b, c, watcher = (stack.enter_context(Peer(worker.env)) for _ in range(4))
        size = 200 * MIB
        before = watcher.free_bytes()

        def left(used: int) -> Callable[[], bool]:
            return lambda: before - watcher.free_bytes() == used

        if kind == "handle":
            mine, free, close = a.good("alloc", size), "free", "close"
            handle = a.gives(mine)
            of_b, of_c = b.good("open", handle), c.good("open", handle)
        else:
            mine, free, close = a.good("create", size), "release", "release"
            fd = a.good("export", mine)
            copies = [pass_on(a, fd, p, tmp_path) for p in (b, c)]
            of_b, of_c = b.good("import", copies[0]), c.good("import", copies[1])
            for p, copy in ((a, fd), (b, copies[0]), (c, copies[1])):
                assert p.call("close_fd", copy) == 0
        assert left(size)(), "who opens it pays nothing"
        assert watcher.call("alloc", size)[0] == OUT_OF_MEMORY
        if end == "free":
            assert a.call(free, mine) == 0
        else:
            a.kill()
        assert eventually(left(size), 20)
        assert watcher.call("alloc", size)[0] == OUT_OF_MEMORY, "two still have it"
        if end == "free":
            assert b.call(close, of_b) == 0
        else:
            b.kill()
        assert eventually(left(size), 20)
        assert watcher.call("alloc", size)[0] == OUT_OF_MEMORY, "one still has it"
        assert c.call(close, of_c) == 0
        assert eventually(left(0), 20)
        assert watcher.call("alloc", size)[0] == 0


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_handles_of_another_worker(transport: str) -> None:
    with Worker(transport=transport) as one, Worker(transport=transport) as other, ExitStack() as stack:
        a = stack.enter_context(Peer(one.env))
        b = stack.enter_context(Peer(other.env, TF_ENABLE_LOG="1"))
        handle = a.gives(a.good("alloc", LARGE))
        assert b.call("open", handle) == [INVALID_VALUE, 0]
        b.end()
        assert "only clients of one worker share" in b.errors()
