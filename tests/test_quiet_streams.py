"""A wait answered in the client must be about the stream that is meant: each context has a legacy stream of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from test_cli_native import NATIVE, RealWorker
from worker_harness import environment

from tensor_fusion.abi import native_file
from tensor_fusion.client.files import client_environment

PROGRAM = r"""
import ctypes, sys, time
cu = ctypes.CDLL("libcuda.so.1")
def must(code, what):
    assert code == 0, f"{what}: {code}"
must(cu.cuInit(0), "cuInit")
idle, busy = ctypes.c_void_p(), ctypes.c_void_p()
must(cu.cuCtxCreate_v2(ctypes.byref(idle), 0, 0), "create")
must(cu.cuCtxCreate_v2(ctypes.byref(busy), 0, 0), "create")
module, spin = ctypes.c_void_p(), ctypes.c_void_p()
must(cu.cuModuleLoadData(ctypes.byref(module), open(sys.argv[1], "rb").read() + b"\0"), "load")
must(cu.cuModuleGetFunction(ctypes.byref(spin), module, b"spin_ns"), "get")
duration = ctypes.c_uint64(2_000_000_000)  # longer than the calls take on a busy machine
parameters = (ctypes.c_void_p * 1)(ctypes.addressof(duration))
begun = time.monotonic()
must(cu.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, None, parameters, None), "launch")
must(cu.cuCtxSetCurrent(idle), "set")
must(cu.cuStreamSynchronize(None), "synchronize the idle one")
must(cu.cuStreamQuery(None), "query the idle one")
must(cu.cuCtxSetCurrent(busy), "set")
print("query", *(cu.cuStreamQuery(None) for _ in range(4)))
must(cu.cuCtxSetCurrent(idle), "set")
must(cu.cuStreamQuery(None), "query the idle one while the busy one is watched")
must(cu.cuCtxSetCurrent(busy), "set")
print("query", *(cu.cuStreamQuery(None) for _ in range(4)))
must(cu.cuStreamSynchronize(None), "synchronize")
print("waited", time.monotonic() - begun >= 2)
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[RealWorker]:
    started = RealWorker()
    yield started
    started.stop()


def test_legacy_streams_of_two_contexts(worker: RealWorker) -> None:
    clean = environment(**NATIVE)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(native_file("kernels.ptx"))],
        env={**clean, **client_environment(worker.connection, clean)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["query 600 600 600 600"] * 2 + ["waited True"]
