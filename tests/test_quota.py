"""The quota page: reservations under limits, at once and killed in the middle, and what a session can write of it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from native_code import includes, sources
from stack.harness import COMPILER, Worker, whole_stack
from stranger import Stranger

from tensor_fusion.worker.quota import CELL_BYTES, CELLS, PAGE_BYTES, ROWS, TABLE, QuotaPage

ROOT = Path(__file__).parent.parent
FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
NEIGHBOUR = CELLS + CELL_BYTES  # the cell of row 1

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library, and the program of what several processes do."""
    out = tmp_path_factory.mktemp("quota")
    parts, folders = [str(path) for path in sources("base", "quota")], includes("base")
    library = ["-shared", "-fPIC", *parts, "-o", str(out / "libquota.so")]
    program = [str(ROOT / "tests/native/test_quota.c"), *parts, "-o", str(out / "test_quota")]
    for words in (library, program):
        subprocess.run([COMPILER or "", *FLAGS, *folders, *words], check=True, timeout=60)
    return out


class Mapped(ctypes.Structure):
    """struct tp_quota"""

    _fields_ = (("page", ctypes.c_void_p), ("cell", ctypes.c_void_p), ("row", ctypes.c_uint32))


class Rows:
    """A page, as the sessions in its rows use it; sizes and limits in bytes."""

    def __init__(self, built: Path, limit: int = 0, rows: int = 5) -> None:
        self.page = QuotaPage(limit)
        self._program = built / "test_quota"
        self._native = ctypes.CDLL(str(built / "libquota.so"))
        self._native.tp_quota_reserve.restype = self._native.tp_quota_map.restype = ctypes.c_bool
        for name in ("used", "limit", "stored"):
            getattr(self._native, f"tp_quota_{name}").restype = ctypes.c_uint64
        self._mapped: dict[int, Mapped] = {}
        assert [self.page.take_row() for _ in range(rows)] == list(range(rows))

    def of(self, row: int) -> Mapped:
        if row not in self._mapped:
            self._mapped[row] = Mapped()
            words = (self.page.read_fd, self.page.fd, ctypes.c_uint32(row))
            assert self._native.tp_quota_map(ctypes.byref(self._mapped[row]), *words)
        return self._mapped[row]

    def _call(self, name: str, row: int, *words: ctypes.c_uint32 | ctypes.c_uint64) -> int:
        return int(getattr(self._native, f"tp_quota_{name}")(ctypes.byref(self.of(row)), *words))

    def reserve(self, row: int, size: int, device: int = 0) -> bool:
        return bool(self._call("reserve", row, ctypes.c_uint32(device), ctypes.c_uint64(size)))

    def take_over(self, row: int, size: int) -> None:
        self._call("take_over", row, ctypes.c_uint32(0), ctypes.c_uint64(size))

    def free(self, row: int, size: int) -> None:
        self._call("free", row, ctypes.c_uint32(0), ctypes.c_uint64(size))

    def seen(self, row: int, device: int = 0) -> tuple[int, int]:
        """In use and limit, as the client of the row is told."""
        return self._call("used", row, ctypes.c_uint32(device)), self._call("limit", row)

    def tell(self, row: int, contexts: int) -> None:
        self._native.tp_quota_tell(ctypes.byref(self.of(row)), (ctypes.c_uint64 * 5)(1, 2, 3, 4, contexts))

    def store(self, row: int, size: int) -> None:
        self._call("store", row, ctypes.c_uint64(size))

    def stored(self, row: int) -> int:
        return self._call("stored", row)

    def run(self, case: str) -> str:
        """What the program says of the case, in processes of its own that have the first rows."""
        fds = (self.page.read_fd, self.page.fd)
        command = [str(self._program), case, *map(str, fds)]
        done = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


# ---- one process ----


def test_layout_and_seal() -> None:
    page = QuotaPage(7 << 20)
    try:
        with mmap.mmap(page.fd, PAGE_BYTES) as view:
            assert struct.unpack_from("<QQQQ", view) == (0x5446_4C49_4D49_5432, 7 << 20, 1024, 0)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(page.fd, 4096)
    finally:
        page.close()


def test_rows_are_lowest_first_and_end() -> None:
    page = QuotaPage(0)
    try:
        assert [page.take_row() for _ in range(ROWS)] == list(range(ROWS))
        assert page.take_row() is None
        page.release_row(7)
        page.release_row(3)
        assert page.take_row() == 3
    finally:
        page.close()


