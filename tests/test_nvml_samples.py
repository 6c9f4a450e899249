"""Event sets and samples of NVML: one program, on the simulated GPU itself and over both transports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stack.harness import Worker, clean_environment, whole_stack
from test_nvml import DEVICE, INVALID_ARGUMENT, Raw
from test_nvml import Worker as WorkerWithLog

from tensor_fusion.abi import native_file

HERE = Path(__file__).resolve().parent
pytestmark = whole_stack

PROGRAM = f"""
import ctypes, json, sys, time
import pynvml as nvml
said = []
def ask(function, *arguments):
    try:
        value = function(*arguments)
    except nvml.NVMLError as failure:
        value = ["error", failure.value]
    said.append([function.__name__, value if isinstance(value, (int, float, str, list)) else ""])
    return value
nvml.nvmlInit()
device = nvml.nvmlDeviceGetHandleByIndex(0)
cuda, pointer = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p
def must(code): assert code == 0, code
must(cuda.cuInit(0))
context, module, fill = pointer(), pointer(), pointer()
must(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0))
must(cuda.cuModuleLoadData(ctypes.byref(module), open({str(HERE / "kernels" / "kernels.ptx")!r}, "rb").read()))
must(cuda.cuModuleGetFunction(ctypes.byref(fill), module, b"fill_u32"))
def launch(function, *values):
    places = (pointer * len(values))(*[ctypes.addressof(value) for value in values])
    return cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, places, None)
long = ctypes.c_uint64

# Samples.
def metrics(count, *ids):
    get = nvml.c_nvmlGpmMetricsGet_t(version=1, numMetrics=count, sample1=first, sample2=second)
    for i, number in enumerate(ids):
        get.metrics[i].metricId = number
    return get
def told(get, *ids):
    ask(nvml.nvmlGpmMetricsGet, get)
    for i in range(len(ids)):
        m, info = get.metrics[i], get.metrics[i].metricInfo
        texts = [t.decode() if t else "" for t in (info.shortName, info.longName, info.unit)]
        said.append([m.metricId, m.nvmlReturn, m.value, texts])
support = nvml.c_nvmlGpmSupport_t(version=1)
said.append([nvml._nvmlGetFunctionPointer("nvmlGpmQueryDeviceSupport")(device, ctypes.byref(support)),
             support.isSupportedDevice])
support.version = 2
said.append(nvml._nvmlGetFunctionPointer("nvmlGpmQueryDeviceSupport")(device, ctypes.byref(support)))
ask(nvml.nvmlGpmQueryIfStreamingEnabled, device)
ask(nvml.nvmlGpmSetStreamingEnabled, device, 1)
first, second = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
ids = (1, 2, 10, 99, 200, 0, 999)
told(metrics(7, *ids), *ids)  # of samples that hold nothing
ask(nvml.nvmlGpmSampleGet, device, first)
told(metrics(7, *ids), *ids)
ask(nvml.nvmlGpmSampleGet, device, second)
idle = metrics(7, *ids)
told(idle, *ids)
stream, other, word = pointer(), pointer(), long()
for made in (stream, other):
    must(cuda.cuStreamCreate(ctypes.byref(made), 1))
must(cuda.cuMemAlloc_v2(ctypes.byref(word), 4))
must(cuda.cuMemsetD32_v2(word, 0, 1))
must(cuda.cuCtxSynchronize())
must(cuda.cuStreamWaitValue32_v2(stream, word, 1, 0))
ask(nvml.nvmlGpmSampleGet, device, first)
told(metrics(2, 1, 2), 1, 2)
ask(nvml.nvmlGpmSampleGet, device, second)
told(metrics(2, 1, 2), 1, 2)
must(cuda.cuStreamWriteValue32_v2(other, word, 1, 0))
must(cuda.cuCtxSynchronize())
ask(nvml.nvmlGpmSampleGet, device, first)
told(metrics(2, 1, 2), 1, 2)
told(metrics(0))
told(metrics(300))
get = metrics(1, 1); get.version = 2
told(get, 1)
get = metrics(1, 1); get.sample1 = None
told(get, 1)
ask(nvml.nvmlGpmSampleGet, device, None)
ask(nvml.nvmlGpmMigSampleGet, device, 0, first)
ask(nvml.nvmlGpmSampleFree, first)
ask(nvml.nvmlGpmSampleGet, device, first)
told(metrics(1, 1), 1)
ask(nvml.nvmlGpmSampleFree, first)
ask(nvml.nvmlGpmSampleFree, second)
ask(nvml.nvmlGpmSampleFree, None)
for turn in range(3000):  # freed ones are not counted
    nvml.nvmlGpmSampleFree(nvml.nvmlGpmSampleAlloc())

# Event sets.
XID = nvml.nvmlEventTypeXidCriticalError
ask(nvml.nvmlDeviceGetSupportedEventTypes, device)
events, others, never = (nvml.nvmlEventSetCreate() for _ in range(3))
ask(nvml.nvmlDeviceRegisterEvents, device, 0, events)
ask(nvml.nvmlDeviceRegisterEvents, device, 1 << 60, events)
ask(nvml.nvmlDeviceRegisterEvents, device, XID, None)
for turn in range(2):
    ask(nvml.nvmlDeviceRegisterEvents, device, XID, events)
ask(nvml.nvmlDeviceRegisterEvents, device, nvml.nvmlDeviceGetSupportedEventTypes(device), others)
ask(nvml.nvmlEventSetWait_v2, events, 0)
begin = time.monotonic()
ask(nvml.nvmlEventSetWait_v2, events, 150)
said.append(time.monotonic() - begin >= 0.15)
def event(got):
    said.append([got.device.value == device.value if hasattr(got.device, "value") else
                 ctypes.addressof(got.device.contents) == ctypes.addressof(device.contents),
                 got.eventType, got.eventData, got.gpuInstanceId, got.computeInstanceId])
