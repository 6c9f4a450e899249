"""The programs of the GPU run, as far as they can be proved without a GPU: they build without a warning, every question
of driver_api is asked even where the driver refuses everything, and the PTX is that of its source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_compiler
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import suite
from compare import answers, read_expectations

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")


def compile_c(name: str, folder: Path, *flags: str) -> Path:
    sources = [str(suite.PROGRAMS_FOLDER / source) for source in suite.C_BUILDS[name]]
    command = ["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", *suite.WARNINGS, *flags, "-o", str(folder / name), *sources]
    subprocess.run([*command, "-ldl", "-lpthread", "-lrt"], check=True)
    return folder / name


def stub_driver(folder: Path, succeeding: frozenset[str]) -> None:
    """A libcuda.so.1 of every function that cu.h names: those in `succeeding` give 0, the others 801."""
    text = (suite.PROGRAMS_FOLDER / "cu.h").read_text()
    names = re.findall(r"F\((cu\w+), \(", text[text.index("#define CU_FUNCTIONS") :])
    assert len(names) > 130
    source = folder / "stub.c"
    source.write_text("".join(f"int {n}(void) {{ return {0 if n in succeeding else 801}; }}\n" for n in names))
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source), "-Wl,-soname,libcuda.so.1"]
    subprocess.run(command, check=True)


def gcc_version() -> int:
    done = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True)
    return int(done.stdout.partition(".")[0])


@needs_gcc
@pytest.mark.parametrize("name", sorted(suite.C_BUILDS))
def test_c_programs_build_without_a_warning(name: str, tmp_path: Path) -> None:
    assert compile_c(name, tmp_path).exists()


@needs_gcc
def test_a_driver_that_refuses_everything_is_reported_not_crashed_on(tmp_path: Path) -> None:
    # What a refused call leaves unwritten is 0xfe here, and not by luck a zero; gcc has this since 12.
    poison = ["-ftrivial-auto-var-init=pattern"] if gcc_version() >= 12 else []
    program = compile_c("driver_api", tmp_path, *poison)
    stub_driver(tmp_path, frozenset({"cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"}))
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "KERNELS_PTX": str(suite.KERNELS_PTX)}
    done = subprocess.run([str(program)], env=env, capture_output=True, text=True, check=True, timeout=60)
    found = answers(done.stdout)
    ends = [question for question in found if question.endswith("/(end)")]
    assert len(ends) == 22
    assert not [question for question, answer in found.items() if "signal" in answer]
    assert found["before_init/cuMemAlloc"] == "801"
    assert str(tmp_path / "libcuda.so.1") in done.stdout.splitlines()[-1]


@needs_gcc
@pytest.mark.parametrize("name", ["launch_cost", "client_memory"])
def test_a_refused_call_ends_the_measurement(name: str, tmp_path: Path) -> None:
    program = compile_c(name, tmp_path)
    stub_driver(tmp_path, frozenset())
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "KERNELS_PTX": str(suite.KERNELS_PTX)}
    done = subprocess.run([str(program)], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert "cuInit failed with 801" in done.stderr
    assert not done.stdout


def test_cuda_programs_build(tmp_path: Path) -> None:
    source, _ = suite.CUDA_BUILDS["cudart_static"]
    command = [cuda_compiler.nvcc(), "-std=c++17", "-arch=compute_75", *cuda_compiler.linked("static")]
    command += ["-o", str(tmp_path / "program")]
    subprocess.run([*command, str(suite.PROGRAMS_FOLDER / source)], check=True)


def test_the_ptx_is_that_of_its_source(tmp_path: Path) -> None:
    kernels = suite.KERNELS_PTX.parent
    for name in ("kernels.cu", "mix.cu", "print.cu", "build.sh"):
        shutil.copy(kernels / name, tmp_path / name)
    subprocess.run(["sh", str(tmp_path / "build.sh")], check=True)
    for name in ("kernels.ptx", "mix.ptx", "print.ptx"):
        assert (tmp_path / name).read_text() == (kernels / name).read_text()


def test_every_program_has_its_files() -> None:
    for program in suite.programs():
        for part in program.command:
            if part.startswith("{programs}/"):
                assert (suite.PROGRAMS_FOLDER / part.partition("/")[2]).is_file(), part
            if part.startswith("{bin}/"):
                assert part.partition("/")[2] in {**suite.C_BUILDS, **suite.CUDA_BUILDS}, part
        read_expectations(program.expectations)
    names = [program.name for program in suite.programs()]
    assert len(names) == len(set(names))