def test_a_limit_for_all(built: Path) -> None:
    rows = Rows(built, 1000)
    assert rows.reserve(0, 600) and not rows.reserve(1, 401) and rows.reserve(1, 400) and not rows.reserve(2, 1)
    assert rows.reserve(2, 1000, device=15)
    assert not rows.reserve(0, 1, device=16) and not rows.reserve(0, 2**64 - 1, device=1)
    assert rows.seen(0) == (1000, 1000)
    rows.free(0, 100)
    assert rows.seen(0) == (900, 1000)
    rows.free(0, 10**9)
    assert rows.seen(1) == (400, 1000) and rows.page.held(0)[0] == 0 and rows.page.held(1)[0] == 400
    assert rows.reserve(1, 7, device=3) and rows.page.held(1)[3] == 7
    rows.page.release_row(1)
    assert [rows.seen(0, device)[0] for device in (0, 3, 15)] == [0, 0, 1000]


def test_huge_numbers_come_out_large(built: Path) -> None:
    """A session that was taken over writes into its cell what it likes: that must not make others pass a limit."""
    rows = Rows(built)
    assert rows.reserve(0, 2**63) and rows.reserve(1, 2**63) and not rows.reserve(0, 2**63)
    assert rows.seen(2) == (2**64 - 1, 0)
    rows = Rows(built, 1000)
    rows.take_over(0, 2**63)
    rows.take_over(1, 2**63)
    assert rows.seen(2) == (1000, 1000) and not rows.reserve(2, 1)


def test_without_a_page_there_is_no_limit(built: Path) -> None:
    native = ctypes.CDLL(str(built / "libquota.so"))
    native.tp_quota_reserve.restype = ctypes.c_bool
    native.tp_quota_limit.restype = native.tp_quota_used.restype = ctypes.c_uint64
    words = (None, ctypes.c_uint32(0), ctypes.c_uint64(1 << 50))
    assert native.tp_quota_reserve(*words) and native.tp_quota_limit(None) == native.tp_quota_used(*words[:2]) == 0
    native.tp_quota_take_over(*words)
    native.tp_quota_free(*words)


def test_a_row_that_is_none_is_not_mapped(built: Path) -> None:
    rows = Rows(built)
    mapped = Mapped()
    words = (ctypes.byref(mapped), rows.page.read_fd, rows.page.fd, ctypes.c_uint32(ROWS))
    assert not rows._native.tp_quota_map(*words)


def test_sessions_of_a_tenant_have_a_limit_together(built: Path) -> None:
    rows = Rows(built, 1000)
    for row, tenant, limit in ((0, b"a", 300), (1, b"a", 300), (2, b"b", 0), (4, b"c", 5000)):
        rows.page.let(row, tenant, limit)
    assert rows.reserve(0, 200) and rows.reserve(1, 100) and not rows.reserve(0, 1)
    assert rows.seen(0) == rows.seen(1) == (300, 300)
    assert rows.seen(2) == rows.seen(3) == rows.seen(4) == (300, 1000)
    assert rows.reserve(0, 300, device=1) and not rows.reserve(1, 1, device=1)
    assert rows.reserve(2, 500) and rows.reserve(3, 190) and not rows.reserve(4, 11)
    rows.free(1, 100)
    assert rows.seen(0) == (200, 300) and rows.reserve(3, 60)
    assert rows.seen(0) == (250, 300), "what the worker has left is less than what the tenant has"
    assert not rows.reserve(0, 51) and rows.reserve(0, 50)
    rows.page.limit(b"a", 400)
    assert rows.seen(0) == rows.seen(1) == (400, 400), "the worker has nothing left"
    rows.page.release_row(2)
    assert rows.reserve(1, 150) and not rows.reserve(1, 1)
    rows.page.limit(b"a", 100)
    assert rows.seen(1) == (100, 100) and not rows.reserve(1, 1)
    rows.take_over(1, 7)
    rows.page.release_row(0)
    assert rows.seen(1) == (100, 100), "157 are above the limit of 100"
    rows.free(1, 100)
    assert rows.seen(1) == (57, 100)
    for row in (1, 3, 4):
        rows.page.release_row(row)
    assert not any(rows.page.memory[24:]), "nothing is left of anybody"


def test_rows_of_new_clients_know_no_former_tenant(built: Path) -> None:
    rows = Rows(built, rows=ROWS)
    rows.page.let(0, b"a", 100, (3, 1))
    assert rows.reserve(0, 100, device=1) and rows.page.held(0)[:4] == (0, 100, 0, 0)
    rows.tell(0, 0b11)
    assert rows.page.figures(0).contexts == 0b1010
    assert rows.seen(0, 0) == (0, 100) and rows.seen(0, 1) == (100, 100)
    rows.page.release_row(0)
    assert rows.reserve(0, 10**12, device=1) and rows.seen(0, 1) == (10**12, 0)
    for row in range(ROWS):
        rows.page.let(row, row.to_bytes(2, "little"), 5)
    assert rows.reserve(ROWS - 1, 5) and not rows.reserve(ROWS - 1, 1) and rows.reserve(ROWS - 2, 5)


