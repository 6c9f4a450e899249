"""What the client answers itself: C tests, the cuGetProcAddress table, contexts against the simulated GPU."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from native_code import includes, sources

from tensor_fusion import apigen
from tensor_fusion.abi import Teleport, native_folder
from tensor_fusion.client.files import client_environment
from tensor_fusion.worker.protocol import WELCOME_BYTES, Greeting, Status, Welcome

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wno-sign-conversion", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
# The real files; everything that would reach a worker is replaced in the test itself.
LOCAL = (
    *sources("client/cuda", "device", "context", "green", "limits", "handle", "told", "md2", "export_table*"),
    *sources("base", "log", "sha256", "time_lock"),
)
INCLUDED = ("base", "wire", "ring", "transport", "client/core", "client/cuda")
NEEDED = ("client/libteleport.so.1", "client/libcuda.so.1", "bin/tensor-fusion-session", "lib/libtf-simgpu.so")

installed = pytest.mark.skipif(
    not all((native_folder() / name).is_file() for name in NEEDED),
    reason=f"the native files are not in {native_folder()}; install the package or set TF_NATIVE_DIR",
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    command = [sys.executable, "-m", apigen.__name__, "--api", str(ROOT / "api"), "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("extra", [[], SANITIZE], ids=["plain", "sanitized"])
def test_local_answers(generated: Path, tmp_path: Path, extra: list[str]) -> None:
    program = tmp_path / "test_client_local"
    command = [COMPILER or "cc", *FLAGS, *WARNINGS, *extra, f"-I{generated}"]
    command += includes(*INCLUDED)
    command += [str(ROOT / "tests" / "native" / f"test_client_{part}.c") for part in ("local", "tables")]
    command += map(str, LOCAL)
    # What is looked at first is in one file for all families: of those that are not here nothing is called.
    command += [str(generated / f"tpg_{name}.c") for name in ("tables", "cuda_looks")]
    # A table of jumps would lie beside the strings that are there, and keep its function.
    command += ["-ffunction-sections", "-fno-jump-tables", "-Wl,--gc-sections", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "CUDA_"))}
    done = subprocess.run([str(program)], env=clean, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all cases passed" in done.stdout


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_what_is_known_of_an_event_ends(generated: Path, tmp_path: Path) -> None:
    program = tmp_path / "test_client_watch"
    command = [COMPILER or "cc", *FLAGS, *WARNINGS, *SANITIZE, f"-I{generated}"]
    command += includes(*INCLUDED)
    parts = [*sources("client/cuda", "watch", "timing", "date"), *sources("base", "time_lock")]
    command += map(str, (ROOT / "tests/native/test_client_watch.c", *parts))
    # A table of jumps would lie beside the strings that are there, and keep its function.
    command += ["-ffunction-sections", "-fno-jump-tables", "-Wl,--gc-sections", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class ProcAddress:
    """cuGetProcAddress_v2 of the client's library, which answers it without a worker."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(native_folder() / "client" / "libcuda.so.1"))
        self._function = self._library.cuGetProcAddress_v2
        self._function.argtypes = [
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.POINTER(ctypes.c_int),
        ]

    def __call__(self, name: str, version: int, flags: int) -> tuple[int, int | None, int]:
        """Result, address, status."""
        pointer, status = ctypes.c_void_p(1), ctypes.c_int(-1)
        result = self._function(name.encode(), ctypes.byref(pointer), version, flags, ctypes.byref(status))
        return result, pointer.value, status.value

    def without_status(self, name: str, version: int) -> tuple[int, int | None]:
        pointer = ctypes.c_void_p(1)
        return self._function(name.encode(), ctypes.byref(pointer), version, 0, None), pointer.value

    def address(self, symbol: str) -> int | None:
        return ctypes.cast(getattr(self._library, symbol), ctypes.c_void_p).value