must(launch(fill, long(16), ctypes.c_uint32(1), long(1)))  # nobody may write there
event(ask(nvml.nvmlEventSetWait_v2, events, 60000))
said.append(cuda.cuCtxSynchronize())
event(ask(nvml.nvmlEventSetWait_v2, others, 60000))
ask(nvml.nvmlEventSetWait_v2, events, 0)
ask(nvml.nvmlEventSetWait_v2, never, 0)
ask(nvml.nvmlEventSetFree, events)
ask(nvml.nvmlEventSetFree, events)
ask(nvml.nvmlEventSetWait_v2, events, 0)
ask(nvml.nvmlDeviceRegisterEvents, device, XID, events)
ask(nvml.nvmlEventSetFree, None)
for turn in range(3000):
    nvml.nvmlEventSetFree(nvml.nvmlEventSetCreate())
print(json.dumps(said))
"""


def answers(env: dict[str, str]) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    folder = tmp_path_factory.mktemp("driver")
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        (folder / name).symlink_to(native_file("lib/libtf-simgpu.so"))
    return answers(clean_environment(LD_LIBRARY_PATH=str(folder)))


def test_the_simulated_answers_are_those_of_an_h200(native: list[object]) -> None:
    """What NVML 580.159.04 was asked, and what the simulator makes up: how busy the device is."""
    calls = [entry for entry in native if isinstance(entry, list)]
    assert [1, 0, 0.0, ["gract", "GRAPHICS_UTIL", "%"]] in calls
    assert [2, 0, 50.0, ["smutil", "SM_UTIL", "%"]] in calls
    assert [99, 0, 0.0, ["", "", "%"]] in calls
    assert [200, 0, 0.0, ["cs6elp", "GR6_CTXSW_CYCLES_ELAPSED", "#"]] in calls
    assert [2, 0, 100.0, ["smutil", "SM_UTIL", "%"]] in calls
    assert calls.count([1, 0, 0.0, ["", "", ""]]) >= 2  # samples that hold nothing: nothing is written
    assert [999, 2, 0.0, ["", "", ""]] in calls
    assert ["nvmlDeviceGetSupportedEventTypes", 0xFF9F] in calls
    assert ["nvmlDeviceRegisterEvents", ["error", 3]] in calls
    assert ["nvmlEventSetWait_v2", ["error", 10]] in calls
    assert calls.count([True, 8, 31, 0xFFFFFFFF, 0xFFFFFFFF]) == 2


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_the_same_through_the_stack(native: list[object], transport: str) -> None:
    with Worker(transport=transport) as worker:
        for number, (found, expected) in enumerate(zip(answers(worker.env), native, strict=True)):
            assert found == expected, number


def test_a_wait_holds_nobody_up() -> None:
    """While one thread waits for an event of NVML, another uses CUDA."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    source = """
import ctypes, threading, pynvml as nvml
nvml.nvmlInit()
cuda, context, memory = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0 and cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
events, waits = nvml.nvmlEventSetCreate(), threading.Event()
def wait():
    waits.set()
    try:
        nvml.nvmlEventSetWait_v2(events, 3600000)
    except nvml.NVMLError as failure:
        ends.append(failure.value)
ends = []
thread = threading.Thread(target=wait)
thread.start()
waits.wait()
for turn in range(50):
    assert cuda.cuMemAlloc_v2(ctypes.byref(memory), 4096) == 0 and cuda.cuMemFree_v2(memory) == 0
nvml.nvmlEventSetFree(events)  # ends the wait, too
thread.join()
assert ends == [nvml.NVML_ERROR_INVALID_ARGUMENT], ends
"""
    with Worker() as worker:
        subprocess.run([sys.executable, "-c", source], env=worker.env, timeout=60, check=True)


def test_what_is_held_has_an_end() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    source = """
import pynvml as nvml
nvml.nvmlInit()
for make, free in ((nvml.nvmlEventSetCreate, nvml.nvmlEventSetFree), (nvml.nvmlGpmSampleAlloc, nvml.nvmlGpmSampleFree)):
    held, error = [], 0
    while not error:
        try:
            held.append(make())
        except nvml.NVMLError as failure:
            error = failure.value
    assert error == nvml.NVML_ERROR_INSUFFICIENT_RESOURCES and len(held) == 1024, (error, len(held))
    free(held.pop())
    held.append(make())
"""
    with Worker() as worker:
        subprocess.run([sys.executable, "-c", source], env=worker.env, timeout=60, check=True)


def test_a_hostile_client_holds_no_more() -> None:
    def handle(kind: int, index: int) -> bytes:
        return (1 << 46 | kind << 36 | (1 << 20 | index) << 4).to_bytes(8, "little")

    with WorkerWithLog() as worker:
        for kind, make, free in ((33, "nvmlEventSetCreate", "nvmlEventSetFree"),
                                 (34, "nvmlGpmSampleAlloc", "nvmlGpmSampleFree")):  # fmt: skip
            raw = Raw(worker.port)
            assert raw.call("nvml_start") == 0
            assert raw.call(make, handle(kind, 1023)) == 0
            assert raw.call(free, handle(kind, 1022)) == INVALID_ARGUMENT
            assert raw.call("nvmlGpmSampleGet", DEVICE + handle(33, 1023)) == INVALID_ARGUMENT
            assert raw.call(make, handle(kind, 1024)) is None  # ends its session
        raw = Raw(worker.port)
        assert raw.call("nvml_start") == 0
        bytes_of = (478).to_bytes(8, "little") + bytes(4 * 478)
        assert raw.call("nvml_gpm_metrics", bytes(16) + bytes_of) is None
        assert worker.crashes() == []