def test_what_was_stored_is_remembered_of_the_dead(built: Path) -> None:
    rows = Rows(built)
    rows.store(0, 100)
    rows.store(4, 20)
    assert rows.stored(0) == rows.stored(1) == 120
    rows.page.release_row(0)
    assert rows.stored(1) == 120
    rows.store(4, 2**64 - 20)
    rows.store(1, 7)
    rows.page.release_row(4)
    assert rows.stored(1) == 107


# ---- several processes ----


@pytest.fixture(params=["worker", "tenant"])
def limited(request: pytest.FixtureRequest, built: Path) -> Iterator[Rows]:
    """With 100 bytes for all, or for each of two tenants that have two rows each."""
    rows = Rows(built, 100 if request.param == "worker" else 0, rows=4)
    for row in range(4):
        if request.param == "tenant":
            rows.page.let(row, b"a" if row < 2 else b"b", 100)
    yield rows
    rows.page.close()


def test_of_two_at_the_limit_never_both_are_let_in(limited: Rows) -> None:
    """Each asks for 60 of 100 bytes, at once, 20,000 times. One of them gets in."""
    said = re.fullmatch(r"both (\d+) one (\d+) none (\d+)\n", limited.run("race"))
    assert said and tuple(map(int, said.groups())) == (0, 20000, 0), said


def test_many_that_reserve_and_free_never_pass_the_limit(limited: Rows) -> None:
    assert limited.run("crowd") == "done\n"
    assert [limited.page.held(row)[0] for row in range(4)] == [0] * 4


def test_a_session_killed_in_the_middle_leaves_nothing(limited: Rows) -> None:
    """The program goes through a reservation of 60 bytes by single steps and looks at the page at each; it kills the
    session when it has added them and not looked yet."""
    said = re.fullmatch(r"steps (\d+) added (\d+)\n", limited.run("steps"))
    assert said and int(said[1]) > 50 and int(said[2]) > 10, said
    limited.run("killed")
    assert limited.page.held(0)[0] == 60 and not limited.reserve(1, 41)
    limited.page.release_row(0)
    assert limited.page.take_row() == 0
    assert limited.reserve(1, 100) and limited.page.held(0)[0] == 0


def test_the_page_is_not_writable_outside_the_cell(limited: Rows) -> None:
    before = limited.page.memory[:]
    said = dict(re.findall(r"(\w+) (.*)\n", limited.run("walls")))
    read_only = {
        f"write_{what}": "signal 11" for what in ("limit", "rows", "about", "own_cell_of_the_page", "neighbour")
    }
    tried = {"mprotect": errno.EACCES, "clear": errno.EACCES, "map_to_write": errno.EACCES, "write_file": errno.EBADF}
    assert said["write_own_cell"] == "exit 0"
    assert {name: said[name] for name in read_only} == read_only
    assert {name: said[name] for name in tried} == {name: f"errno {number}" for name, number in tried.items()}
    assert re.fullmatch(r"errno \d+", said["write_memory"])
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 10):  # which has mseal
        grown = ("grow", "copy", "move", "become")
        assert {name: said[name] for name in grown} == dict.fromkeys(grown, f"errno {errno.EPERM}")
    after = limited.page.memory[:]
    assert before[:CELLS] == after[:CELLS] and before[NEIGHBOUR:] == after[NEIGHBOUR:]


# ---- the session itself ----


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=whole_stack) for kind in ("off", "basic")])
def test_what_a_session_has_of_the_page(kind: str) -> None:
    with Worker("--jail", kind, program=None, transport="native") as worker, Stranger(worker.port):
        (session,) = worker.sessions()
        folder = Path(f"/proc/{session.pid}")
        found = re.findall(
            r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) .*tensor-fusion-quota", (folder / "maps").read_text(), re.M
        )
        have = sorted((rights, int(offset, 16), int(end, 16) - int(begin, 16)) for begin, end, rights, offset in found)
        assert have == [("r--s", 0, PAGE_BYTES), ("rw-s", CELLS, CELL_BYTES)], have
        open_files = [str(path.readlink()) for path in (folder / "fd").iterdir() if path.is_symlink()]
        assert open_files and not [name for name in open_files if "quota" in name]


def test_offsets_are_as_the_page_of_formats_says() -> None:
    text = (ROOT / "docs/wire-format.md").read_text()
    for word in (f"{TABLE:,} + 32·row", f"{CELLS:,} + {CELL_BYTES:,}·row", f"{PAGE_BYTES:,} bytes"):
        assert word in text, word
