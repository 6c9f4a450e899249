"""NVML from the client's library to the simulated GPU, in real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from tensor_fusion.abi import Teleport, native_file, native_folder
from tensor_fusion.client.files import client_environment
from tensor_fusion.worker.protocol import WELCOME_BYTES, Greeting, Status, Welcome

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NEEDED = (
    *(f"client/{name}.so.1" for name in ("libteleport", "libcuda", "libnvidia-ml")),
    "bin/tensor-fusion-session",
    "lib/libtf-simgpu.so",
)
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
MIB = 1 << 20
# Part of the names of functions whose answers differ between two moments or processes.
CHANGING = ("MemoryInfo", "Energy", "Utilization", "Violation")
UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED = 1, 2, 3
LOST = 15


class Worker:
    """A worker on the simulated GPU, with the real session."""

    def __init__(self, **variables: str) -> None:
        pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
        if not all((native_folder() / name).is_file() for name in NEEDED):
            pytest.skip(f"the native files are not in {native_folder()}; install the package or set TF_NATIVE_DIR")
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("TF_", "TENSOR_FUSION_", "LD_"))}
        if "TF_NATIVE_DIR" in os.environ:
            clean["TF_NATIVE_DIR"] = os.environ["TF_NATIVE_DIR"]
        self._base = clean
        self.log = Path(tempfile.mkdtemp()) / "worker.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensor_fusion.worker", "--gpu", "sim", "--host", "127.0.0.1", "-p", "0"],
            env={**clean, "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(self.log), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("ready"), line
        self.port = int(line.split()[2].rpartition(":")[2])

    def crashes(self) -> list[str]:
        """Sessions that ended neither well nor over a violation of their client, by the worker's log."""
        ends = [line for line in self.log.read_text().splitlines() if " ended with " in line]
        return [line for line in ends if not line.endswith(("exit code 0", "(exit code 3)"))]

    @property
    def env(self) -> dict[str, str]:
        return {**self._base, **client_environment(f"native+127.0.0.1+{self.port}+0", self._base)}

    def run(self, program: str, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs Python source in a client; `nvml` is nvidia-ml-py and `error(f, …)` the code that a call fails with."""
        result = subprocess.run(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)],
            env={**self.env, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(15)
        shutil.rmtree(self.log.parent)


PREAMBLE = """
import ctypes, json, os, sys, time
import pynvml as nvml
MIB = 1 << 20
def error(function, *arguments):
    try:
        function(*arguments)
    except nvml.NVMLError as failure:
        return failure.value
    return 0
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as running:
        yield running


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_client_by_itself(tmp_path: Path) -> None:
    """The client's C files against a stand-in for the connection, with the address sanitizer."""
    generated, program = tmp_path / "generated", tmp_path / "test_nvml_client"
    subprocess.run(
        [sys.executable, "-m", "tensor_fusion.apigen", "--api", str(ROOT / "api"), "--out", str(generated)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    native = ROOT / "native"
    sources = [HERE / "native" / "test_nvml_client.c", *(native / "client" / "nvml").glob("*.c")]
    sources += [native / "base" / "log.c", native / "base" / "time_lock.c"]
    sources += [generated / f"tpg_{name}.c" for name in ("nvml_entries", "nvml_stubs", "nvml_looks", "tables")]
    folders = [*(native / name for name in ("base", "wire", "ring", "client/core", "client/nvml")), generated]
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-g", "-O0", "-fvisibility=hidden", "-pthread", "-fno-strict-aliasing"]
    flags += ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wno-sign-conversion", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    command = [COMPILER or "cc", *flags, *(f"-I{folder}" for folder in folders), *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_errors_are_called_as_by_the_driver(worker: Worker) -> None:
    """All codes that a driver has a text for, and some that it has none for."""
    codes = {int(code): pair[1] for code, pair in json.loads((ROOT / "api/errors.json").read_text())["nvml"].items()}
    asked = {code: codes.get(code, "Unknown Error") for code in [-1, *range(40), 500, 999]}
    script = (
        "import ctypes, json, sys\nnvml = ctypes.CDLL(sys.argv[1])\nnvml.nvmlErrorString.restype = ctypes.c_char_p\n"
        f"print(json.dumps([nvml.nvmlErrorString(code).decode() for code in {list(asked)}]))"
    )
    for library in (str(native_file("lib/libtf-simgpu.so")), "libnvidia-ml.so.1"):
        command = [sys.executable, "-c", script, library]
        done = subprocess.run(command, env=worker.env, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout) == list(asked.values()), library


def test_every_function_answers_as_the_driver_does(worker: Worker) -> None:
    """Results and memory of every remote function, through the worker and on the simulated driver itself."""
    program = [sys.executable, str(HERE / "nvml_program.py")]
    here = subprocess.run(
        [*program, str(native_file("lib/libtf-simgpu.so"))], capture_output=True, text=True, timeout=120, check=True
    )
    through = subprocess.run(
        [*program, "libnvidia-ml.so.1"], env=worker.env, capture_output=True, text=True, timeout=120, check=True
    )
    expected, found = json.loads(here.stdout), json.loads(through.stdout)
    assert set(expected) == set(found)
    assert sum(answer["valid"] == 0 for answer in found.values()) > 60
    for name, answer in expected.items():
        assert found[name]["valid"] == answer["valid"], name
        if answer["memory"] is None:
            continue  # the simulated driver does not have it
        # The client refuses a null pointer or handle before it asks; the driver may find another reason first.
        # A pointer that may be null changes nothing.
        for result, driver in zip(found[name]["null"], answer["null"], strict=True):
            assert result in (INVALID_ARGUMENT, driver, answer["valid"]), name
        assert found[name]["handle"] in (None, INVALID_ARGUMENT), name
        if not any(word in name for word in CHANGING):
            assert found[name]["memory"] == answer["memory"], name


def test_life(worker: Worker) -> None:
    worker.run(
        """
        assert error(nvml.nvmlDeviceGetCount) == nvml.NVML_ERROR_UNINITIALIZED
        assert error(nvml.nvmlSystemGetDriverVersion) == nvml.NVML_ERROR_UNINITIALIZED
        nvml.nvmlInit(); nvml.nvmlInit(); nvml.nvmlShutdown()
        assert nvml.nvmlDeviceGetCount() == 1
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        assert error(nvml.nvmlDeviceGetHandleByIndex, 1) == nvml.NVML_ERROR_INVALID_ARGUMENT
        uuid, bus = nvml.nvmlDeviceGetUUID(device), nvml.nvmlDeviceGetPciInfo(device).busId
        for same in (nvml.nvmlDeviceGetHandleByUUID(uuid), nvml.nvmlDeviceGetHandleByPciBusId(bus)):
            assert nvml.nvmlDeviceGetIndex(same) == 0
        assert uuid.startswith("GPU-")
        assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid[4:])) == 0
        assert error(nvml.nvmlDeviceGetHandleByUUID, "PU-" + uuid[4:]) == nvml.NVML_ERROR_NOT_FOUND
        assert error(nvml.nvmlDeviceGetHandleByUUID, uuid[4:-1]) == nvml.NVML_ERROR_NOT_FOUND
        assert error(nvml.nvmlDeviceGetHandleByUUID, "GPU-x") == nvml.NVML_ERROR_NOT_FOUND
        assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleBySerial(nvml.nvmlDeviceGetSerial(device))) == 0
        assert error(nvml.nvmlDeviceGetHandleBySerial, "1") == nvml.NVML_ERROR_NOT_FOUND
        nvml.nvmlShutdown()
        assert error(nvml.nvmlDeviceGetCount) == nvml.NVML_ERROR_UNINITIALIZED
        nvml.nvmlInit()
        assert "H200" in nvml.nvmlDeviceGetName(device)
        """
    )


def test_near_is_all_of_the_client(worker: Worker) -> None:
    """Affinity names processors and nodes of this machine, as the kernel lists them, and no others."""
    worker.run(
        """
        def listed(what):
            found = set()
            for part in open(f"/sys/devices/system/{what}/online").read().split(","):
                first, _, last = part.strip().partition("-")
                found |= set(range(int(first), int(last or first) + 1))
            return found
        def bits(words):
            return {64 * i + k for i, word in enumerate(words) for k in range(64) if word >> k & 1}
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        assert bits(nvml.nvmlDeviceGetCpuAffinity(device, 16)) == listed("cpu")
        for scope in (nvml.NVML_AFFINITY_SCOPE_NODE, nvml.NVML_AFFINITY_SCOPE_SOCKET):
            assert bits(nvml.nvmlDeviceGetCpuAffinityWithinScope(device, 16, scope)) == listed("cpu")
            if os.path.exists("/sys/devices/system/node/online"):
                assert bits(nvml.nvmlDeviceGetMemoryAffinity(device, 16, scope)) == listed("node")
        wrong = nvml.NVML_ERROR_INVALID_ARGUMENT
        assert error(nvml.nvmlDeviceGetMemoryAffinity, device, 16, 2) == wrong
        assert error(nvml.nvmlDeviceGetCpuAffinityWithinScope, device, 16, 2) == wrong
        assert error(nvml.nvmlDeviceGetCpuAffinity, device, 0) == wrong
        """
    )


def test_cuda_visible_devices_does_not_matter(worker: Worker) -> None:
    worker.run("nvml.nvmlInit(); assert nvml.nvmlDeviceGetCount() == 1", CUDA_VISIBLE_DEVICES="-1")


def test_what_clients_may_not_do_is_refused(worker: Worker) -> None:
    result = worker.run(
        """
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        for attempt in range(2):
            assert error(nvml.nvmlDeviceSetPowerManagementLimit, device, 200000) == nvml.NVML_ERROR_NO_PERMISSION
        """,
        TF_ENABLE_LOG="1",
    )
    assert result.stderr.count("nvmlDeviceSetPowerManagementLimit") == 1, result.stderr


def test_links_as_nccl_asks_for_them() -> None:
    """By the older name, whose struct is shorter than the one that the header declares: NCCL's ends soon behind it."""
    with Worker(TF_SIM_DEVICES="2", TF_SIM_NVLINKS="18") as linked:
        linked.run(
            """
            nvml.nvmlInit()
            library = ctypes.CDLL("libnvidia-ml.so.1")
            first, second = (nvml.nvmlDeviceGetHandleByIndex(i) for i in range(2))
            for link, found in ((0, True), (17, True), (18, False)):
                old, new = ctypes.create_string_buffer(b"\\xa5" * 128, 128), nvml.nvmlPciInfo_t()
                result = library.nvmlDeviceGetNvLinkRemotePciInfo(first, link, old)
                assert result == (0 if found else nvml.NVML_ERROR_NOT_SUPPORTED), (link, result)
                assert not found or library.nvmlDeviceGetNvLinkRemotePciInfo_v2(first, link, ctypes.byref(new)) == 0
                size = 32 if found else 0
                assert old.raw == bytes(new)[:size] + b"\\xa5" * (128 - size), (link, old.raw)
            assert library.nvmlDeviceGetNvLinkRemotePciInfo(first, 0, None) == nvml.NVML_ERROR_INVALID_ARGUMENT
            for reads_and_links in (0, 2):
                assert nvml.nvmlDeviceGetP2PStatus(first, second, reads_and_links) == 0
            state = nvml.nvmlDeviceGetFieldValues(first, [(nvml.NVML_FI_DEV_NVLINK_GET_STATE, 17)])[0]
            assert (state.nvmlReturn, state.value.uiVal) == (0, 1)
            """
        )


@pytest.mark.parametrize("limit", [1024, 4097])
def test_memory_limit(limit: int) -> None:
    with Worker(TF_GPU_MEMORY_LIMIT=str(limit)) as limited:
        limited.run(
            """
            limit = int(os.environ["WANTED"])
            nvml.nvmlInit()
            device = nvml.nvmlDeviceGetHandleByIndex(0)
            old = nvml.nvmlDeviceGetMemoryInfo(device)
            new = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
            assert old.total == new.total == limit * MIB, (old.total, new.total)
            assert old.total == old.free + old.used and old.free == new.free
            assert old.used == new.used == 0, (old.used, new.used)
            """,
            WANTED=str(limit),
        )


CUDA = """
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
context, memory, other = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint64()
nvml.nvmlInit()
device = nvml.nvmlDeviceGetHandleByIndex(0)
"""


def test_own_process_and_memory() -> None:
    with Worker(TF_GPU_MEMORY_LIMIT="2048") as limited:
        limited.run(
            CUDA
            + """
assert nvml.nvmlDeviceGetComputeRunningProcesses(device) == []
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), 64 * MIB) == 0
(process,) = nvml.nvmlDeviceGetComputeRunningProcesses(device)
assert process.pid == os.getpid() and process.usedGpuMemory == 64 * MIB, vars(process)
assert nvml.nvmlDeviceGetGraphicsRunningProcesses(device) == []
free, total = ctypes.c_size_t(), ctypes.c_size_t()
assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
info = nvml.nvmlDeviceGetMemoryInfo(device)
assert (info.total, info.free) == (total.value, free.value) and info.used == 64 * MIB
"""
        )


def test_fork(worker: Worker) -> None:
    worker.run(
        """
        nvml.nvmlInit()
        child = os.fork()
        if child == 0:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            os._exit(library.nvmlDeviceGetCount_v2(ctypes.byref(ctypes.c_uint())))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == nvml.NVML_ERROR_UNINITIALIZED
        assert nvml.nvmlDeviceGetCount() == 1
        """
    )


def test_loss() -> None:
    with Worker() as mortal:
        mortal.run(
            f"""
            import signal
            nvml.nvmlInit()
            device = nvml.nvmlDeviceGetHandleByIndex(0)
            nvml.nvmlDeviceGetUtilizationRates(device)
            os.kill({mortal.process.pid}, signal.SIGKILL)
            begin = time.monotonic()
            while error(nvml.nvmlDeviceGetUtilizationRates, device) == 0:
                assert time.monotonic() - begin < 3
            assert error(nvml.nvmlDeviceGetUtilizationRates, device) == nvml.NVML_ERROR_GPU_IS_LOST
            assert error(nvml.nvmlDeviceGetName, device) == nvml.NVML_ERROR_GPU_IS_LOST
            assert error(nvml.nvmlInit) == nvml.NVML_ERROR_GPU_IS_LOST
            assert error(nvml.nvmlShutdown) == 0
            """
        )


def test_no_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    env = {**os.environ, **client_environment(f"native+127.0.0.1+{port}+0", os.environ)}
    source = PREAMBLE + "sys.exit(error(nvml.nvmlInit))"
    result = subprocess.run(
        [sys.executable, "-c", source], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 9, result.stderr  # NVML_ERROR_DRIVER_NOT_LOADED
    assert str(port) in result.stderr


# ---- a client that is not ours ----


class Raw:
    """One control connection on which anything may be sent."""

    def __init__(self, port: int) -> None:
        lock = (ROOT / "api" / "opcodes.lock").read_text().split()
        self.numbers = dict(zip(lock[1::2], map(int, lock[0::2]), strict=True))
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(Greeting.build(Teleport().schema, program="raw"))
        welcome = Welcome.parse(self._read(WELCOME_BYTES) or b"")
        assert welcome
        assert welcome.status == Status.ACCEPTED

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError:
                return None
            if not part:
                return None
            data += part
        return data

    def call(self, operation: str, body: bytes = b"") -> int | None:
        """The result, or None when the session ended the connection."""
        body += bytes(-len(body) % 8)
        self.socket.sendall(struct.pack("<IHHII", 16 + len(body), self.numbers[operation], 1, 1, 0) + body)
        head = self._read(24)
        if head is None:
            return None
        size, result = struct.unpack("<I8xi", head[:16])
        assert self._read(size - 24) is not None
        return int(result)


def padded(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data + bytes(-len(data) % 8)


DEVICE = struct.pack("<Q", 1 << 46 | 32 << 36 | (1 << 20) << 4)
VERSION = struct.pack("<III", 12 | 1 << 24, 0, 0)


def test_hostile_order(worker: Worker) -> None:
    """Nothing reaches the driver before it is loaded: its table of functions is empty then."""
    raw = Raw(worker.port)
    assert raw.call("nvmlUnitGetCount") == UNINITIALIZED
    assert raw.call("nvmlDeviceGetUtilizationRates", DEVICE) == UNINITIALIZED
    assert raw.call("nvml_start") == 0
    assert raw.call("nvml_start") == 0
    assert raw.call("nvmlDeviceGetUtilizationRates", DEVICE) == 0


@pytest.mark.parametrize(
    ("operation", "body", "result"),
    [
        ("nvmlDeviceGetName", DEVICE + struct.pack("<II", 96, 0), 0),
        ("nvmlDeviceGetName", DEVICE + struct.pack("<II", 0xFFFFFFFF, 0), "refused"),
        ("nvmlDeviceGetName", struct.pack("<QII", 0x1234, 96, 0), INVALID_ARGUMENT),
        ("nvmlDeviceGetName", struct.pack("<QII", 1 << 46 | 32 << 36 | (1 << 20 | 5) << 4, 96, 0), INVALID_ARGUMENT),
        ("nvmlDeviceGetName", DEVICE, None),
        ("nvmlDeviceGetTemperatureV", DEVICE + padded(VERSION), 0),
        ("nvmlDeviceGetTemperatureV", DEVICE + padded(VERSION[:8]), 25),
        ("nvmlDeviceGetTemperatureV", DEVICE + padded(struct.pack("<I", 0x02FFFFFF)), 25),
        ("nvmlDeviceGetTemperatureV", DEVICE + padded(b""), 25),
        ("nvmlDeviceGetTemperatureV", DEVICE + padded(struct.pack("<I", 100000 | 1 << 24) + bytes(99996)), 25),
        ("nvmlDeviceGetTemperatureV", DEVICE + struct.pack("<QQ", 1 << 40, 0), None),
        ("nvmlDeviceGetSupportedMemoryClocks", DEVICE + struct.pack("<II", 8192, 0), "any"),
        ("nvmlDeviceGetSupportedMemoryClocks", DEVICE + struct.pack("<II", 8193, 0), None),
        ("nvmlDeviceGetProcessUtilization", DEVICE + struct.pack("<QII", 0, 8193, 0), None),
        ("nvmlDeviceGetFieldValues", DEVICE + struct.pack("<II", 0, 0) + padded(b""), INVALID_ARGUMENT),
        ("nvmlDeviceGetFieldValues", DEVICE + struct.pack("<II", 1, 0) + padded(bytes(41)), None),
        ("nvmlDeviceGetFieldValues", DEVICE + struct.pack("<II", 2, 0) + padded(bytes(40)), None),
        ("nvmlDeviceGetFieldValues", DEVICE + struct.pack("<iI", -1, 0) + padded(bytes(40)), None),
        ("nvmlDeviceGetFieldValues", DEVICE + struct.pack("<II", 2000, 0) + padded(bytes(40 * 2000)), "any"),
        ("nvmlDeviceGetFanSpeed_v2", DEVICE + struct.pack("<II", 0xFFFFFFFF, 0), "refused"),
    ],
)
def test_hostile_lengths(worker: Worker, operation: str, body: bytes, result: int | str | None) -> None:
    raw = Raw(worker.port)
    assert raw.call("nvml_start") == 0
    answer = raw.call(operation, body)
    if result == "any":
        assert answer is not None
    elif result == "refused":
        assert answer is not None
        assert answer != 0
    else:
        assert answer == result
    if answer is not None:
        assert raw.call("nvmlUnitGetCount") is not None  # the session lives on
    begin = time.monotonic()
    assert Raw(worker.port).call("nvml_start") == 0, "the worker serves the next client"
    assert time.monotonic() - begin < 5


def test_junk(worker: Worker) -> None:
    """Every operation with a real device and bytes that mean nothing: an answer or the end of the session, no crash."""
    dice = random.Random(20)
    numbers = Raw(worker.port).numbers
    operations = [name for name in numbers if name.startswith("nvml") and name != "nvml_start"]
    assert len(operations) > 150
    raw = None
    for name in operations:
        for size in (0, 8, 200):
            if raw is None:
                raw = Raw(worker.port)
                assert raw.call("nvml_start") == 0
            if raw.call(name, DEVICE + dice.randbytes(size)) is None:
                raw = None
    assert worker.crashes() == []
    assert "protocol violation" in worker.log.read_text()  # the log is the right one
