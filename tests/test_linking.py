"""Linking at run time through the whole stack: logs come back, the image loads, wrong input is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli_native import NATIVE, RealWorker
from worker_harness import environment

from tensor_fusion.abi import native_file
from tensor_fusion.client.files import client_environment

PROGRAM = r"""
import ctypes, sys
cu = ctypes.CDLL("libcuda.so.1")
text = open(sys.argv[1], "rb").read() + b"\0"
def must(code, what):
    assert code == 0, f"{what}: {code}"
must(cu.cuInit(0), "cuInit")
context = ctypes.c_void_p()
must(cu.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), "retain")
must(cu.cuCtxSetCurrent(context), "set")
log = ctypes.create_string_buffer(b"before", 4096)
options = (ctypes.c_int * 2)(5, 6)
values = (ctypes.c_void_p * 2)(ctypes.addressof(log), 4096)
state = ctypes.c_void_p()
must(cu.cuLinkCreate_v2(2, options, values, ctypes.byref(state)), "create")
bad = b".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry broken(\n\0"
print("bad", cu.cuLinkAddData_v2(state, 1, bad, ctypes.c_size_t(len(bad)), b"bad", 0, None, None))
print("empty", cu.cuLinkAddData_v2(state, 1, text, ctypes.c_size_t(0), b"none", 0, None, None))
print("short", cu.cuLinkAddData_v2(state, 0, b"\x7fELF", ctypes.c_size_t(4), b"short", 0, None, None))
must(cu.cuLinkAddData_v2(state, 1, text, ctypes.c_size_t(len(text) - 1), b"kernels", 0, None, None), "add")
image, size = ctypes.c_void_p(), ctypes.c_size_t()
must(cu.cuLinkComplete(state, ctypes.byref(image), ctypes.byref(size)), "complete")
print("as_added", ctypes.string_at(image, size.value) in (text, text[:-1]))
module, function = ctypes.c_void_p(), ctypes.c_void_p()
must(cu.cuModuleLoadData(ctypes.byref(module), image), "load")
must(cu.cuModuleGetFunction(ctypes.byref(function), module, b"vector_add"), "get")
print("missing", cu.cuModuleGetFunction(ctypes.byref(function), module, b"no_such_kernel"))
must(cu.cuLinkDestroy(state), "destroy")
print("gone", cu.cuLinkDestroy(state))
print("log", len(log.value) > 0 and log.value != b"before")
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[RealWorker]:
    started = RealWorker()
    yield started
    started.stop()


@pytest.mark.parametrize("padding", [0, 3 << 20], ids=["small", "larger than a frame"])
def test_one_input_is_linked_and_its_image_loads(worker: RealWorker, tmp_path: Path, padding: int) -> None:
    clean = environment(**NATIVE)
    source = tmp_path / "kernels.ptx"
    # What the simulated GPU links comes out as it went in; numbered lines tell a piece in the wrong place.
    more = "".join(f"// {number:12}\n" for number in range(padding // 16))
    source.write_text(native_file("kernels.ptx").read_text() + more)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source)],
        env={**clean, **client_environment(worker.connection, clean)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert answers["bad"] in ("200", "218")  # invalid image or invalid PTX
    assert answers["empty"] == "1"
    assert answers["short"] == "200"
    assert answers["as_added"] == "True"
    assert answers["missing"] == "500"
    assert answers["gone"] == "400"
    assert answers["log"] == "True"
