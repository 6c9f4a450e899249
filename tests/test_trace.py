"""TF_LOG_LEVEL=trace: a line for each call and frame, on both sides, and nothing that an untraced call would not do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from stack import harness
from stack.harness import Worker, whole_stack

from tensor_fusion.apigen.model import load
from tensor_fusion.client.files import client_environment

ROOT = Path(__file__).parent.parent
CALL = re.compile(r"\w+\(.*\) = .+, thread \d+, \d+\.\d{3} us")
EXPORTS: dict[str, list[str]] = json.loads((ROOT / "api/exports.json").read_text())
TRACE = {"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "trace"}

pytestmark = whole_stack

PREAMBLE = """
import ctypes, json, os, sys, threading
cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
out, word, address = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint64()
by, size = ctypes.byref, ctypes.c_size_t

def begin():
    assert cuda.cuInit(0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(by(out), 0) == 0
    assert cuda.cuCtxSetCurrent(out) == 0
"""


@pytest.fixture(scope="module", params=["native", "shmem"])
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Of a real stack over one transport, whose sessions trace into a file."""
    log = tmp_path_factory.mktemp("log") / "worker.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "TRANSPORT", request.param)
        with Worker(program=Path(sys.executable), TF_LOG_PATH=str(log), **TRACE) as running:
            running.log = log  # type: ignore[attr-defined]
            yield running


def run(worker: Worker, source: str, *arguments: str, **variables: str) -> tuple[str, list[str]]:
    """What the program printed, and the lines of its trace without their heads."""
    clean = harness.clean_environment(**variables)
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(source), *arguments],
        env={**clean, **client_environment(worker.connection, clean)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, [line.partition(": ")[2] for line in done.stderr.splitlines() if " TRACE " in line]


def calls(lines: Sequence[str]) -> list[str]:
    """The lines of calls, without thread and time."""
    found = [line for line in lines if not line.startswith("frame ")]
    assert not [line for line in found if not CALL.fullmatch(line)]
    return [line.rpartition(", thread ")[0] for line in found]


SHOWN = r"""
begin()
cuda.cuDeviceGetAttribute(by(word), 33, 0)
name = ctypes.create_string_buffer(100)
cuda.cuDeviceGetName(name, 100, 0)
cuda.cuMemAlloc_v2(by(address), size(4096))
cuda.cuStreamCreate(by(out), 1)
cuda.cuLaunchKernel(None, 1, 2, 3, 4, 5, 6, 7, ctypes.c_void_p(1), None, None)
cuda.cuModuleGetFunction(None, None, b'a "quoted" name\n' + b"x" * 100)
cuda.cuGetErrorName(700, by(out))
cuda.cuMemcpyDtoH_v2(ctypes.c_void_p(8), address, size(-1))
box = (ctypes.c_uint64 * 16)(3, 5, 2)
cuda.cuMemcpy2D_v2(box)
nvml.nvmlInit_v2()
nvml.nvmlDeviceGetHandleByIndex_v2(0, by(out))
memory = (ctypes.c_uint64 * 3)()
nvml.nvmlDeviceGetMemoryInfo(out, memory)
nvml.nvmlDeviceGetTemperature(out, 0, by(word))
nvml.nvmlErrorString(3)
"""

LINES = (
    r"cuInit\(Flags=0\) = CUDA_SUCCESS \(0\)",
    r"cuDevicePrimaryCtxRetain\(pctx=0x[0-9a-f]+->0x401[0-9a-f]+, dev=0\) = CUDA_SUCCESS \(0\)",
    r"cuCtxSetCurrent\(ctx=0x401[0-9a-f]+\) = CUDA_SUCCESS \(0\)",
    r"cuDeviceGetAttribute\(pi=0x[0-9a-f]+->\d+, attrib=CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, dev=0\) = CUDA_SUCCESS \(0\)",
    r'cuDeviceGetName\(name="Simulated NVIDIA [^"]+", len=100, dev=0\) = CUDA_SUCCESS \(0\)',
    r"cuMemAlloc_v2\(dptr=0x[0-9a-f]+->0x[0-9a-f]+, bytesize=4096\) = CUDA_SUCCESS \(0\)",
    r"cuStreamCreate\(phStream=0x[0-9a-f]+->0x406[0-9a-f]+, Flags=1\) = CUDA_SUCCESS \(0\)",
    r"cuLaunchKernel\(f=NULL, gridDim=\(1,2,3\), blockDim=\(4,5,6\), sharedMemBytes=7, hStream=CU_STREAM_LEGACY, "
    r"kernelParams=NULL, extra=NULL\) = CUDA_ERROR_INVALID_HANDLE \(400\)",
    r'cuModuleGetFunction\(hfunc=NULL, hmod=NULL, name="a \\"quoted\\" name\?x{48}"\.\.\.\) = '
    r"CUDA_ERROR_INVALID_HANDLE \(400\)",
    r'cuGetErrorName\(error=CUDA_ERROR_ILLEGAL_ADDRESS, pStr=0x[0-9a-f]+->"CUDA_ERROR_ILLEGAL_ADDRESS"\) = '
    r"CUDA_SUCCESS \(0\)",
    r"cuMemcpyDtoH_v2\(dstHost=0x8, srcDevice=0x[0-9a-f]+, ByteCount=18446744073709551615\) = "
    r"CUDA_ERROR_INVALID_VALUE \(1\)",
    r"cuMemcpy2D_v2\(pCopy=0x[0-9a-f]+->\{srcXInBytes=3, srcY=5, srcMemoryType=CU_MEMORYTYPE_DEVICE, .*\}\)"
    r" = CUDA_SUCCESS \(0\)",
    r"nvmlInit_v2\(\) = NVML_SUCCESS \(0\)",
    r"nvmlDeviceGetHandleByIndex_v2\(index=0, device=0x[0-9a-f]+->0x[0-9a-f]+\) = NVML_SUCCESS \(0\)",
    r"nvmlDeviceGetMemoryInfo\(device=0x[0-9a-f]+, memory=0x[0-9a-f]+->\{total=\d+, free=\d+, used=\d+\}\) = "
    r"NVML_SUCCESS \(0\)",
    r"nvmlDeviceGetTemperature\(device=0x[0-9a-f]+, sensorType=NVML_TEMPERATURE_GPU, temp=0x[0-9a-f]+->\d+\) = "
    r"NVML_SUCCESS \(0\)",
    r'nvmlErrorString\(result=NVML_ERROR_NOT_SUPPORTED\) = "Not Supported"',
)


def test_calls_are_shown(worker: Worker) -> None:
    _, lines = run(worker, SHOWN, **TRACE)
    shown = calls(lines)
    assert len(shown) == len(LINES), shown
    for line, pattern in zip(shown, LINES, strict=True):
        assert re.fullmatch(pattern, line), line


def test_nothing_is_shown_at_other_levels(worker: Worker) -> None:
    assert run(worker, SHOWN)[1] == []
    assert run(worker, SHOWN, TF_ENABLE_LOG="1", TF_LOG_LEVEL="debug")[1] == []


def test_frames_are_shown_on_both_sides(worker: Worker) -> None:
    source = "begin()\ncuda.cuEventCreate(by(out), 0)\ncuda.cuCtxSynchronize()\n"
    _, lines = run(worker, source, **TRACE)
    frames = [line for line in lines if line.startswith("frame ")]
    assert [line.split()[1] for line in frames] == [f"{number}:" for number in range(1, len(frames) + 1)]
    assert any(re.fullmatch(r"frame \d+: cuEventCreate, \d+ bytes, thread 1", line) for line in frames), frames
    waited = r"frame 1: start, \d+ bytes, thread 1, answered with 0 and \d+ bytes after \d+\.\d{3} us"
    assert re.fullmatch(waited, frames[0])
    log: Path = worker.log  # type: ignore[attr-defined]
    session = [line.partition(": ")[2] for line in log.read_text().splitlines() if " TRACE " in line]
    assert any(re.fullmatch(r"frame 1: start, \d+ bytes, thread 1: result 0, \d+\.\d{3} us", line) for line in session)
    assert any(re.fullmatch(r"frame \d+: cuEventCreate, .* thread 1: posted, \d+\.\d{3} us", line) for line in session)


EVERY = r"""
# Every exported name with the same word in each place, before cuInit and after it.
word, stage, names = ctypes.c_void_p(int(sys.argv[1], 0)), sys.argv[2], json.loads(sys.argv[3])
if stage == "after":
    begin()
    assert nvml.nvmlInit_v2() == 0
results = {}
for name in names["cuda"]:
    results[name] = getattr(cuda, name)(*[word] * 16)
for name in names["nvml"]:
    results[name] = getattr(nvml, name)(*[word] * 16)
print(json.dumps(results))
"""
# What may be called at any time reads what it is given; these change what the others answer.
ANYTIME = {"cuInit", "cuGetProcAddress", "cuGetProcAddress_v2", "cuGetExportTable", "nvmlInternalGetExportTable"}
ANYTIME |= {"cuGetErrorName", "cuGetErrorString", "cuDriverGetVersion", "nvmlSystemGetNVMLVersion", "nvmlErrorString"}
ANYTIME |= {"cuLogsCurrent", "cuLogsDumpToMemory", "cuLogsRegisterCallback"}
ANYTIME |= {"nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags", "nvmlShutdown"}


# These write what they are given before they look at anything, as a driver's do.
WRITERS = set(load(ROOT / "api").apis[0].beginnings)


# These look into what they are given before anything else, as a driver's do.
WRITERS |= {f"cuCheckpointProcess{what}" for what in ("Checkpoint", "Lock", "Restore", "Unlock")}


@pytest.mark.parametrize(("value", "stage"), [("0", "before"), ("0x10", "before"), ("-1", "before"), ("0", "after")])
def test_every_call_answers_as_without_the_trace(worker: Worker, value: str, stage: str) -> None:
    """With wild arguments where nothing looks at them, else with NULL; nothing crashes, every call has a line."""
    left_out = ANYTIME if value == "0" else ANYTIME | WRITERS
    names = {api: [name for name in EXPORTS[api] if name not in left_out] for api in ("cuda", "nvml")}
    plain, _ = run(worker, EVERY, value, stage, json.dumps(names))
    traced, lines = run(worker, EVERY, value, stage, json.dumps(names), **TRACE)
    assert json.loads(traced) == json.loads(plain)
    shown = [line.partition("(")[0] for line in calls(lines)]
    asked = [*names["cuda"], *names["nvml"]]
    assert shown[-len(asked) :] == asked


def test_pointers_to_nowhere_are_shown_as_they_are(worker: Worker) -> None:
    """Where the call itself does not look; and a string is shown as far as it is there."""
    source = """
    begin()
    hole = ctypes.CDLL(None).mmap
    hole.restype = ctypes.c_void_p
    nowhere = hole(None, size(8192), 0, 0x22, -1, size(0))
    cuda.cuModuleGetFunction(None, None, ctypes.c_void_p(nowhere))
    end = hole(None, size(8192), 3, 0x22, -1, size(0)) + 4092
    ctypes.CDLL(None).munmap(ctypes.c_void_p(end + 4), size(4096))
    ctypes.memmove(end, b"abcd", 4)
    cuda.cuModuleGetFunction(None, None, ctypes.c_void_p(end))
    """
    _, lines = run(worker, source, **TRACE)
    shown = calls(lines)
    assert re.search(r"name=0x[0-9a-f]+\) = CUDA_ERROR_INVALID_HANDLE", shown[-2])
    assert re.search(r'name="abcd"\.\.\.\) = CUDA_ERROR_INVALID_HANDLE', shown[-1])


def test_threads_have_numbers(worker: Worker) -> None:
    source = """
    begin()
    def ask():
        gate.wait()
        for _ in range(50):
            cuda.cuCtxGetCurrent(by(ctypes.c_void_p()))
        gate.wait()  # a number is free again when its thread has ended
    gate = threading.Barrier(4)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    """
    _, lines = run(worker, source, **TRACE)
    numbers = [line.split(", thread ")[1].split(",")[0] for line in lines if line.startswith("cuCtxGetCurrent")]
    assert sorted(numbers) == sorted([number for number in {*numbers} for _ in range(50)])
    assert len({*numbers}) == 4 and "1" not in numbers


def test_children_are_traced_too(worker: Worker) -> None:
    source = """
    assert nvml.nvmlInit_v2() == 0
    def child(call):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os._exit(call())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    child(lambda: cuda.cuInit(0))
    begin()
    child(lambda: cuda.cuMemAlloc_v2(by(address), size(64)) - 3)
    cuda.cuMemAlloc_v2(by(address), size(128))
    """
    _, lines = run(worker, source, **TRACE)
    shown = calls(lines)
    assert shown.count("cuInit(Flags=0) = CUDA_SUCCESS (0)") == 2
    assert re.search(r"bytesize=64\) = CUDA_ERROR_NOT_INITIALIZED \(3\)", "\n".join(shown))
    assert re.search(r"bytesize=128\) = CUDA_SUCCESS \(0\)", shown[-1])


def test_the_log_goes_to_its_file(worker: Worker, tmp_path: Path) -> None:
    """From the first call on, which comes before the connection."""
    path = tmp_path / "client.log"
    _, lines = run(worker, "cuda.cuMemAlloc_v2(by(address), size(64))\nbegin()\n", TF_LOG_PATH=str(path), **TRACE)
    assert lines == []
    text = path.read_text()
    assert "bytesize=64) = CUDA_ERROR_NOT_INITIALIZED (3), thread " in text
    assert "cuInit(Flags=0) = CUDA_SUCCESS (0)" in text