@installed
def test_proc_address_answers_as_recorded() -> None:
    """Each name, version and flag against the record of the driver: the address is that of the exported symbol.

    What is refused here and first came with CUDA 12.0 or later is answered like a name that no driver has.
    """
    ask = ProcAddress()
    described = json.loads((native_folder() / "coverage.json").read_text())["cuda"]["functions"]
    hidden = set()
    recorded = json.loads((ROOT / "api" / "procaddress.json").read_text())
    versions = recorded["versions"]
    assert len(recorded["names"]) > 450
    assert len(versions) > 30
    for name, flags in recorded["names"].items():
        for flag, rows in flags.items():
            told = {v: refused(v, entry, described) for v, entry in rows}
            for version in versions:
                first, entry = next(((v, entry) for v, entry in reversed(rows) if v <= version), (0, "!0/2"))
                address, result, status = None, 0, 0
                if told.get(first):
                    status = 1
                    hidden.add(entry)
                elif entry.startswith("!"):
                    result, status = map(int, entry[1:].split("/"))
                    # Of a name that is refused in every version nothing is known.
                    status = 1 if all(told[v] or row.startswith("!") for v, row in rows) else status
                else:
                    address = ask.address(entry)
                assert ask(name, version, int(flag)) == (result, address, status), (name, flag, version)
    assert not hidden  # nothing that came with CUDA 12.0 or later is "not yet" any more
    found = {"cuMulticastCreate", "cuMemAllocManaged", "cuMemPrefetchAsync_v2", "cuMemExportToShareableHandle"}
    assert not {"cuGLInit", *found} & hidden


def refused(version: int, entry: str, described: dict[str, dict[str, object]]) -> bool:
    """Whether an entry point of the driver is not told."""
    function = described.get(entry, {"kind": "no function"})
    return version >= 12000 and function["kind"] == "unsupported" and not function["advertised"]


@installed
def test_proc_address_of_odd_questions() -> None:
    ask = ProcAddress()
    assert ask("", 0, 0) == (0, None, 1)
    assert ask("", 13000, 0) == (0, None, 1)
    assert ask("cuNoSuchFunction", 12000, 0) == (0, None, 1)
    assert ask("cuMemAlloc_v2", 12000, 0) == (0, None, 1)
    untouched = (1, 1, -1)
    assert ask("cuMemAlloc", 99000, 0) == untouched
    assert ask("cuMemAlloc", 12000, 4) == untouched
    assert ask("cuMemAlloc", 12000, 1 << 40) == untouched
    assert ask("cuMemAlloc", 12000, 3) == (0, ask.address("cuMemAlloc_v2"), 0)
    assert ask("cuMemAlloc", -1, 0) == (0, ask.address("cuMemAlloc_v2"), 0)
    assert ask.without_status("cuMemAlloc", 12000) == (0, ask.address("cuMemAlloc_v2"))
    assert ask("cuMemcpyHtoD", 12000, 2)[1] == ask.address("cuMemcpyHtoD_v2_ptds")


PROGRAM = textwrap.dedent(
    """
    import ctypes, sys
    cuda = ctypes.CDLL("libcuda.so.1")
    out, word, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t

    def gives(expected, function, *arguments):
        result = getattr(cuda, function)(*arguments)
        assert result == expected, f"{function} gave {result}, expected {expected}"

    def current():
        context = out()
        gives(0, "cuCtxGetCurrent", ctypes.byref(context))
        return context.value

    def state():
        flags, active = word(-1), word(-1)
        gives(0, "cuDevicePrimaryCtxGetState", 0, ctypes.byref(flags), ctypes.byref(active))
        return flags.value, active.value

    def alloc(bytes):
        address = ctypes.c_uint64()
        gives(0, "cuMemAlloc_v2", ctypes.byref(address), size(bytes))
        return address.value

    def free_memory():
        free, total = size(), size()
        gives(0, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def limit(which):
        value = size()
        gives(0, "cuCtxGetLimit", ctypes.byref(value), which)
        return value.value

    gives(0, "cuInit", 0)
    """
)

PRIMARY = """
context, again = out(), out()
assert state() == (0, 0)
gives(201, "cuDevicePrimaryCtxRelease_v2", 0)
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
gives(0, "cuCtxSetCurrent", context)
assert state() == (0, 1)
whole = free_memory()
stack = limit(0)
for how in ("cuDevicePrimaryCtxReset_v2", "cuDevicePrimaryCtxRelease_v2"):
    stream, event = out(), out()
    gives(0, "cuStreamCreate", ctypes.byref(stream), 0)
    gives(0, "cuEventCreate", ctypes.byref(event), 0)
    address = alloc(64 << 20)
    gives(0, "cuMemsetD8Async", ctypes.c_uint64(address), 1, size(64 << 20), stream)
    gives(0, "cuEventRecord", event, stream)
    gives(0, "cuCtxSetLimit", 0, size(stack + 1024))
    assert limit(0) == stack + 1024
    assert free_memory() < whole - (63 << 20)
    gives(0, how, 0)
    assert state() == (0, 0)
    assert current() == context.value
    device = word(-1)
    gives(0, "cuCtxGetDevice", ctypes.byref(device))
    gives(709, "cuCtxSynchronize")
    gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(again), 0)
    assert again.value == context.value
    assert limit(0) == stack, "limits are those of a fresh context"
    assert free_memory() == whole, "memory of the context that ended is free"
    assert cuda.cuStreamQuery(stream) in (400, 709)
    if how.endswith("Reset_v2"):
        gives(0, "cuDevicePrimaryCtxRelease_v2", 0)  # the retain before the reset
gives(0, "cuDevicePrimaryCtxRelease_v2", 0)
gives(201, "cuDevicePrimaryCtxRelease_v2", 0)
"""

