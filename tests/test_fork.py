"""Forked programs: a child may use CUDA as long as its parent has not called cuInit, as on a machine with a driver.

Frameworks ask NVML how many devices there are, so as not to make a context, and leave CUDA to the children.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from test_cli_native import NATIVE, RealWorker
from worker_harness import environment

from tensor_fusion.client.files import client_environment

PREAMBLE = """
import ctypes, os, sys, threading
cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
number, pointer = ctypes.c_int(), ctypes.c_uint64()

def devices():
    result = nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
    return number.value if result == 0 else -result

def compute():
    \"\"\"A round trip through device memory, in a process that has not used CUDA before.\"\"\"
    context, word = ctypes.c_void_p(), ctypes.c_uint()
    assert cuda.cuInit(0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4096)) == 0
    assert cuda.cuMemsetD32_v2(pointer, ctypes.c_uint(0x51ee9), ctypes.c_size_t(4)) == 0
    assert cuda.cuMemcpyDtoH_v2(ctypes.byref(word), pointer, ctypes.c_size_t(4)) == 0
    assert word.value == 0x51ee9

def in_child(body):
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            print("child:", repr(error), error.__traceback__.tb_lineno, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[RealWorker]:
    started = RealWorker()
    yield started
    started.stop()


def run(worker: RealWorker, source: str, **variables: str) -> None:
    clean = environment(**NATIVE, **variables)
    result = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(source)],
        env={**clean, **client_environment(worker.connection, clean)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("shutdown", [True, False], ids=["shutdown", "open"])
def test_child_of_a_parent_that_only_asked_nvml(worker: RealWorker, shutdown: bool) -> None:
    run(
        worker,
        f"""
        assert nvml.nvmlInit_v2() == 0 and devices() == 1
        if {shutdown}:
            assert nvml.nvmlShutdown() == 0

        def child():
            assert devices() == -1, devices()          # not initialised in this process
            compute()
            assert nvml.nvmlInit_v2() == 0 and devices() == 1
            in_child(grandchild)

        def grandchild():
            assert cuda.cuInit(0) == 3
            assert nvml.nvmlInit_v2() == 0 and devices() == 1

        for _ in range(3):
            in_child(child)
        assert nvml.nvmlInit_v2() == 0 and devices() == 1   # the parent's connection has survived its children
        compute()
        """,
    )


def test_child_of_a_parent_that_has_used_cuda(worker: RealWorker) -> None:
    run(
        worker,
        """
        assert nvml.nvmlInit_v2() == 0
        compute()

        def child():
            assert cuda.cuInit(0) == 3
            assert cuda.cuCtxSynchronize() == 3
            assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4096)) == 3
            assert nvml.nvmlInit_v2() == 0 and devices() == 1

        in_child(child)
        assert cuda.cuMemFree_v2(pointer) == 0 and cuda.cuCtxSynchronize() == 0
        """,
    )


def test_forks_while_other_threads_use_nvml(worker: RealWorker) -> None:
    run(
        worker,
        """
        import time
        stop = False

        def ask():
            while not stop:
                assert nvml.nvmlInit_v2() == 0 and devices() == 1
                memory = (ctypes.c_uint64 * 8)()
                device = ctypes.c_void_p()
                assert nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
                assert nvml.nvmlDeviceGetMemoryInfo(device, memory) == 0

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            in_child(compute)
        stop = True
        for thread in threads:
            thread.join()
        """,
    )


def test_each_process_writes_its_own_statistics(worker: RealWorker, tmp_path: os.PathLike[str]) -> None:
    run(
        worker,
        f"""
        import json, pathlib
        assert nvml.nvmlInit_v2() == 0
        child = os.fork()
        if child == 0:
            compute()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        stats = json.loads(pathlib.Path({os.fspath(tmp_path)!r}, str(child)).read_text())
        assert "cuInit" in stats["by_function"] and "nvmlInit" not in stats["by_function"], stats
        """,
        TF_STATS_PATH=os.fspath(tmp_path) + "/%p",
    )
