"""Pools between processes: of the simulated GPU, which stands for a driver, and of a worker over both transports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from stack.harness import MIB, Worker, whole_stack
from test_ipc import (
    CAPTURE_UNSUPPORTED,
    INVALID_HANDLE,
    INVALID_VALUE,
    LARGE,
    OUT_OF_MEMORY,
    UNKNOWN,
    Peer,
    pass_on,
    remote,
)
from test_ipc import env as env  # the fixtures
from test_ipc import peer as peer
from worker_harness import eventually

pytestmark = whole_stack
NOT_INITIALIZED, NOT_SUPPORTED = 3, 801


class Shared:
    """A pool of `a` that `b` has imported."""

    def __init__(self, a: Peer, b: Peer, folder: Path) -> None:
        self.a, self.b = a, b
        self.pool = a.good("pool_create")
        self.fd = a.good("pool_export", self.pool)
        self.its_fd = pass_on(a, self.fd, b, folder)
        self.its_pool = b.good("pool_import", self.its_fd)

    def gives(self, size: int, value: int = 0) -> tuple[int, str]:
        """Memory of it, and what is exported of that."""
        address = self.a.good("pool_alloc", self.pool, size)
        if value:
            assert self.a.call("fill", address, value, size) == 0
        return address, self.a.good("pointer_export", address)


@pytest.fixture
def shared(peer: Callable[..., Peer], tmp_path: Path) -> Shared:
    return Shared(peer(), peer(), tmp_path)


@pytest.mark.parametrize("size", [1000, LARGE, 3 * MIB + 1])
def test_both_see_what_either_writes(shared: Shared, size: int) -> None:
    a, b = shared.a, shared.b
    shared.gives(512)  # what is shared does not begin where its granule does
    mine, data = shared.gives(size, 7)
    assert b.call("close_fd", shared.its_fd) == 0, "it was needed for the import alone"
    theirs = b.good("pointer_import", shared.its_pool, data)
    assert b.good("read", theirs, size) == [[7, size]]
    assert b.call("fill", theirs, 8, size // 2) == 0
    assert a.good("read", mine, size) == [[8, size // 2], [7, size - size // 2]]
    assert b.call("range", theirs) == [0, theirs, size]
    assert b.call("read", theirs, size + 1)[0] == INVALID_VALUE
    own = b.good("alloc", size)
    assert b.call("copy", own, theirs, size) == 0
    assert b.good("read", own, 1) == [[8, 1]]
    assert b.call("pool_free", theirs) == 0
    assert b.call("pool_free", theirs) == INVALID_VALUE
    assert b.call("read", theirs, 1)[0] == INVALID_VALUE
    assert a.good("read", mine, 1) == [[8, 1]]
    assert a.call("pool_free", mine) == 0
    assert a.call("pool_destroy", shared.pool) == 0


def test_the_sample_of_nvidia(peer: Callable[..., Peer], tmp_path: Path) -> None:
    """streamOrderedAllocationIPC: memory before the export, each pointer tried with each pool."""
    a, b = peer(), peer()
    assert a.good("attribute", 119) & 1  # MEMPOOL_SUPPORTED_HANDLE_TYPES
    stream, its_stream = a.good("stream"), b.good("stream")
    pools, memory, pointers = [], [], []
    for value in (1, 2):
        pool = a.good("pool_create")
        address = a.good("pool_alloc", pool, LARGE, stream)
        assert a.call("fill", address, value, LARGE) == 0
        pools.append(b.good("pool_import", pass_on(a, a.good("pool_export", pool), b, tmp_path)))
        pointers.append(a.good("pointer_export", address))
        memory.append((pool, address))
    for value, pool in enumerate(pools, 1):
        assert b.call("pool_access", pool) == [0, 3]
        assert b.call("pool_access", pool, 3) == [0, 3]
        opened = [b.call("pointer_import", pool, pointer) for pointer in pointers]
        assert [result for result, _ in opened] == [0 if n == value else INVALID_VALUE for n in (1, 2)]
        theirs = opened[value - 1][1]
        assert b.good("read", theirs, LARGE) == [[value, LARGE]]
        assert b.call("fill", theirs, value + 10, LARGE) == 0
        assert b.call("pool_free", theirs, its_stream) == 0
    for value, (pool, address) in enumerate(memory, 11):
        assert a.good("read", address, LARGE) == [[value, LARGE]]
        assert a.call("pool_free", address, stream) == 0
        assert a.call("pool_destroy", pool) == 0


def test_a_pointer_is_open_once(shared: Shared) -> None:
    b = shared.b
    _, data = shared.gives(LARGE, 3)
    _, other = shared.gives(1000, 4)
    assert b.good("pool_import", shared.its_fd) == shared.its_pool, "a pool has one handle, too"
    theirs = b.good("pointer_import", shared.its_pool, data)
    assert b.good("pointer_import", shared.its_pool, data) == theirs
    another = b.good("pointer_import", shared.its_pool, other)
    assert another != theirs
    assert b.call("free", theirs) == 0
    assert b.call("free", theirs) == INVALID_VALUE
    assert b.good("read", another, 1000) == [[4, 1000]]
    again = b.good("pointer_import", shared.its_pool, data)
    assert b.good("read", again, LARGE) == [[3, LARGE]]


def test_what_a_pool_of_another_process_is(shared: Shared) -> None:
    """(580.159.04, measured.)"""
    b = shared.b
    _, data = shared.gives(100000)
    theirs = b.good("pointer_import", shared.its_pool, data)
    pool = shared.its_pool
    for number in range(1, 9):
        assert b.call("pool_attribute", pool, number) == [INVALID_VALUE, 77], number
    assert b.call("pool_attribute", pool, 4, 1)[0] == INVALID_VALUE
    assert b.call("pool_trim", pool) == INVALID_VALUE
    assert b.call("pool_alloc", pool, 64)[0] == INVALID_VALUE
    assert b.call("pool_set", pool) == INVALID_VALUE
    assert b.good("pool_current") != pool
    assert b.call("pool_export", pool)[0] == INVALID_VALUE
    assert b.call("pointer_export", theirs)[0] == INVALID_VALUE
    assert b.call("get", theirs)[0] == INVALID_VALUE
    assert b.call("close", theirs) == INVALID_VALUE, "it was not opened by cuIpcOpenMemHandle"
    assert b.call("pool_access", pool, 1)[0] == NOT_SUPPORTED
    assert b.call("pool_access", pool) == [0, 3]
    assert b.call("pool_destroy", pool) == INVALID_VALUE, "memory of it is open"
    asked = {2: 2, 9: 0, 10: 0, 11: theirs, 12: 100000, 13: 1, 14: 0, 17: pool}
    for number, value in asked.items():
        assert b.call("pointer", number, theirs) == [0, value], number
    assert b.good("read", theirs, 1)
    assert b.call("pool_free", theirs) == 0
    assert b.call("pool_destroy", pool) == 0
    again = b.good("pool_import", shared.its_fd)
    assert b.good("read", b.good("pointer_import", again, data), 1)


def test_what_is_exported(shared: Shared) -> None:
    a = shared.a
    pool, plain, late = shared.pool, a.good("pool_create", 0), a.good("pool_create")
    mine, data = shared.gives(LARGE)
    fd = a.good("pool_export", pool)
    assert fd != shared.fd
    for kind, flags in ((0, 0), (2, 0), (3, 0), (8, 0), (1, 1)):
        assert a.call("pool_export", pool, kind, flags)[0] == INVALID_VALUE
    assert a.call("pool_export", pool, 1, 0, False)[0] == INVALID_VALUE
    for other in (0, plain, a.good("pool_current")):
        assert a.call("pool_export", other)[0] == INVALID_VALUE
    for address in (0, 16, mine + 16, a.good("pool_alloc", plain, 64), a.good("alloc", 64), a.good("alloc_async", 64)):
        assert a.call("pointer_export", address)[0] == INVALID_VALUE
    assert a.call("pointer_export", mine, False)[0] == INVALID_VALUE
    early = a.good("pool_alloc", late, 64)
    assert a.call("pointer_export", early)[0] == INVALID_VALUE, "its pool has not been exported"
    assert a.good("pool_export", late)
    assert a.call("pointer_export", early)[0] == 0
    assert a.call("pool_set", late) == 0
    assert a.call("pointer_export", a.good("alloc_async", 64))[0] == 0, "of the current pool"
    assert a.call("pointer", 14, mine) == [0, 1]
    assert a.call("pool_free", mine) == 0
    assert a.call("pointer_export", mine)[0] == INVALID_VALUE
    for types in (2, 4):
        assert a.call("pool_create", types)[0] == INVALID_VALUE
    assert data


def test_what_is_imported(shared: Shared, tmp_path: Path) -> None:
    a, b = shared.a, shared.b
    _, data = shared.gives(LARGE)
    memory = pass_on(a, a.good("export", a.good("create", LARGE)), b, tmp_path)
    fd, pool = shared.its_fd, shared.its_pool
    assert b.call("pool_import", fd, 0)[0] == INVALID_VALUE
    assert b.call("pool_import", fd, 2)[0] == NOT_SUPPORTED
    assert b.call("pool_import", fd, 4) == [INVALID_VALUE, 0], "told before the error (580.159.04, measured)"
    assert b.call("pool_import", fd, 1, 1)[0] == INVALID_VALUE
    assert b.call("pool_import", fd, 1, 0, False)[0] == INVALID_VALUE
    assert b.call("pool_import", 0)[0] == INVALID_VALUE
    for descriptor in (-1, 1, 1 << 20):
        assert b.call("pool_import", descriptor)[0] == UNKNOWN
    assert b.call("pool_import", memory)[0] == NOT_SUPPORTED, "it is memory"
    assert b.call("import", fd)[0] == NOT_SUPPORTED, "it is a pool"
    assert b.call("pointer_import", pool, data, False)[0] == INVALID_VALUE
    assert b.call("pointer_import", pool, None)[0] == INVALID_VALUE
    for other in (0, b.good("pool_create"), b.good("pool_current")):
        assert b.call("pointer_import", other, data) == [INVALID_VALUE, 0]
    assert a.call("pointer_import", shared.pool, data)[0] == INVALID_VALUE, "it has not been imported"
    for none in (bytes(64).hex(), "ff" * 64):
        assert b.call("pointer_import", pool, none)[0] == INVALID_VALUE
    for place in (0, 9, 25, 33):
        forged = bytearray(bytes.fromhex(data))
        forged[place] ^= 1
        assert b.call("pointer_import", pool, forged.hex())[0] == INVALID_VALUE, place
    assert b.call("pointer_import", pool, data)[0] == 0


def test_the_process_that_made_it_may_import_it(shared: Shared) -> None:
    a = shared.a
    mine, data = shared.gives(LARGE, 5)
    pool = a.good("pool_import", shared.fd)
    assert pool != shared.pool
    theirs = a.good("pointer_import", pool, data)
    assert theirs != mine
    assert a.good("read", theirs, LARGE) == [[5, LARGE]]
    assert a.call("pool_free", mine) == 0
    assert a.call("pool_free", theirs) == 0


def test_no_context_is_needed(shared: Shared) -> None:
    a, b = shared.a, shared.b
    mine, _ = shared.gives(LARGE, 2)
    assert a.call("without_context", "pool_export", shared.pool)[0] == 0
    data = a.call("without_context", "pointer_export", mine)[1]
    assert b.call("without_context", "pool_import", shared.its_fd) == [0, shared.its_pool]
    result, theirs = b.call("without_context", "pointer_import", shared.its_pool, data)
    assert result == 0
    assert b.good("read", theirs, 1) == [[2, 1]]
    assert b.call("without_context", "free", theirs) in (0, 201), "freed; then there is nothing to synchronise"
    assert b.call("read", theirs, 1)[0] == INVALID_VALUE


def test_captures_forbid_it(shared: Shared) -> None:
    a, b = shared.a, shared.b
    mine, data = shared.gives(LARGE)
    broken = 2
    for who, call in (
        (a, ("pool_export", shared.pool)),
        (a, ("pointer_export", mine)),
        (b, ("pool_import", shared.its_fd)),
        (b, ("pointer_import", shared.its_pool, data)),
    ):
        found, status = who.call("in_capture", who.good("stream"), *call)
        assert (found[0], status) == (CAPTURE_UNSUPPORTED, broken), call
    stream = a.good("stream")
    assert a.call("in_capture", stream, "pool_alloc", shared.pool, 64, stream) == [[NOT_SUPPORTED, 0], 1]


def test_after_a_fork(shared: Shared) -> None:
    mine, data = shared.gives(LARGE)
    for who, call in (
        (shared.a, ("pool_export", shared.pool)),
        (shared.a, ("pointer_export", mine)),
        (shared.b, ("pool_import", shared.its_fd)),
        (shared.b, ("pointer_import", shared.its_pool, data)),
    ):
        assert who.call("in_a_fork", *call)[0] == NOT_INITIALIZED, call


def test_freed_memory_is_there_while_it_is_open(shared: Shared) -> None:
    a, b = shared.a, shared.b
    mine, data = shared.gives(LARGE, 5)
    theirs = b.good("pointer_import", shared.its_pool, data)
    assert a.call("pool_free", mine) == 0
    assert b.good("read", theirs, LARGE) == [[5, LARGE]]
    assert b.good("pointer_import", shared.its_pool, data) == theirs
    assert b.call("fill", theirs, 6, LARGE) == 0
    assert b.call("pool_free", theirs) == 0


def test_a_pool_is_destroyed_while_others_have_it(shared: Shared) -> None:
    a, b = shared.a, shared.b
    mine, data = shared.gives(LARGE, 5)
    assert a.call("pool_destroy", shared.pool) == 0
    assert a.call("pool_export", shared.pool)[0] == INVALID_VALUE
    theirs = b.good("pointer_import", shared.its_pool, data)
    assert b.good("read", theirs, LARGE) == [[5, LARGE]]
    assert a.call("pool_free", mine) == 0
    assert b.good("read", theirs, LARGE) == [[5, LARGE]]


def test_the_exporter_dies(shared: Shared) -> None:
    _, data = shared.gives(LARGE, 9)
    theirs = shared.b.good("pointer_import", shared.its_pool, data)
    shared.a.kill()
    assert shared.b.good("read", theirs, LARGE) == [[9, LARGE]]
    assert shared.b.good("pointer_import", shared.its_pool, data) == theirs
    assert shared.b.call("fill", theirs, 1, LARGE) == 0
    assert shared.b.call("pool_free", theirs) == 0


def test_no_context_has_what_is_open(shared: Shared) -> None:
    _, data = shared.gives(LARGE, 4)
    theirs = shared.b.good("pointer_import", shared.its_pool, data)
    assert shared.b.call("reset") == 0
    assert shared.b.call("prepare") == 0
    assert shared.b.good("read", theirs, LARGE) == [[4, LARGE]]
    assert shared.b.good("pointer_import", shared.its_pool, data) == theirs


def test_an_importer_dies(shared: Shared, peer: Callable[..., Peer], tmp_path: Path) -> None:
    mine, data = shared.gives(LARGE)
    theirs = shared.b.good("pointer_import", shared.its_pool, data)
    assert shared.b.call("fill", theirs, 3, LARGE) == 0
    shared.b.kill()
    assert shared.a.good("read", mine, LARGE) == [[3, LARGE]]
    c = peer()
    pool = c.good("pool_import", pass_on(shared.a, shared.fd, c, tmp_path))
    assert c.good("read", c.good("pointer_import", pool, data), LARGE) == [[3, LARGE]]


def test_a_pool_grows_after_it_was_imported(shared: Shared) -> None:
    for value in (1, 2, 3):
        _, data = shared.gives(40 * MIB, value)
        theirs = shared.b.good("pointer_import", shared.its_pool, data)
        assert shared.b.good("read", theirs, 40 * MIB) == [[value, 40 * MIB]]


@remote
def test_what_has_ended_is_not_imported(shared: Shared, peer: Callable[..., Peer], tmp_path: Path) -> None:
    """A driver gives whoever has the pool what was freed, and keeps pools of processes that ended (docs/assumed.md)."""
    a, b, c = shared.a, shared.b, peer()
    mine, data = shared.gives(LARGE)
    assert a.call("pool_free", mine) == 0
    assert eventually(lambda: b.call("pointer_import", shared.its_pool, data)[0] == INVALID_VALUE, 20)
    fd, handle = pass_on(a, shared.fd, c, tmp_path), a.gives(a.good("alloc", LARGE))
    a.kill()
    assert eventually(lambda: c.cannot("open", handle, "close"), 20)
    assert c.call("pool_import", fd)[0] == INVALID_HANDLE


@pytest.mark.parametrize("transport", ["native", "shmem"])
@pytest.mark.parametrize("end", ["destroy", "kill"])
def test_a_pool_counts_once(transport: str, end: str, tmp_path: Path) -> None:
    """For its owner all that it ever took, since others may have it; then for one after the other of those who do."""
    with Worker(transport=transport, TF_GPU_MEMORY_LIMIT="300") as worker, ExitStack() as stack:
        a, b, c, watcher = (stack.enter_context(Peer(worker.env)) for _ in range(4))
        size = 100 * MIB
        before = watcher.free_bytes()

        def left(used: int) -> Callable[[], bool]:
            return lambda: before - watcher.free_bytes() == used

        one = Shared(a, b, tmp_path)
        pool_of_c = c.good("pool_import", pass_on(a, one.fd, c, tmp_path))
        mine, data = one.gives(size)
        other, _ = one.gives(size)
        assert left(2 * size)()
        opened = [who.good("pointer_import", pool, data) for who, pool in ((b, one.its_pool), (c, pool_of_c))]
        assert left(2 * size)(), "who opens it pays nothing"
        assert watcher.call("alloc", 2 * size)[0] == OUT_OF_MEMORY
        assert a.call("pool_free", other) == 0
        assert left(2 * size)(), "others may have it"
        (first, _), (second, _) = one.gives(size // 2), one.gives(size // 2)
        assert left(2 * size)(), "it takes what was freed"
        assert a.call("pool_alloc", one.pool, 2 * size)[0] == OUT_OF_MEMORY
        if end == "destroy":
            for address in (mine, first, second):
                assert a.call("pool_free", address) == 0
            assert a.call("pool_destroy", one.pool) == 0
            assert eventually(left(2 * size), 20)
        a.kill()
        assert eventually(left(2 * size), 20)
        assert watcher.call("alloc", 2 * size)[0] == OUT_OF_MEMORY, "two still have it"
        b.kill()
        assert eventually(left(2 * size), 20)
        assert watcher.call("alloc", 2 * size)[0] == OUT_OF_MEMORY, "one still has it"
        # It may just be passing from b to c, and counts for both in that moment.
        assert c.call("pool_free", opened[1]) == 0
        assert eventually(left(2 * size), 20), "it still has the pool"
        assert c.call("pool_destroy", pool_of_c) == 0
        assert eventually(left(0), 20)
        assert watcher.call("alloc", 2 * size)[0] == 0


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_a_pool_that_nobody_was_given_counts_as_any(transport: str) -> None:
    with Worker(transport=transport, TF_GPU_MEMORY_LIMIT="300") as worker, Peer(worker.env) as a:
        before = a.free_bytes()
        pool = a.good("pool_create")
        mine = a.good("pool_alloc", pool, 200 * MIB)
        assert before - a.free_bytes() == 200 * MIB
        assert a.call("pool_free", mine) == 0
        assert a.free_bytes() == before
        assert a.call("alloc", 200 * MIB)[0] == 0


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_pools_of_another_worker(transport: str, tmp_path: Path) -> None:
    with Worker(transport=transport) as one, Worker(transport=transport) as other, ExitStack() as stack:
        a = stack.enter_context(Peer(one.env))
        b = stack.enter_context(Peer(other.env, TF_ENABLE_LOG="1"))
        pool = a.good("pool_create")
        fd = pass_on(a, a.good("pool_export", pool), b, tmp_path)
        assert b.call("pool_import", fd) == [INVALID_HANDLE, 0]
        b.end()
        assert "only clients of one worker share" in b.errors()
