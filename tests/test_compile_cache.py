"""The cache of what NVRTC compiles: NVRTC itself with the client files, and the private table entry by entry."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli_native import NATIVE, RealWorker
from worker_harness import environment

from tensor_fusion.client.files import client_environment

COMPILE = r"""
import ctypes, json, sys
nvrtc = ctypes.CDLL(sys.argv[1])
source = sys.argv[2].encode()
program, size = ctypes.c_void_p(), ctypes.c_size_t()
options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90", b"--enable-cache-trace")
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"k.cu", 0, None, None) == 0
code = nvrtc.nvrtcCompileProgram(program, 2, options)
def text(what):
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    out = ctypes.create_string_buffer(size.value + 1)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, out) == 0
    return out.raw[:size.value]
print(json.dumps({"code": code, "log": text("ProgramLog").decode(), "cubin": text("CUBIN").hex()}))
"""

# Calls the table's entries as NVRTC does. Each argument is one step; prints what the steps gave.
STEPS = r"""
import ctypes, json, sys
cu = ctypes.CDLL("libcuda.so.1")
assert cu.cuInit(0) == 0
table = ctypes.POINTER(ctypes.c_void_p)()
uuid = bytes.fromhex("da9151d33ae6cc41a5c04f26d533e328")
assert cu.cuGetExportTable(ctypes.byref(table), uuid) == 0
assert table[0] == 0x38
def entry(index, *types):
    return ctypes.CFUNCTYPE(ctypes.c_int, *types)(table[index])