CREATED = """
contexts = []
for _ in range(8):
    context = out()
    gives(0, "cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    assert current() == context.value
    address = alloc(1 << 20)
    gives(0, "cuMemsetD8_v2", ctypes.c_uint64(address), 7, size(1 << 20))
    contexts.append(context)
gives(2, "cuCtxCreate_v2", ctypes.byref(out()), 0, 0)  # more than a session offers
assert current() == contexts[-1].value
gives(0, "cuCtxDestroy_v2", contexts[-1])
assert current() == contexts[-2].value
gives(0, "cuCtxPushCurrent_v2", contexts[-1])
gives(709, "cuCtxSynchronize")
gives(0, "cuCtxPopCurrent_v2", ctypes.byref(out()))
gives(0, "cuCtxSynchronize")
gives(0, "cuCtxDestroy_v2", contexts[0])
for context in reversed(contexts[:-1]):
    popped = out()
    gives(0, "cuCtxPopCurrent_v2", ctypes.byref(popped))
    assert popped.value == context.value
gives(201, "cuCtxPopCurrent_v2", None)
gives(0, "cuCtxPushCurrent_v2", contexts[3])
byte = ctypes.c_uint8()
address = alloc(256)
gives(0, "cuMemsetD8_v2", ctypes.c_uint64(address), 42, size(256))
gives(0, "cuMemcpyDtoH_v2", ctypes.byref(byte), ctypes.c_uint64(address), size(1))
assert byte.value == 42
"""

ENDING = """
import threading, time
busy, other = out(), out()
gives(0, "cuCtxCreate_v2", ctypes.byref(other), 0, 0)
gives(0, "cuCtxPopCurrent_v2", None)
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(busy), 0)
gives(0, "cuCtxSetCurrent", busy)
module, function, stream = out(), out(), out()
gives(0, "cuModuleLoadData", ctypes.byref(module), open(sys.argv[1], "rb").read())
gives(0, "cuModuleGetFunction", ctypes.byref(function), module, b"spin_ns")
gives(0, "cuStreamCreate", ctypes.byref(stream), 1)
nanoseconds = ctypes.c_uint64(600_000_000)
arguments = (ctypes.c_void_p * 1)(ctypes.addressof(nanoseconds))
address = alloc(1 << 20)

def launch():
    gives(0, "cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, None)

def round_trips():
    gives(0, "cuCtxSetCurrent", other)
    before = time.monotonic()
    free_memory()
    gives(0, "cuMemsetD8_v2", ctypes.c_uint64(alloc(4096)), 1, size(4096))
    gives(0, "cuCtxSynchronize")
    spent.append(time.monotonic() - before)

launch()
spent, start = [], time.monotonic()
gives(0, sys.argv[2], 0)
assert time.monotonic() - start < 0.3, "ending a context does not wait in the client"
thread = threading.Thread(target=round_trips)
thread.start()
thread.join()
assert len(spent) == 1 and spent[0] < 0.3, f"another context's work waited {spent} s"
again = out()
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(again), 0)
assert 0.5 < time.monotonic() - start < 5, "the new context waits for the end of the old one"
assert again.value == busy.value
gives(1, "cuMemFree_v2", ctypes.c_uint64(address))
gives(0, "cuMemsetD8_v2", ctypes.c_uint64(alloc(1 << 20)), 1, size(1 << 20))
gives(0, "cuCtxSynchronize")
# A created context that is busy when it is destroyed, and a process that leaves at once.
gives(0, "cuCtxSetCurrent", other)
gives(0, "cuModuleLoadData", ctypes.byref(module), open(sys.argv[1], "rb").read())
gives(0, "cuModuleGetFunction", ctypes.byref(function), module, b"spin_ns")
gives(0, "cuStreamCreate", ctypes.byref(stream), 1)
launch()
gives(0, "cuCtxDestroy_v2", other)
assert current() is None
gives(0, "cuCtxSetCurrent", again)
free_memory()
"""

