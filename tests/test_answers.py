"""Answers that programs rely on, from the client's library to the simulated GPU, in real processes.

`NATIVE` holds what driver_api printed on an H200 (driver 580.159.04) where the client once answered otherwise; the
other tests are about what must hold over many calls.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli_native import NATIVE as FILES
from test_cli_native import ROOT, RealWorker
from worker_harness import environment

from tensor_fusion.client.files import client_environment

PROGRAMS = ROOT / "tests" / "gpu" / "programs"
KERNELS = ROOT / "tests" / "kernels" / "kernels.ptx"
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)

NATIVE = """
before_init/cuCtxDestroy = 1
names/cuGetProcAddress 'cuMemAlloc' 99000 flags 0 = 1
names/cuGetProcAddress 'cuMemAlloc' 99000 flags 0: value = unchanged, status -1
names/cuGetProcAddress 'cuMemAlloc' -1 flags 0: value = set, status 0
names/cuGetProcAddress 'cuMemcpyHtoD' 12000 flags 3: value = set, status 0
names/cuGetProcAddress 'cuMemcpyHtoD' 12000 flags 4: value = unchanged, status -1
context/cuCtxSetCacheConfig 77 = 1
context/cuCtxSynchronize = 0
primary/state after the last release: value = flags 0 active 0
primary/memset after the last release = 709
primary/state after reset: value = flags 0 active 0
primary/memset after reset = 709
event/wait with flags 7 = 1
event/record with flags 1 = 401
event/record with flags 8 = 1
event/context synchronize = 0
memory/host alloc 0 = 0
pointer/device attribute 6: value = 1
pool/alloc async 0 = 0
module/function of the empty name = 1
module/set cache config 9 = 1
module/read the global = 0
module/read the global: value = 41
launch/Ex cluster of 2 = 0
launch/Ex cluster of 3 in a grid of 4 = 912
launch/Ex made-up attribute = 1
launch/cooperative = 0
launch/cooperative, too large = 720
launch/the context is well = 0
host_function/what the call inside got: value = 800
stream_memory/write 32 misaligned = 1
stream_memory/write to a made-up address = 1
stream_memory/synchronize = 0
illegal_address/synchronize = 700
illegal_address/synchronize again = 700
illegal_address/alloc = 700
illegal_address/free = 700
illegal_address/read = 700
illegal_address/launch again = 700
illegal_address/stream create = 700
illegal_address/event query = 700
illegal_address/event record = 700
illegal_address/mem info = 700
illegal_address/get device = 0
illegal_address/device count = 0
illegal_address/stream query = 700
illegal_address/reset = 0
nulls/cuCtxDestroy = 1
nulls/cuMemFreeHost = 0
nulls/cuMemGetInfo = 0
nulls/cuModuleGetFunction = 400
"""

PREAMBLE = """
import ctypes, gc, os, sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
cuda = ctypes.CDLL("libcuda.so.1")
for name in ("cuMemFree_v2", "cuMemsetD8_v2", "cuEventDestroy_v2", "cuStreamDestroy_v2", "cuModuleUnload"):
    getattr(cuda, name).argtypes = {"cuMemsetD8_v2": [c_void_p, c_int, c_size_t]}.get(name, [c_void_p])
ptx = open(os.environ["KERNELS_PTX"], "rb").read() + b"\\0"

def ok(function, *arguments):
    result = getattr(cuda, function)(*arguments)
    assert result == 0, f"{function}: {result}"

def made(function, *arguments):
    handle = c_void_p()
    ok(function, byref(handle), *arguments)
    return handle

def retain():
    context = made("cuDevicePrimaryCtxRetain", 0)
    ok("cuCtxSetCurrent", context)
    return context

ok("cuInit", 0)
retain()
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[RealWorker]:
    started = RealWorker()
    yield started
    started.stop()