P, N, U = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
make = entry(1, P, ctypes.c_int, ctypes.c_char_p, N, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, U)
end, find, unknown, free = entry(2, P), entry(3, P, N, P, P), entry(5), entry(6, P)
keep = entry(4, P, N, ctypes.c_char_p, U)
results = []
for step in sys.argv[1:]:
    verb, name, *rest = step.split(":")
    key = ctypes.c_void_p()
    kind, _, options = name.partition("/")
    code = make(ctypes.byref(key), int(kind), b"bitcode\0more", 12, options.encode(), b"HOST64", b"build", 90)
    if code:
        results.append(code)
        continue
    if verb == "keep":
        size = int(rest[1]) if len(rest) > 1 else len(rest[0])
        results.append(keep(key, 0, rest[0].encode() * max(size // len(rest[0]), 1), size))
    else:
        data, size = ctypes.c_void_p(), ctypes.c_uint32(77)
        code = find(key, 0, ctypes.byref(data), ctypes.byref(size))
        results.append(ctypes.string_at(data, size.value)[:40].decode() if code == 0 else code)
        if code == 0:
            assert free(data) == 0
    assert end(key) == 0
results.append(unknown())
print(json.dumps(results))
"""
SOURCE = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2.0f; }'
NOT_FOUND, NOT_SUPPORTED, OPERATING_SYSTEM, INVALID = 500, 801, 304, 1


@pytest.fixture(scope="module")
def worker() -> Iterator[RealWorker]:
    started = RealWorker()
    yield started
    started.stop()


def run(worker: RealWorker, program: str, *arguments: str, **variables: str) -> object:
    clean = environment(**NATIVE)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**clean, **client_environment(worker.connection, clean), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def steps(worker: RealWorker, folder: Path, *arguments: str, **variables: str) -> object:
    results = run(worker, STEPS, *arguments, **{"CUDA_CACHE_PATH": str(folder), **variables})
    assert isinstance(results, list)
    assert results.pop() == NOT_SUPPORTED  # the entry that nobody was seen to call
    return results


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "tensor-fusion").iterdir())


def test_nvrtc_compiles_once(worker: RealWorker, tmp_path: Path) -> None:
    """The second process gets the same bytes from the cache; another source does not."""
    files = importlib.metadata.files("nvidia-cuda-nvrtc") or []
    library = next(Path(str(path.locate())) for path in files if path.name == "libnvrtc.so.13")
    variables = {"CUDA_CACHE_PATH": str(tmp_path)}
    clean = client_environment(worker.connection, environment(**NATIVE))
    variables["LD_LIBRARY_PATH"] = f"{library.parent}:{clean['LD_LIBRARY_PATH']}"
    first = run(worker, COMPILE, str(library), SOURCE, **variables)
    second = run(worker, COMPILE, str(library), SOURCE, **variables)
    other = run(worker, COMPILE, str(library), SOURCE.replace("2.0f", "3.0f"), **variables)
    assert isinstance(first, dict) and isinstance(second, dict) and isinstance(other, dict)
    assert first["code"] == second["code"] == other["code"] == 0
    assert "Successfully retrieved cached cubin" not in first["log"]
    assert "Successfully retrieved cached cubin" in second["log"]
    assert "Successfully retrieved cached cubin" not in other["log"]
    assert second["cubin"] == first["cubin"] != other["cubin"]
    assert len(kept(tmp_path)) == 4


def test_what_was_kept_is_found(worker: RealWorker, tmp_path: Path) -> None:
    """By kind and options, in this process and the next; what replaces it is found afterwards."""
    assert steps(worker, tmp_path, "find:1/a", "keep:1/a:one", "find:1/a", "find:2/a", "find:1/b") == [
        NOT_FOUND, 0, "one", NOT_FOUND, NOT_FOUND,
    ]  # fmt: skip
    assert steps(worker, tmp_path, "find:1/a", "keep:1/a:two", "find:1/a") == ["one", 0, "two"]
    assert [path.stat().st_mode & 0o777 for path in kept(tmp_path)] == [0o600]
    assert (tmp_path / "tensor-fusion").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "link"])
def test_a_harmed_file_is_no_result(worker: RealWorker, tmp_path: Path, harm: str) -> None:
    steps(worker, tmp_path, "keep:1/a:something")
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    if harm == "link":
        other = tmp_path / "other"
        path.rename(other)
        path.symlink_to(other)
    else:
        path.write_bytes({"cut": whole[:-1], "changed": whole[:-1] + b"?", "empty": b""}[harm])
    assert steps(worker, tmp_path, "find:1/a", "keep:1/a:again", "find:1/a") == [NOT_FOUND, 0, "again"]


def test_nothing_is_kept(worker: RealWorker, tmp_path: Path) -> None:
    """Switched off, without room for its folder, of no size: the program compiles, and hears no other error."""
    assert steps(worker, tmp_path, "keep:1/a:x", CUDA_CACHE_DISABLE="1") == [NOT_SUPPORTED]
    (tmp_path / "file").write_text("")
    assert steps(worker, tmp_path / "file", "keep:1/a:x", "find:1/a") == [OPERATING_SYSTEM, NOT_FOUND]
    assert steps(worker, tmp_path, "keep:1/a:x:0", "find:1/a") == [INVALID, NOT_FOUND]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_folder_has_a_bound(worker: RealWorker, tmp_path: Path) -> None:
    """What was used least recently goes; files of others and unfinished ones of today stay."""
    folder = tmp_path / "tensor-fusion"
    folder.mkdir()
    (folder / "README").write_text("not ours")
    (folder / ".new-young").write_text("")
    (folder / ".new-old").write_text("")
    os.utime(folder / ".new-old", (1, 1))
    for number in range(8):
        steps(worker, tmp_path, f"keep:1/{number}:x:1000", CUDA_CACHE_MAXSIZE="6000")
    names = {path.name for path in folder.iterdir()}
    assert {"README", ".new-young"} <= names
    assert ".new-old" not in names
    assert 3 <= len(names) - 2 <= 6
    found = steps(worker, tmp_path, *(f"find:1/{number}" for number in range(8)))
    assert isinstance(found, list)
    assert found[0] == NOT_FOUND
    assert found[7] != NOT_FOUND