LIMIT = """
context = out()
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
gives(0, "cuCtxSetCurrent", context)
total = size()
gives(0, "cuDeviceTotalMem_v2", ctypes.byref(total), 0)
assert total.value == 1024 << 20
heap, before = limit(2), free_memory()
gives(0, "cuCtxSetLimit", 2, size(heap + (512 << 20)))
assert free_memory() == before - (512 << 20)
gives(2, "cuCtxSetLimit", 2, size(heap + (2048 << 20)))
assert limit(2) == heap + (512 << 20)
gives(0, "cuCtxSetLimit", 2, size(heap))
assert free_memory() == before
gives(2, "cuCtxSetLimit", 0, size(64 << 10))  # a stack for each of 270,336 threads
gives(0, "cuCtxSetLimit", 2, size(heap + (512 << 20)))
gives(0, "cuDevicePrimaryCtxReset_v2", 0)
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
assert free_memory() == before
"""

VISIBLE = """
count = word(-1)
gives(0, "cuDeviceGetCount", ctypes.byref(count))
assert count.value == 2
uuids = []
for device in range(2):
    uuid = (ctypes.c_uint8 * 16)()
    gives(0, "cuDeviceGetUuid_v2", ctypes.byref(uuid), device)
    uuids.append(bytes(uuid).hex())
    bus = word(-1)
    gives(0, "cuDeviceGetAttribute", ctypes.byref(bus), 33, device)
    assert bus.value == 0x26 - 0x20 * device
context = out()
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 1)
gives(0, "cuCtxSetCurrent", context)
device = word(-1)
gives(0, "cuCtxGetDevice", ctypes.byref(device))
assert device.value == 1
assert limit(2) > 0
gives(0, "cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)  # never warmed: its limits are asked for
gives(0, "cuCtxSetCurrent", context)
assert limit(2) > 0
alloc(4096)


class Memory(ctypes.Structure):  # CUmemAllocationProp: pinned memory of a device
    _fields_ = [("type", ctypes.c_int), ("handles", ctypes.c_int), ("place", ctypes.c_int), ("id", ctypes.c_int),
                ("security", ctypes.c_void_p), ("flags", ctypes.c_uint8 * 8)]


size = ctypes.c_size_t()
gives(0, "cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(Memory(1, 0, 1, 1)), 0)
gives(101, "cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(Memory(1, 0, 1, 2)), 0)  # the worker has 3
"""


