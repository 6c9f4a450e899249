"""tensor-fusion trace: the calls of a program and its children in one file of Chrome's trace event format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from stack import harness
from stack.harness import Worker, whole_stack

from tensor_fusion.timeline import Recorded, _write

pytestmark = whole_stack

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


@pytest.fixture(scope="module", params=["native", "shmem"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TRANSPORT", request.param)
        with Worker(program=Path(sys.executable)) as running:
            yield running


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
    assert "not recorded" in other["worker"]
    processes = {event["pid"]: event["args"]["name"] for event in found if event["name"] == "process_name"}
    assert len(processes) == 2
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
        assert "event_create" in names(own, "i", "frame")
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


def test_a_program_without_calls(worker: Worker, tmp_path: Path) -> None:
    done = trace("-o", tmp_path / "t.json", "--connect", worker.connection, "--", "true")
    assert done.returncode == 0
    assert "no process of the program called CUDA" in done.stderr
    found, other = events(tmp_path / "t.json")
    assert (found, other["processes"]) == ([], 0)


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
    assert other["damaged"] == ["Process 123: 7 records are damaged, the first in line 3; left out."]


def test_help_fits_a_terminal() -> None:
    done = trace("--help", COLUMNS="80", HOME=os.environ.get("HOME", "/"))
    assert max(map(len, done.stdout.splitlines())) <= 80
