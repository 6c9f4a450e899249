"""The simulated GPU: its C tests, plain and under sanitizers, and its behaviour under fault scripts.

The library comes from the build folder in TF_TEST_BUILD, or is compiled here from native/simgpu; the C tests are always
compiled here. Nothing else of the product but the generator is needed.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_compiler
import pytest

from tensor_fusion.apigen.__main__ import outputs
from tensor_fusion.apigen.model import load

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "native" / "simgpu"
TESTS = ROOT / "tests" / "native"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ["-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wno-sign-conversion", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
EVERYTHING = ["core", "streams", "graphs", "arrays", "parts", "green", "images", "nvml", "peers"]
ENVIRONMENT = {
    "nvml": {"TF_SIM_DEVICES": "2", "TF_SIM_MEMORY_MB": "4096"},
    "peers": {"TF_SIM_DEVICES": "2", "TF_SIM_MEMORY_MB": "4096"},
}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program without the simulator's variables that the caller's environment may hold."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TF_SIM_")}
    return subprocess.run(
        [str(part) for part in command],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


class Build:
    """A folder with the library and the test programs, compiled with the given extra flags."""

    def __init__(self, folder: Path, extra: list[str], library: Path | None = None) -> None:
        self.folder = folder
        self.extra = extra
        generated = outputs(load(ROOT / "api"))
        for name in ("tpg_cuda.h", "tpg_nvml.h", "tpg_table.h", "tpg_sim_rest.c"):
            (folder / name).write_text(generated[name])
        self.library = library or self._library()

    def _compile(self, *arguments: str | Path) -> None:
        command = [
            COMPILER or "cc",
            *FLAGS,
            *WARNINGS,
            *self.extra,
            f"-I{self.folder}",
            f"-I{SOURCES}",
            f"-I{TESTS}",
            *arguments,
        ]
        done = run(command)
        assert done.returncode == 0, done.stderr

    def _library(self) -> Path:
        objects = {
            source: self.folder / f"{source.stem}.o"
            for source in [*sorted(SOURCES.glob("*.c")), self.folder / "tpg_sim_rest.c"]
        }
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda source: self._compile("-c", source, "-o", objects[source]), objects))
        library = self.folder / "libtf-simgpu.so"
        self._compile("-shared", *objects.values(), "-o", library, "-Wl,-Bsymbolic", "-ldl")
        return library

    def program(self, name: str) -> Path:
        program = self.folder / f"test_simgpu_{name}"
        if not program.exists():
            source = TESTS / f"{program.name}.c"
            self._compile(source, "-o", program, self.library, f"-Wl,-rpath,{self.library.parent}", "-ldl")
        return program


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Build:
    place = os.environ.get("TF_TEST_BUILD")
    built = list(Path(place).rglob("libtf-simgpu.so")) if place else []
    return Build(tmp_path_factory.mktemp("simgpu"), [], built[0] if built else None)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("simgpu-sanitized"), SANITIZE)


@pytest.mark.parametrize("name", EVERYTHING)
def test_plain(plain: Build, name: str) -> None:
    done = run([plain.program(name)], **ENVIRONMENT.get(name, {}))
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", EVERYTHING)
def test_sanitized(sanitized: Build, name: str) -> None:
    done = run([sanitized.program(name)], **ENVIRONMENT.get(name, {}))
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_images_of_nvcc(plain: Build, tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(
        "__device__ int counter = 7;\n"
        'extern "C" __global__ void vector_add(const float *a, const float *b, float *c, int n) {\n'
        "  int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "  if (i < n) c[i] = a[i] + b[i] + 0 * (counter - 7);\n}\n"
    )
    ninety = "arch=compute_90,code=sm_90"
    forms = {
        "cubin": ["-arch=sm_90", "-cubin"],
        "ptx": ["-arch=sm_90", "-ptx"],
        "plain.fatbin": ["-gencode", "arch=compute_80,code=sm_80", "-gencode", ninety, "-fatbin", "--no-compress"],
        "lz4.fatbin": ["-gencode", ninety, "-fatbin", "-Xfatbin", "-compress-all,-compress-mode=speed"],
    }
    images = []
    for name, flags in forms.items():
        images.append(tmp_path / f"kernels.{name}")
        done = run([cuda_compiler.nvcc(), *flags, source, "-o", images[-1]])
        assert done.returncode == 0, done.stderr
    done = run([plain.program("images"), *images])
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def results(done: subprocess.CompletedProcess[str], call: str) -> list[int]:
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.split()[0] == call]


def test_nothing_injected(plain: Build) -> None:
    done = run([plain.program("faults")])
    assert done.returncode == 0
    assert results(done, "alloc") == [0] * 4
    assert results(done, "launch") == [0] * 3
    assert results(done, "unknown") == [801]
    assert done.stderr.count("\n") == 1
    assert "kernel no_parameters is not one that is simulated" in done.stderr


def test_unknown_kernels_can_be_skipped(plain: Build) -> None:
    done = run([plain.program("faults")], TF_SIM_UNKNOWN_KERNELS="skip")
    assert results(done, "unknown") == [0]
    assert done.stderr == ""


def test_the_nth_call_fails_once(plain: Build) -> None:
    done = run([plain.program("faults")], TF_SIM_FAULTS="cuMemAlloc_v2:3=2;cuStreamSynchronize:1=719")
    assert results(done, "alloc") == [0, 0, 2, 0]
    assert results(done, "sync") == [719]
    assert results(done, "device") == [0]


def test_the_nth_call_and_all_later_ones_fail(plain: Build) -> None:
    done = run([plain.program("faults")], TF_SIM_FAULTS="cuMemAlloc_v2:2+=2")
    assert results(done, "alloc") == [0, 2, 2, 2]


def test_a_sticky_error_poisons_the_context(plain: Build) -> None:
    done = run([plain.program("faults")], TF_SIM_FAULTS="cuLaunchKernel:2=700,sticky")
    assert results(done, "launch") == [0, 700, 700]
    assert results(done, "sync") == [700]
    assert results(done, "device") == [0]


def test_a_call_never_returns(plain: Build) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TF_SIM_")}
    with subprocess.Popen(
        [plain.program("faults")],
        env=clean | {"TF_SIM_FAULTS": "cuStreamSynchronize:1=hang"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
        output, _ = process.communicate()
    assert output.splitlines()[-1].startswith("unknown")


def test_the_process_ends_at_any_call(plain: Build) -> None:
    done = run([plain.program("faults")], TF_SIM_FAULTS="*:5=exit")
    assert done.returncode == 86
    assert results(done, "alloc") == [0]


@pytest.mark.parametrize(
    "script",
    ["nonsense", "cuInit=2", "cuInit:0=2", "cuInit:1=", "cuInit:1=2,stuck", ":1=2", "cuInit:x=2", "cuMemAllocate:1=2"],
)
def test_a_script_that_does_not_parse_ends_the_process(plain: Build, script: str) -> None:
    done = run([plain.program("faults")], TF_SIM_FAULTS=f"cuMemAlloc_v2:1=2;{script}")
    assert done.returncode == 87
    assert f'"{script}"' in done.stderr


def test_the_names_of_the_real_libraries_are_exported(plain: Build) -> None:
    """All of them, also those that are refused, and none but them."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    done = run([nm, "-D", "--defined-only", plain.library])
    names = {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}
    exports = json.loads((ROOT / "api" / "exports.json").read_text())
    assert names == {*exports["cuda"], *exports["nvml"]}


def test_the_look_up_answers_as_the_driver_did(plain: Build) -> None:
    """For every name, version and kind of default stream that the real driver was asked for."""
    library = ctypes.CDLL(str(plain.library))
    recorded = json.loads((ROOT / "api" / "procaddress.json").read_text())
    asked = 0
    for name, flags in recorded["names"].items():
        for flag, rows in flags.items():
            for version in recorded["versions"]:
                entry = next((entry for first, entry in reversed(rows) if first <= version), "!0/2")
                address, status = ctypes.c_void_p(), ctypes.c_int(-1)
                words = ctypes.byref(address), version, ctypes.c_uint64(int(flag)), ctypes.byref(status)
                assert library.cuGetProcAddress_v2(name.encode(), *words) == 0
                if entry.startswith("!"):
                    assert (address.value, status.value) == (None, int(entry.rpartition("/")[2])), (name, flag, version)
                else:
                    there = ctypes.cast(getattr(library, entry), ctypes.c_void_p).value
                    assert (address.value, status.value) == (there, 0), (name, flag, version)
                asked += 1
    assert asked > 40000
