"""tensor-fusion trace: the calls of a program and its children in one file of Chrome's trace event format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stack import harness
from stack.harness import Worker, whole_stack

from tensor_fusion.abi import native_file
from tensor_fusion.timeline import Recorded, _write
from tensor_fusion.timeline_worker import SESSIONS, Clock

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]

PROGRAM = """
import ctypes, os, subprocess, sys, threading
cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
out, address, by = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.byref
assert nvml.nvmlInit_v2() == 0
child = os.fork()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(by(out), 0) == 0
assert cuda.cuCtxSetCurrent(out) == 0
assert cuda.cuMemAlloc_v2(by(address), ctypes.c_size_t(4096)) == 0
cuda.cuModuleGetFunction(None, None, b'a "name" \\\\ ')
cuda.cuEventCreate(by(out), 0)
cuda.cuCtxSynchronize()
thread = threading.Thread(target=cuda.cuCtxGetCurrent, args=(by(out),))
thread.start()
thread.join()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def worker(python_worker: Worker) -> Worker:
    return python_worker


def trace(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tensor_fusion", "trace", *map(str, arguments)],
        env=harness.clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def events(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    whole = json.loads(path.read_text())
    return whole["traceEvents"], whole["otherData"]


def names(found: Sequence[dict[str, Any]], kind: str, category: str) -> list[str]:
    return [event["name"] for event in found if event["ph"] == kind and event.get("cat") == category]


def test_calls_of_a_program_and_its_child(worker: Worker, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    done = trace("-o", out, "--connect", worker.connection, "--", sys.executable, "-c", PROGRAM, "7")
    assert done.returncode == 7, done.stderr
    found, other = events(out)
    assert (other["processes"], other["damaged"]) == (2, [])
    assert [session["clock"] for session in other["worker"]] == ["the client's"] * 2
    processes = {event["pid"]: event["args"]["name"] for event in found if event["name"] == "process_name"}
    sessions = {pid: processes.pop(pid) for pid in list(processes) if pid >= SESSIONS}
    assert len(processes) == 2
    assert sessions == {SESSIONS + pid: f"worker, for {pid}" for pid in processes}
    for pid, name in processes.items():
        assert name == f"{Path(sys.executable).resolve().name[:15]} {pid}" or name.startswith("python")
        own = [event for event in found if event["pid"] == pid]
        called = names(own, "X", "call")
        assert called[-8:-1] == [
            "cuInit",
            "cuDevicePrimaryCtxRetain",
            "cuCtxSetCurrent",
            "cuMemAlloc_v2",
            "cuModuleGetFunction",
            "cuEventCreate",
            "cuCtxSynchronize",
        ]
        assert "wait: memory_alloc" in names(own, "X", "frame")
        assert "cuEventCreate" in names(own, "i", "frame")
        threads = {event["tid"] for event in own if event["ph"] == "X"}
        assert threads == {event["tid"] for event in own if event["name"] == "thread_name"}
        assert len(threads) == 2
        texts = {event["name"]: event["args"]["call"] for event in own if event.get("cat") == "call"}
        quoted = r'cuModuleGetFunction(hfunc=NULL, hmod=NULL, name="a \"name\" \\ ") = CUDA_ERROR_INVALID_HANDLE (400)'
        assert texts["cuModuleGetFunction"] == quoted
        # A frame lies inside the call that waited for it.
        by_name = {event["name"]: event for event in own if event["ph"] == "X"}
        call, frame = by_name["cuMemAlloc_v2"], by_name["wait: memory_alloc"]
        assert call["ts"] <= frame["ts"] and frame["ts"] + frame["dur"] <= call["ts"] + call["dur"]
    assert other["calls"] == len(names(found, "X", "call"))
    assert f"{other['calls']:,} calls" in done.stderr


WORK = """
import ctypes, os, sys
cuda = ctypes.CDLL("libcuda.so.1")
out, address, stream, by, size = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p(), ctypes.byref, ctypes.c_size_t
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(by(out), 0) == 0
assert cuda.cuCtxSetCurrent(out) == 0
assert cuda.cuMemAlloc_v2(by(address), size(1 << 22)) == 0
assert cuda.cuStreamCreate(by(stream), 1) == 0
for _ in range(5):
    assert cuda.cuMemsetD8Async(address, 1, size(1 << 22), stream) == 0
assert cuda.cuStreamSynchronize(stream) == 0
data = ctypes.create_string_buffer(64)
assert cuda.cuMemcpyDtoH_v2(data, address, size(64)) == 0
assert data.raw == bytes([1]) * 64
"""


def traced(worker: Worker, source: str, out: Path, code: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    done = trace("-o", out, "--connect", worker.connection, "--", sys.executable, "-c", source)
    assert done.returncode == code, done.stderr
    return *events(out), done.stderr


def test_the_workers_side_stands_beside_the_calls(worker: Worker, tmp_path: Path) -> None:
    found, other, said = traced(worker, WORK, tmp_path / "t.json")
    [session] = other["worker"]
    assert (session["lost"], session["error_us"], other["damaged"]) == (0, 0.0, [])
    executed = {event["args"]["frame"]: event for event in found if event.get("cat") == "executor"}
    sent = {event["args"]["frame"]: event for event in found if event.get("cat") == "frame"}
    # Every frame of the client, under its own number, after it was sent and before its answer was there. The first of
    # all, which asks for the records, has none; the last, which brings them in, may come too late for its own.
    assert set(sent) - set(executed) <= {1, max(sent)}
    for number, event in executed.items():
        frame = sent[number]
        assert event["name"] == frame["name"].removeprefix("wait: ")
        if frame["ph"] == "X":
            assert frame["ts"] <= event["ts"] and event["ts"] + event["dur"] <= frame["ts"] + frame["dur"]
    # The GPU worked on each of the five sets, one after the other, after the frame was executed.
    rows = {
        event["tid"]: event["args"]["name"]
        for event in found
        if event["name"] == "thread_name" and event["pid"] >= SESSIONS
    }
    worked = [event for event in found if event.get("cat") == "gpu"]
    sets = [event for event in worked if event["name"] == "cuMemsetD8Async"]
    assert len(sets) == 5 and len({event["tid"] for event in sets}) == 1
    assert rows[sets[0]["tid"]].startswith("GPU 0, stream 0x406")
    assert sum(event["dur"] for event in sets) > 0
    for before, after in pairwise(sets):
        assert before["ts"] + before["dur"] <= after["ts"]
        assert executed[after["args"]["frame"]]["ts"] <= after["ts"]
    assert any(event["name"].startswith("copy_out") for event in worked)
    assert {rows[event["tid"]] for event in worked} == {rows[sets[0]["tid"]], "GPU 0, legacy stream"}
    # The wait ended when the last of them was over.
    wait = next(event for event in found if event["name"] == "cuStreamSynchronize")
    assert wait["ts"] + wait["dur"] >= sets[-1]["ts"]
    # Arrows: from the call, over the executor, to the GPU.
    last = sets[-1]["args"]["frame"]
    arrow = [event for event in found if event.get("cat") == "flow" and event["id"].endswith(f".1.{last}")]
    assert sorted(event["ph"] for event in arrow) == ["f", "s", "t"]
    assert {event["ph"]: event["pid"] >= SESSIONS for event in arrow} == {"s": False, "t": True, "f": True}
    assert f"executed {session['frames']} frames" in said


def test_what_is_held_back_keeps_its_number(worker: Worker, tmp_path: Path) -> None:
    """What is behind a host function is executed after later frames, but shown from when it came, by its number."""
    source = (
        WORK
        + f"""
import time
HOST = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
slow = HOST(lambda _: time.sleep(0.2))
assert cuda.cuLaunchHostFunc(stream, slow, None) == 0
assert cuda.cuModuleLoadData(by(out), open({str(native_file("kernels.ptx"))!r}, "rb").read() + bytes(1)) == 0
"""
    )
    found, _, _ = traced(worker, source, tmp_path / "t.json")
    executed = [event for event in found if event.get("cat") == "executor"]
    names = {event["args"]["frame"]: event["name"] for event in executed}
    sent = {event["args"]["frame"]: event for event in found if event.get("cat") == "frame"}
    assert {number: sent[number]["name"].removeprefix("wait: ") for number in names} == names
    order = [event["name"] for event in sorted(executed, key=lambda event: event["ts"])]
    assert order.index("host_function_done") < order.index("image_load")
    number = next(number for number, name in names.items() if name == "image_load")
    assert number < next(number for number, name in names.items() if name == "host_function_done")
    begin, end = (e["ts"] for e in found if e.get("cat") == "held" and e["args"]["frame"] == number)
    assert end - begin > 100_000


@pytest.mark.parametrize(("end", "code"), [("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_a_program_that_ends_at_once_leaves_what_it_has(worker: Worker, tmp_path: Path, end: str, code: int) -> None:
    source = f"{WORK}\nimport time\ntime.sleep(0.2)\n{end}\n"
    found, other, _ = traced(worker, source, tmp_path / "t.json", code)
    assert "cuMemcpyDtoH_v2" in names(found, "X", "call")
    assert names(found, "X", "gpu").count("cuMemsetD8Async") == 5
    assert other["damaged"] == []


def test_a_program_that_becomes_another(worker: Worker, tmp_path: Path) -> None:
    """exec: one process, two connections, whose frames have the same numbers."""
    again = f"import time; time.sleep(0.2); os.execv(sys.executable, [sys.executable, '-c', {WORK!r}])"
    found, other, _ = traced(worker, f"{WORK}\n{again}\n", tmp_path / "t.json")
    assert [session["frames"] > 10 for session in other["worker"]] == [True, True]
    arrows = [event["id"] for event in found if event["ph"] == "t"]
    assert len({*arrows}) == len(arrows)
    assert {arrow.split(".")[1] for arrow in arrows} == {"1", "2"}


@pytest.mark.deep
def test_a_program_that_only_sends_is_seen_while_it_runs(worker: Worker, tmp_path: Path) -> None:
    """Nobody waits for an answer, so the connection's own thread takes the records; what has no room is counted."""
    source = (
        WORK
        + """
import time
began = time.monotonic()
for _ in range(20000):
    cuda.cuMemsetD8Async(address, 2, size(16), stream)
time.sleep(min(45, 6 + 30 * (time.monotonic() - began)))  # they are sent faster than they are executed
os._exit(0)
"""
    )
    found, other, _ = traced(worker, source, tmp_path / "t.json")
    [session] = other["worker"]
    executed = {event["args"]["frame"] for event in found if event.get("cat") == "executor"}
    assert len(executed) + session["lost"] >= 20000
    assert len(executed) > 1000


def test_clocks() -> None:
    same = Clock(((100, 150, 200, True), (900, 950, 1000, True)))
    assert (same.shared, same.error, same.client(500)) == (True, 0.0, 500)
    # The same machine's name, and yet another clock: a time namespace.
    moved = Clock(((100, 10150, 200, True),))
    assert (moved.shared, moved.steady, moved.error, moved.client(10150)) == (False, False, 50.0, 150)
    drifting = Clock(((100, 10150, 200, False), (2100, 12160, 2120, False)))
    assert drifting.error == 50.0 and drifting.steady
    assert drifting.client(10150) == 150 and drifting.client(12160) == 2110
    assert 1129 < drifting.client(11155) < 1131


def test_a_clock_of_its_own_is_written_with_its_bound(tmp_path: Path) -> None:
    records = tmp_path / "7.jsonl"
    ran = {"ran": 3, "op": "start", "thread": 1, "received": 10000, "begin": 11000, "end": 12000, "how": "later"}
    gpu = {"gpu": 3, "first": 2, "op": "f", "thread": 4, "device": 1, "stream": 2, "given": 13000, "done": 14000}
    lines = [
        {"program": "p"},
        {"clock": 10000, "begin": 2000, "end": 4000, "same": False},
        {"clock": "x", "begin": 2000, "end": 4000, "same": False},
        {**ran, "result": 0},
        {"reply": 1, "op": "start", "at": 12500, "result": 7},
        {**gpu, "result": 0},
        {"ran": 4},
        {"gpu": 1e999, "first": 1},
        {"lost": 5},
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorded = Recorded(tmp_path / "out.json")
    with recorded.path.open("w") as file:
        _write([records], recorded, file)
    found, other = events(recorded.path)
    [session] = other["worker"]
    assert session["clock"] == "its own, compared at the beginning only"
    assert (session["offset_us"], session["error_us"], session["lost"]) == (7.0, 1.0, 5)
    by_name = {event["name"]: event for event in found if event.get("cat") in ("executor", "gpu", "answer")}
    assert by_name["start"]["ts"] == 4.0 and by_name["f"]["ts"] == 6.0
    assert by_name["answer: start"]["args"] == {"thread": 1, "result": 7, "frame": 3}
    assert {event["ph"]: event["ts"] for event in found if event.get("cat") == "held"} == {"b": 3.0, "e": 4.0}
    assert any(
        event["args"]["name"] == "GPU 1, default stream of thread 4"
        for event in found
        if event["ph"] == "M" and "name" in event["args"]
    )
    assert other["damaged"] == ["Process 7: 3 damaged records left out, the first in line 3."]
    assert "1.0 µs" in " ".join(recorded.notices())


def test_a_program_without_calls(worker: Worker, tmp_path: Path) -> None:
    done = trace("-o", tmp_path / "t.json", "--connect", worker.connection, "--", "true")
    assert done.returncode == 0
    assert "no process of the program called CUDA" in done.stderr
    found, other = events(tmp_path / "t.json")
    assert (found, other["processes"]) == ([], 0)
    assert "no session recorded anything" in other["worker"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-o", "{}/there/is/no/folder", "--", "true"], 1, "cannot be written"),
        (["-o", "{}", "--", "true"], 1, "cannot be written"),
        (["-o", "{}/t.json", "--", "no-such-program"], 127, "was not found"),
        (["-o", "{}/t.json"], 2, "Missing argument"),
    ],
)
def test_wrong_input_gets_one_sentence(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    given = [argument.format(tmp_path) for argument in arguments]
    done = trace("--connect", "native+127.0.0.1+9+0", *given)
    assert done.returncode == code
    assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "t.json").exists()


def test_records_that_cannot_be_written_are_said(worker: Worker, tmp_path: Path) -> None:
    """The program goes on."""
    env = {**worker.env, "TF_TRACE_PATH": str(tmp_path / "no/folder/%p")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "0"], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0
    assert done.stderr.count("this process is not traced") == 2


def test_damaged_records_are_counted(tmp_path: Path) -> None:
    good = '{"call": "f", "text": "() = 0", "thread": 1, "begin": 5000, "ns": 2000}\n'
    records = tmp_path / "123.jsonl"
    head = '{"pid": 123, "program": "p"}\n'
    bad = [
        "nonsense\n",
        "[]\n",
        '"program"\n',
        '{"call": "f"}\n',
        '{"thread": "x", "call": "g"}\n',
        "\0\n",
        '{"call": "f", "te',
    ]
    records.write_text(head + good + "".join(bad[:-1]) + good + bad[-1])
    recorded = Recorded(tmp_path / "out.json")
    with recorded.path.open("w") as file:
        _write([records], recorded, file)
    found, other = events(recorded.path)
    assert next(event for event in found if event["ph"] == "X")["ts"] == 5.0
    assert other["calls"] == 2
    assert other["damaged"] == ["Process 123: 7 damaged records left out, the first in line 3."]


def test_help_fits_a_terminal() -> None:
    done = trace("--help", COLUMNS="80", HOME=os.environ.get("HOME", "/"))
    assert max(map(len, done.stdout.splitlines())) <= 80