def run(worker: RealWorker, command: list[str], **variables: str) -> str:
    clean = environment(**FILES, **variables, KERNELS_PTX=str(KERNELS))
    result = subprocess.run(
        command,
        env={**clean, **client_environment(worker.connection, clean)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def script(worker: RealWorker, source: str, **variables: str) -> str:
    return run(worker, [sys.executable, "-c", PREAMBLE + textwrap.dedent(source)], **variables)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_answers_of_the_driver(worker: RealWorker, tmp_path: Path) -> None:
    program = tmp_path / "driver_api"
    sources = [str(path) for path in sorted(PROGRAMS.glob("driver_api*.c"))]
    command = [COMPILER or "cc", "-std=gnu17", "-O1", *sources, str(PROGRAMS / "cu.c"), "-ldl", "-lpthread"]
    subprocess.run([*command, "-o", str(program)], check=True, timeout=100)
    lines = set(run(worker, [str(program)]).splitlines())
    missing = [line for line in NATIVE.strip().splitlines() if line not in lines]
    assert not missing


def test_places_of_what_modules_made_are_used_again(worker: RealWorker) -> None:
    script(
        worker,
        """
        for i in range(600):
            module = made("cuModuleLoadData", ptx)
            function = made("cuModuleGetFunction", module, b"saxpy")
            ok("cuModuleUnload", module)
            assert cuda.cuModuleGetFunction(byref(function), module, b"saxpy") == 400
            if i % 50 == 0:
                ok("cuCtxSynchronize")
        for i in range(300):
            library = made("cuLibraryLoadData", ptx, None, None, 0, None, None, 0)
            kernel = made("cuLibraryGetKernel", library, b"saxpy")
            made("cuKernelGetFunction", kernel)
            module = made("cuLibraryGetModule", library)
            made("cuModuleGetFunction", module, b"saxpy")
            assert cuda.cuModuleUnload(module) == 800
            ok("cuLibraryUnload", library)
            assert cuda.cuModuleUnload(module) == 400
        ok("cuCtxSynchronize")
        """,
    )


def test_objects_outlive_their_context_harmlessly(worker: RealWorker) -> None:
    script(
        worker,
        """
        for _ in range(300):
            event, stream = made("cuEventCreate", 0), made("cuStreamCreate", 1)
            module = made("cuModuleLoadData", ptx)
            ok("cuDevicePrimaryCtxReset_v2", 0)
            cuda.cuEventDestroy_v2(event)
            cuda.cuStreamDestroy_v2(stream)
            assert cuda.cuModuleUnload(module) == 400
            retain()
        for _ in range(300):
            event, stream = made("cuEventCreate", 0), made("cuStreamCreate", 1)
            ok("cuCtxSetCurrent", None)      # neither needs a current context to be destroyed
            ok("cuEventDestroy_v2", event)
            ok("cuStreamDestroy_v2", stream)
            retain()
        ok("cuCtxSynchronize")               # and none of it comes back as somebody else's error
        """,
    )


def test_globals_end_with_their_module(worker: RealWorker) -> None:
    script(
        worker,
        """
        head = b".version 7.0\\n.target sm_75\\n.address_size 64\\n"

        def image(size):
            return head + b".visible .global .align 8 .b8 data[%d];\\n.visible .entry none() { ret; }\\n" % size

        copy = cuda.cuMemcpyDtoH_v2
        copy.argtypes = [c_void_p, c_ulonglong, c_size_t]
        here = ctypes.create_string_buffer(1 << 16)
        for i in range(200):
            size = 8 << (i * 7) % 12
            module = made("cuModuleLoadData", image(size))
            address, length = c_ulonglong(), c_size_t()
            for _ in range(2):
                ok("cuModuleGetGlobal_v2", byref(address), byref(length), module, b"data")
            assert length.value == size and copy(here, address.value, size) == 0
            assert copy(here, address.value, size + 8) == 1
            if i % 5 == 4:
                ok("cuDevicePrimaryCtxReset_v2", 0)
                assert cuda.cuModuleUnload(module) == 400
                retain()
            else:
                ok("cuModuleUnload", module)
            assert copy(here, address.value, 8) == 1
        ok("cuCtxSynchronize")
        """,
    )


def test_a_library_outlives_contexts(worker: RealWorker) -> None:
    """Its functions and modules belong to one context each, in one of that context's lives."""
    script(
        worker,
        """
        library = made("cuLibraryLoadData", ptx, None, None, 0, None, None, 0)
        kernel = made("cuLibraryGetKernel", library, b"fill_u32")

        def fill(function, word):
            memory, value, count, back = c_ulonglong(), c_uint(word), c_size_t(1), c_uint()
            ok("cuMemAlloc_v2", byref(memory), c_size_t(64))
            arguments = (c_void_p * 3)(*[ctypes.addressof(x) for x in (memory, value, count)])
            ok("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, arguments, None)
            ok("cuMemcpyDtoH_v2", byref(back), memory, c_size_t(4))
            assert back.value == word

        seen = []
        for turn in range(3):
            function, module = made("cuKernelGetFunction", kernel), made("cuLibraryGetModule", library)
            assert made("cuKernelGetFunction", kernel).value == function.value
            assert made("cuLibraryGetModule", library).value == module.value
            fill(function, turn + 1)
            fill(made("cuModuleGetFunction", module, b"fill_u32"), turn + 11)
            fill(kernel, turn + 21)
            seen.append(function.value)
            ok("cuDevicePrimaryCtxReset_v2", 0)
            retain()
        assert len(set(seen)) == 3
        second = c_void_p()
        ok("cuCtxCreate_v2", byref(second), 0, 0)
        fill(made("cuKernelGetFunction", kernel), 31)
        ok("cuLibraryUnload", library)
        ok("cuCtxSynchronize")
        """,
    )


def test_a_function_of_a_library_has_one_handle(worker: RealWorker) -> None:
    """However it is asked for, whichever context is current: as 580.159.04."""
    script(
        worker,
        """
        def names(functions):
            texts = [made("cuFuncGetName", function) for function in functions]
            return [ctypes.string_at(text.value) for text in texts]

        for first in ("kernel", "module"):
            library = made("cuLibraryLoadData", ptx, None, None, 0, None, None, 0)
            home, module, count = made("cuCtxGetCurrent"), made("cuLibraryGetModule", library), c_uint()
            ok("cuModuleGetFunctionCount", byref(count), module)
            listed = (c_void_p * count.value)()
            for turn in (first, "list", "module", "kernel", "list"):
                if turn == "list":
                    ok("cuModuleEnumerateFunctions", listed, count, module)
                    found = listed[names([c_void_p(x) for x in listed]).index(b"fill_u32")]
                elif turn == "module":
                    found = made("cuModuleGetFunction", module, b"fill_u32").value
                else:
                    found = made("cuKernelGetFunction", made("cuLibraryGetKernel", library, b"fill_u32")).value
                seen = found if turn == first else seen
                assert found == seen, turn
            assert len(set(listed)) == count.value
            assert made("cuFuncGetModule", c_void_p(seen)).value == module.value

            other = c_void_p()
            ok("cuCtxCreate_v2", byref(other), 0, 0)
            assert made("cuModuleGetFunction", module, b"fill_u32").value == seen
            assert made("cuFuncGetModule", c_void_p(seen)).value == module.value
            elsewhere = made("cuKernelGetFunction", made("cuLibraryGetKernel", library, b"fill_u32"))
            saxpy = made("cuModuleGetFunction", module, b"saxpy")
            assert elsewhere.value != seen
            ok("cuCtxSetCurrent", home)
            there = made("cuFuncGetModule", elsewhere)  # made now, in the context of the function
            assert there.value != module.value
            assert made("cuModuleGetFunction", there, b"fill_u32").value == elsewhere.value
            assert made("cuLibraryGetModule", library).value == module.value
            zero = c_ulonglong()
            ok("cuLaunchKernel", saxpy, 1, 1, 1, 1, 1, 1, 0, None, (c_void_p * 4)(*[ctypes.addressof(zero)] * 4), None)
            ok("cuCtxSynchronize")
            ok("cuCtxDestroy_v2", other)
            assert cuda.cuModuleGetFunction(byref(saxpy), there, b"saxpy") == 709
            assert cuda.cuFuncGetModule(byref(saxpy), elsewhere) == 400
            ok("cuLibraryUnload", library)
            ok("cuCtxSynchronize")
        """,
    )


def test_broken_context_breaks_the_others_of_its_device(worker: RealWorker) -> None:
    script(
        worker,
        """
        first, bad, value, count = retain(), c_ulonglong(0x700000000000), c_uint(1), c_size_t(1)
        second = c_void_p()
        ok("cuCtxCreate_v2", byref(second), 0, 0)
        ok("cuCtxSetCurrent", first)
        fill = made("cuModuleGetFunction", made("cuModuleLoadData", ptx), b"fill_u32")
        arguments = (c_void_p * 3)(*[ctypes.addressof(x) for x in (bad, value, count)])
        ok("cuLaunchKernel", fill, 1, 1, 1, 1, 1, 1, 0, None, arguments, None)
        memory = c_ulonglong()
        for _ in range(2):
            assert cuda.cuCtxSynchronize() == 700
            assert cuda.cuMemAlloc_v2(byref(memory), c_size_t(64)) == 700
        ok("cuCtxSetCurrent", second)
        for _ in range(2):
            assert cuda.cuEventCreate(byref(c_void_p()), 0) == 700
            assert cuda.cuCtxSynchronize() == 700
        ok("cuCtxSetCurrent", None)
        ok("cuCtxDestroy_v2", second)
        ok("cuDevicePrimaryCtxReset_v2", 0)
        assert cuda.cuDevicePrimaryCtxRetain(byref(second), 0) == 700
        """,
    )


def test_log_of_a_failed_compilation(worker: RealWorker) -> None:
    script(
        worker,
        """
        broken = b".version 7.0\\n.target sm_75\\n.address_size 64\\n.visible .entry broken() {\\n"
        log = ctypes.create_string_buffer(b"x" * 4096, 4096)
        options, module = (c_int * 2)(5, 6), c_void_p()
        values = (c_void_p * 2)(ctypes.addressof(log), 4096)
        assert cuda.cuModuleLoadDataEx(byref(module), broken, 2, options, values) == 218
        assert b"ends inside a function" in log.value, log.value
        assert values[1] == len(log.value)
        values = (c_void_p * 2)(ctypes.addressof(log), 9)
        library = c_void_p()
        assert cuda.cuLibraryLoadData(byref(library), broken, options, values, 2, None, None, 0) == 0  # lazy
        assert len(log.value) == 8 == values[1]
        assert cuda.cuLibraryGetKernel(byref(module), library, b"broken") == 218
        assert cuda.cuModuleLoadData(byref(module), broken) == 218
        ok("cuCtxSynchronize")
        """,
    )


def test_only_the_first_launch_of_a_kind_waits(worker: RealWorker, tmp_path: Path) -> None:
    path = tmp_path / "statistics"
    script(
        worker,
        """
        class Attribute(ctypes.Structure):
            _fields_ = [("id", c_int), ("pad", c_int), ("value", c_uint * 16)]

        class Config(ctypes.Structure):
            _fields_ = [("shape", c_uint * 7), ("stream", c_void_p), ("attributes", c_void_p), ("count", c_uint)]

        fill = made("cuModuleGetFunction", made("cuModuleLoadData", ptx), b"fill_u32")
        memory, value, count = c_ulonglong(), c_uint(1), c_size_t(64)
        ok("cuMemAlloc_v2", byref(memory), c_size_t(4096))
        arguments = (c_void_p * 3)(*[ctypes.addressof(x) for x in (memory, value, count)])
        attribute = Attribute(4, 0, (c_uint * 16)(2, 1, 1, *range(13)))
        for i in range(500):
            attribute.value[7] = i    # not a part of this attribute's value
            config = Config((c_uint * 7)(2 * (1 + i % 7), 1, 1, 64, 1, 1, 0), None, ctypes.addressof(attribute), 1)
            ok("cuLaunchKernelEx", byref(config), fill, arguments, None)
        config.shape[0] = 3
        assert cuda.cuLaunchKernelEx(byref(config), fill, arguments, None) == 912
        ok("cuCtxSynchronize")
        """,
        TF_STATS_PATH=str(path),
    )
    assert json.loads(path.read_text())["by_function"]["cuLaunchKernelEx"]["round_trips"] == 1


def test_memsets_that_cannot_be_are_refused_at_once(worker: RealWorker) -> None:
    script(
        worker,
        """
        address = c_ulonglong()
        ok("cuMemAlloc_v2", byref(address), c_size_t(4096))
        at = address.value
        set8, set32 = cuda.cuMemsetD8Async, cuda.cuMemsetD32Async
        for call in (set8, set32):
            call.argtypes = [c_ulonglong, c_uint, c_size_t, c_void_p]
        assert set8(at, 1, 4096, None) == 0
        assert set8(at, 1, 4097, None) == 1
        assert set8(0x123456789000, 1, 1, None) == 1
        assert set32(at + 2, 1, 4, None) == 1
        assert set32(at, 1, 1 << 62, None) == 1
        ok("cuCtxSynchronize")
        """,
    )


def test_strict_mode_gives_the_same_answers(worker: RealWorker) -> None:
    script(
        worker,
        """
        module = made("cuModuleLoadData", ptx)
        made("cuModuleGetFunction", module, b"saxpy")
        ok("cuModuleUnload", module)
        event = made("cuEventCreate", 0)
        ok("cuDevicePrimaryCtxReset_v2", 0)
        cuda.cuEventDestroy_v2(event)
        retain()
        ok("cuCtxSynchronize")
        """,
        TF_STRICT="1",
    )
