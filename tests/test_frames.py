"""A hostile client's frames, step by step, against the session's code on the simulated GPU.

What the fuzzer (tests/native/fuzz_frames.c) would have to be lucky for. `TF_TEST_SANITIZE=address,undefined` builds it
with those sanitizers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_code import includes
from native_code import sources as code_of

from tensor_fusion.abi import native_file, native_folder

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "native"
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
SIMGPU = native_file("lib/libtf-simgpu.so")
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif(not SIMGPU.is_file(), reason=f"no simulated GPU in {native_folder()}"),
]
CASES = (
    "event",
    "pool_share",
    "graph",
    "nest",
    "deep",
    "capture_inside",
    "capture_copied",
    "blamed",
    "ending_event",
    "ending_enter",
    "retain",
    "dying",
    "link",
    "unload",
    "unload_fails",
    "threads",
    "alone",
    "waits",
    "points",
    "node_module",
    "node_library",
    "node_context",
    "node_captured",
    "node_changed",
    "node_order",
    "tables",
    "own_memory",
    "twin_alone",
    "twins_alone",
    "mix",
    "mix_failed",
    "struct",
    "struct_short",
    "struct_long",
    "struct_count",
    "struct_list",
    "struct_box",
    "struct_kernel",
    "token",
    "kinds",
    "conditional",
    "conditional_names",
    "graph_memory",
)


def build(out: Path, generated: Path, sources: list[Path]) -> Path:
    folders = [*includes("base", "wire", "ring", "transport", "session"), f"-I{generated}"]
    sanitize = os.environ.get("TF_TEST_SANITIZE")
    flags = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"] if sanitize else []
    command = [COMPILER or "", "-std=gnu17", "-D_GNU_SOURCE", "-O0", "-g", "-fno-strict-aliasing", *flags]
    command += [*folders, *map(str, sources), "-pthread", "-ldl", "-o", str(out)]
    subprocess.run(command, check=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    subprocess.run(
        [sys.executable, "-m", "tensor_fusion.apigen", "--api", str(ROOT / "api"), "--out", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def program(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [ROOT / "tests/native/test_frames.c", ROOT / "tests/native/fuzz_link.c"]
    left_out = {"main.c", "link.c", "link_data.c", "link_slot.c"}
    sources += [file for file in code_of("session", "*") if file.name not in left_out]
    sources += [file for name in ("base", "wire", "ring", "transport") for file in code_of(name, "*")]
    sources += [generated / f"tpg_{name}.c" for name in ("driver", "dispatch", "tables")]
    return build(tmp_path_factory.mktemp("frames") / "test_frames", generated, sources)


@pytest.mark.parametrize("case", CASES)
def test_what_a_client_may_not_bring_about(program: Path, case: str) -> None:
    done = subprocess.run([program, SIMGPU, case], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_lengths_inside_images(generated: Path, tmp_path: Path) -> None:
    sources = [ROOT / "tests/native/test_image_size.c", NATIVE / "wire/image.c"]
    done = subprocess.run(
        [build(tmp_path / "test_image_size", generated, sources)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
