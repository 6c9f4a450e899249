"""Names that the client answers for itself as driver 580.159.04 does: checkpoints, core dumps, the log, notices."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack.harness import Worker, whole_stack

pytestmark = whole_stack
PREAMBLE = """
import ctypes, os, sys
cuda = ctypes.CDLL("libcuda.so.1")
p, word, byte, size = ctypes.c_void_p, ctypes.c_uint, ctypes.c_ubyte, ctypes.c_size_t
ref = ctypes.byref
def context():
    assert cuda.cuInit(0) == 0
    now = p()
    assert cuda.cuDevicePrimaryCtxRetain(ref(now), 0) == 0
    assert cuda.cuCtxSetCurrent(now) == 0
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as running:
        yield running


def run(worker: Worker, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
        env=worker.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_checkpoints_tell_that_the_process_runs(worker: Worker) -> None:
    said = run(
        worker,
        """
        state, thread, me = word(7), word(7), os.getpid()
        assert cuda.cuCheckpointProcessGetState(me, ref(state)) == 3
        context()
        assert cuda.cuCheckpointProcessGetState(me, None) == 1
        assert (cuda.cuCheckpointProcessGetState(me, ref(state)), state.value) == (0, 0)
        assert cuda.cuCheckpointProcessGetRestoreThreadId(me, ref(thread)) == 0
        assert os.path.exists(f"/proc/{me}/task/{thread.value}")
        assert cuda.cuCheckpointProcessGetState(os.getppid(), ref(state)) == 3
        for gone in (0, -1, 999999999):
            assert cuda.cuCheckpointProcessGetState(gone, ref(state)) == 304
        reserved = (ctypes.c_uint64 * 8)(0, 1)
        assert cuda.cuCheckpointProcessLock(me, reserved) == 1
        assert cuda.cuCheckpointProcessUnlock(999999999, reserved) == 1
        assert [cuda.cuCheckpointProcessLock(me, None) for _ in range(2)] == [801, 801]
        for name in ("Checkpoint", "Restore", "Unlock"):
            assert getattr(cuda, f"cuCheckpointProcess{name}")(me, None) == 401
            assert getattr(cuda, f"cuCheckpointProcess{name}")(999999999, None) == 304
        """,
    )
    assert said.count("cuCheckpointProcessLock is not supported here") == 1


def test_core_dump_settings_are_remembered(worker: Worker) -> None:
    said = run(
        worker,
        """
        def get(kind, room=None, of=cuda.cuCoredumpGetAttributeGlobal):
            length = {5: 1024, 6: 1024, 7: 4}.get(kind, 1) if room is None else room
            value, n = ctypes.create_string_buffer(b"x" * 1500), size(length)
            return of(kind, value, ref(n)), value
        def put(kind, data, n=None, to=cuda.cuCoredumpSetAttributeGlobal):
            return to(kind, data, ref(size(len(data) if n is None else n)))
        for kind, bytes_ in ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1024), (6, 1024), (7, 4)):
            n = size(0)
            assert (cuda.cuCoredumpGetAttributeGlobal(kind, None, ref(n)), n.value) == (0, bytes_)
            assert get(kind, 0)[0] == 1
        for kind in (0, 8, -1, 1 << 30):
            assert get(kind)[0] == 1 and put(kind, b"1") == 1
        assert get(1, 8192)[0] == 1 and put(1, b"11") == 1 and put(1, b"") == 1
        assert cuda.cuCoredumpGetAttributeGlobal(1, None, None) == 1
        n = size(0)
        assert (cuda.cuCoredumpSetAttributeGlobal(5, None, ref(n)), n.value) == (0, 1024) # a driver tells the size, too
        assert get(5)[1].value == b""
        assert put(7, (3).to_bytes(4, "little")) == 0
        assert int.from_bytes(get(7)[1][:4], "little") == 3
        assert put(5, b"/tmp/core.%p\\0") == 0 and get(5)[1].value == b"/tmp/core.%p"
        assert get(5, 6)[1].value == b"/tmp/"
        assert put(5, b"x" * 1024) == 0 and len(get(5)[1].value) == 1023
        assert put(5, b"x" * 1025) == 1
        # Those of a context need one, and cuInit.
        assert get(1, of=cuda.cuCoredumpGetAttribute)[0] == 3
        assert cuda.cuInit(0) == 0
        assert get(1, of=cuda.cuCoredumpGetAttribute)[0] == 201
        assert cuda.cuCoredumpGetAttribute(1, None, None) == 1
        assert get(9, of=cuda.cuCoredumpGetAttribute)[0] == 1
        context()
        assert put(2, b"\\0", to=cuda.cuCoredumpSetAttribute) == 0
        assert get(2, of=cuda.cuCoredumpGetAttribute)[1][:1] == b"\\0"
        print("none yet", file=sys.stderr, flush=True)
        assert put(1, b"\\1") == 0 and put(1, b"\\1") == 0
        """,
    )
    assert said.partition("none yet")[2].count("core dumps of the GPU are not written") == 1
    assert "core dumps" not in said.partition("none yet")[0]


def test_the_log_is_empty(worker: Worker, tmp_path: Path) -> None:
    run(
        worker,
        f"""
        CALLBACK = ctypes.CFUNCTYPE(None, p, ctypes.c_int, ctypes.c_char_p, size)
        heard = []
        callback = CALLBACK(lambda *line: heard.append(line))
        first, second, at, n = p(), p(), word(7), size(4096)
        text = ctypes.create_string_buffer(b"x" * 4096)
        assert cuda.cuLogsRegisterCallback(callback, None, ref(first)) == 0
        assert cuda.cuLogsRegisterCallback(callback, None, ref(second)) == 0
        assert first.value and second.value and first.value != second.value
        assert cuda.cuLogsRegisterCallback(callback, None, None) == 0
        assert cuda.cuLogsRegisterCallback(None, None, ref(p())) == 1
        assert cuda.cuLogsCurrent(None, 0) == 1 and cuda.cuLogsCurrent(ref(at), 0) == 0
        context()
        assert cuda.cuMemFree_v2(p(0x1230)) == 1
        assert (cuda.cuLogsDumpToMemory(ref(at), text, ref(n), 0), n.value, text.value[:2]) == (0, 0, b"xx")
        n = size(4096)
        assert (cuda.cuLogsDumpToMemory(ref(word(7)), text, ref(n), 0), n.value) == (1, 0)
        for bad in ((ref(at), None, ref(size(4096)), 0), (None, text, None, 0), (None, text, ref(size(4)), 0)):
            assert cuda.cuLogsDumpToMemory(*bad) == 1
        path = {str(tmp_path / "log")!r}.encode()
        assert cuda.cuLogsDumpToFile(None, path, 0) == 0 and os.path.getsize(path) == 0
        assert cuda.cuLogsDumpToFile(None, path + b"/none", 0) == 1 and cuda.cuLogsDumpToFile(None, None, 0) == 1
        assert cuda.cuLogsUnregisterCallback(first) == 0 and cuda.cuLogsUnregisterCallback(first) == 1
        assert cuda.cuLogsUnregisterCallback(second) == 0 and cuda.cuLogsUnregisterCallback(None) == 1
        assert not heard
        """,
    )


def test_notifications_are_registered(worker: Worker) -> None:
    run(
        worker,
        """
        CALLBACK = ctypes.CFUNCTYPE(None, p, p, p)
        callback, one, two = CALLBACK(lambda *_: None), p(), p()
        register, end = cuda.cuDeviceRegisterAsyncNotification, cuda.cuDeviceUnregisterAsyncNotification
        assert register(0, callback, None, ref(one)) == 3
        context()
        assert register(0, callback, None, ref(one)) == 0 and register(0, callback, None, ref(two)) == 0
        assert one.value and one.value != two.value
        assert register(9, callback, None, ref(p())) == 101
        assert register(0, None, None, ref(p())) == 1 and register(0, callback, None, None) == 1
        assert end(9, one) == 101 and end(0, None) == 1
        assert cuda.cuLogsUnregisterCallback(one) == 1
        assert end(0, one) == 0 and end(0, one) == 1 and end(0, two) == 0
        """,
    )