class Worker:
    """A worker on the simulated GPU, with the real session."""

    def __init__(self, **variables: str) -> None:
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("TF_", "TENSOR_FUSION_", "LD_", "CUDA_"))}
        if "TF_NATIVE_DIR" in os.environ:
            clean["TF_NATIVE_DIR"] = os.environ["TF_NATIVE_DIR"]
        self._base = clean
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tensor_fusion.worker", "--gpu", "sim", "--host", "127.0.0.1", "-p", "0"],
            env={**clean, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("ready"), line
        self.port = int(line.split()[2].rpartition(":")[2])

    def run(self, body: str, *arguments: str, **variables: str) -> None:
        environment = {**self._base, **client_environment(f"native+127.0.0.1+{self.port}+0", self._base), **variables}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + body, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(TF_SIM_DEVICES="3")
    yield worker
    worker.stop()


@installed
@pytest.mark.parametrize("strict", ["0", "1"])
def test_primary_context_ends_and_comes_back(worker: Worker, strict: str) -> None:
    worker.run(PRIMARY, TF_STRICT=strict)


@installed
def test_created_contexts(worker: Worker) -> None:
    worker.run(CREATED)


@installed
@pytest.mark.parametrize("how", ["cuDevicePrimaryCtxReset_v2", "cuDevicePrimaryCtxRelease_v2"])
def test_busy_context_ends_aside(worker: Worker, how: str) -> None:
    worker.run(ENDING, str(ROOT / "tests" / "kernels" / "kernels.ptx"), how)


@installed
def test_visible_devices(worker: Worker) -> None:
    worker.run(VISIBLE, CUDA_VISIBLE_DEVICES="2,0")


@installed
def test_no_visible_device(worker: Worker) -> None:
    with pytest.raises(AssertionError, match="cuInit gave 100"):
        worker.run("", CUDA_VISIBLE_DEVICES="-1")


@installed
def test_limits_of_contexts_count_as_memory() -> None:
    worker = Worker(TF_GPU_MEMORY_LIMIT="1024")
    try:
        worker.run(LIMIT)
    finally:
        worker.stop()


OPERATIONS = {
    name: int(number)
    for number, name in (line.split() for line in (ROOT / "api" / "opcodes.lock").read_text().splitlines() if line)
}
CALL = 1
BAD_CLIENT = "a protocol violation of its client (exit code 3)"


def hostile_frames(chance: random.Random) -> bytes:
    """A start, then context operations in any order, with handles and devices that may or may not exist."""
    contexts = [1 << 46 | 1 << 36 | (1 << 20 | index) << 4 for index in range(24)]

    def context() -> int:
        if chance.random() < 0.02:
            return chance.choice([0, 7, (1 << 64) - 1, contexts[0] | 1, contexts[0] + (1 << 24)])
        return chance.choice(contexts)

    def device() -> int:
        return chance.choice([0, 0, 0, 1, 1, 2, 3, -1, 1 << 30])

    def made(kind: int) -> int:
        return 1 << 46 | kind << 36 | (1 << 20 | chance.randrange(1 << chance.choice([4, 16, 20]))) << 4

    bodies: dict[str, Callable[[], bytes]] = {
        "primary_retain": lambda: struct.pack("<Qixxxx", context(), device()),
        "primary_release": lambda: struct.pack("<ixxxx", device()),
        "primary_flags": lambda: struct.pack("<iI", device(), chance.getrandbits(32)),
        "context_create": lambda: struct.pack("<QiI", context(), device(), chance.choice([0, 4, 1 << 31])),
        "context_destroy": lambda: struct.pack("<Q", context()),
        "context_limit": lambda: struct.pack(
            "<Qixxxx", chance.choice([0, 1 << 20, 1 << 40, (1 << 64) - 1]), chance.choice([0, 1, 2, 3, 7, 99, -1])
        ),
        "context_flags": lambda: struct.pack("<Ixxxx", chance.getrandbits(32)),
        "context_info": lambda: b"",
        "context_synchronize": lambda: b"",
        "caught_up": lambda: b"",
        "memory_alloc": lambda: struct.pack("<Q", chance.choice([0, 1, 1 << 20, 1 << 62])),
        "cuMemGetInfo_v2": lambda: b"",
        "stream_create": lambda: struct.pack("<QIi", made(6), 1, 0),
        "cuEventCreate": lambda: struct.pack("<QIxxxx", made(7), 0),
        "start": lambda: struct.pack("<Ixxxx", chance.choice([0, 0, 1])),
    }
    frames = [("start", struct.pack("<Ixxxx", 0))]
    for _ in range(chance.randrange(1, 200)):
        name = chance.choice(list(bodies))
        body = bodies[name]()
        if chance.random() < 0.005:
            body = body[: len(body) // 16 * 8]
        frames.append((name, body))
    return b"".join(
        struct.pack(
            "<IHHII",
            16 + len(body),
            OPERATIONS[name],
            chance.choice([0, CALL]),
            1 + chance.randrange(3),
            (context() >> 4) & 0xFFFFFFFF,
        )
        + body
        for name, body in frames
    )


@installed
def test_hostile_context_operations(tmp_path: Path) -> None:
    """Whatever a client does with contexts, its session ends in order, or says that the client broke the protocol."""
    log = tmp_path / "worker.log"
    seed = random.randrange(1 << 32)
    worker = Worker(TF_SIM_DEVICES="3", TF_ENABLE_LOG="1", TF_LOG_PATH=str(log))
    try:
        schema = Teleport().schema
        for number in range(60):
            with socket.create_connection(("127.0.0.1", worker.port), 10) as connection:
                connection.sendall(Greeting.build(schema, program="hostile"))
                welcome = Welcome.parse(connection.recv(WELCOME_BYTES, socket.MSG_WAITALL))
                assert welcome is not None
                assert welcome.status == Status.ACCEPTED
                try:
                    connection.sendall(hostile_frames(random.Random(seed + number)))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except ConnectionError:
                    pass  # the session left first
        worker.run(PRIMARY)
        until = time.monotonic() + 10
        while time.monotonic() < until and log.read_text().count(" ended with ") < 61:
            time.sleep(0.05)
    finally:
        worker.stop()
    endings = [line.partition(" ended with ")[2] for line in log.read_text().splitlines() if " ended with " in line]
    assert len(endings) >= 61, seed
    assert set(endings) <= {"exit code 0", BAD_CLIENT}, (seed, endings)
