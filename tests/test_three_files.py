"""The spec's client: three plain files in one folder, without links, preloaded or found by LD_LIBRARY_PATH.

Whatever copies of them a process has loaded, under whatever names, they are one client. What is wrong with a folder is
said in one sentence at the first CUDA call, and never ends a program that makes none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from stack.harness import COMPILER, Worker, clean_environment

from tensor_fusion.abi import native_file
from tensor_fusion.client.files import LIBRARIES, client_folder
from tensor_fusion.config import CONNECTION_INFO

SPEC = tuple(f"{name}.so" for name in LIBRARIES)
SHIPPED = (*SPEC, *(f"{name}.so.1" for name in LIBRARIES))
MISSING, FOREIGN = 303, 803  # CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
NVML_MISSING, NVML_FOREIGN = 12, 18

PREAMBLE = """
import ctypes, os, sys, threading
def libteleports():
    lines = open("/proc/self/maps").read().splitlines()
    return sorted({line.split(None, 5)[5] for line in lines if "/libteleport.so" in line})
"""


def plain(folder: Path, names: Sequence[str] = SPEC) -> Path:
    """A copy of the client files as `cp -L`, scp or a FAT stick would leave it: files, and no link."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        source = native_file(f"client/{name.removesuffix('.1')}.1")
        shutil.copy(source, folder / name)
        (folder / name).chmod(0o644)
    assert not [path for path in folder.iterdir() if path.is_symlink()]
    return folder


def preload(folder: Path) -> str:
    return f"{folder}/libcuda.so:{folder}/libnvidia-ml.so"


def run(program: str | Sequence[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(program)] if isinstance(program, str) else program
    return subprocess.run(
        [str(word) for word in command],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as running:
        yield running


@pytest.fixture
def connected(worker: Worker) -> dict[str, str]:
    return {CONNECTION_INFO: worker.connection}


USE = """
    cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
    count = ctypes.c_int()
    print(cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(count)), count.value, nvml.nvmlInit_v2())
    print(len(libteleports()))
"""


def test_three_plain_files_preloaded(tmp_path: Path, connected: dict[str, str]) -> None:
    folder = plain(tmp_path / "client")
    for command in (["ls", str(folder)], ["true"], ["sh", "-c", "echo $0 | cat"]):
        done = run(command, LD_PRELOAD=preload(folder))
        assert (done.returncode, done.stderr) == (0, "")
    done = run(USE, LD_PRELOAD=preload(folder), **connected)
    assert done.stdout.split() == ["0", "0", "1", "0", "1"], done.stderr


@pytest.mark.parametrize("names", [SHIPPED, [f"{name}.so.1" for name in LIBRARIES]], ids=["all", "versioned"])
def test_folder_without_links_on_the_library_path(
    tmp_path: Path, connected: dict[str, str], names: Sequence[str]
) -> None:
    done = run(USE, LD_LIBRARY_PATH=str(plain(tmp_path / "client", names)), **connected)
    assert done.stdout.split() == ["0", "0", "1", "0", "1"], done.stderr


def test_nothing_of_libteleport_before_the_first_call(tmp_path: Path) -> None:
    done = run('ctypes.CDLL("libcuda.so.1"); print(libteleports())', LD_PRELOAD=preload(plain(tmp_path / "client")))
    assert done.stdout == "[]\n", done.stderr


def test_relative_path_after_a_change_of_folder(tmp_path: Path, connected: dict[str, str]) -> None:
    plain(tmp_path / "client")
    program = PREAMBLE + 'os.chdir("/")\n' + textwrap.dedent(USE)
    loaded = "LD_PRELOAD=client/libcuda.so:client/libnvidia-ml.so"
    words = ["env", "-C", str(tmp_path), loaded, sys.executable, "-c", program]
    done = run(words, **connected)
    assert done.stdout.split() == ["0", "0", "1", "0", "1"], done.stderr


def test_link_to_a_file_in_another_folder(tmp_path: Path, connected: dict[str, str]) -> None:
    folder = plain(tmp_path / "client")
    elsewhere = tmp_path / "lib"
    elsewhere.mkdir()
    for name in ("libcuda", "libnvidia-ml"):
        (elsewhere / f"{name}.so.1").symlink_to(folder / f"{name}.so")
    done = run(USE, LD_LIBRARY_PATH=str(elsewhere), **connected)
    assert done.stdout.split() == ["0", "0", "1", "0", "1"], done.stderr


# Several copies in one process


def test_copies_share_one_state(tmp_path: Path, connected: dict[str, str]) -> None:
    """libcuda.so by preload and two copies by their paths: what one allocates, the others know and free."""
    first, second, third = (plain(tmp_path / name, SHIPPED) for name in ("one", "two", "three"))
    program = f"""
        cuda = ctypes.CDLL("libcuda.so.1")
        copies = [ctypes.CDLL({str(second / "libcuda.so.1")!r}), ctypes.CDLL({str(third / "libcuda.so")!r})]
        flags = os.RTLD_NOW | os.RTLD_DEEPBIND
        copies.append(ctypes.CDLL({str(third / "libcuda.so.1")!r}, mode=flags))
        assert len({{ctypes.cast(c.cuInit, ctypes.c_void_p).value for c in [cuda, *copies]}}) == 4
        context, pointer, found = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p()
        print(cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), cuda.cuCtxSetCurrent(context))
        for copy in copies:
            print(copy.cuCtxGetCurrent(ctypes.byref(found)), found.value == context.value)
            print(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4096)), copy.cuMemFree_v2(pointer))
            print(copy.cuMemFree_v2(pointer), cuda.cuMemFree_v2(pointer))
        nvml = [ctypes.CDLL(path) for path in ({str(first / "libnvidia-ml.so")!r}, {str(third / "libnvidia-ml.so")!r})]
        print(nvml[0].nvmlInit_v2(), nvml[1].nvmlShutdown(), nvml[0].nvmlShutdown(), len(libteleports()))
    """
    done = run(program, LD_PRELOAD=preload(first), **connected)
    lines = done.stdout.splitlines()
    assert lines[0] == "0 0 0", done.stderr
    assert lines[1:10] == ["0 True", "0 0", "1 1"] * 3
    assert lines[10].split()[:3] == ["0", "0", "1"]
    assert lines[10].split()[3] == "1"


def test_copies_that_begin_at_one_moment(tmp_path: Path, connected: dict[str, str]) -> None:
    """Each has a libteleport beside it and nobody has loaded any: they agree on the one that came first."""
    folders = [plain(tmp_path / str(number)) for number in range(6)]
    program = f"""
        copies = [ctypes.CDLL(folder + "/libcuda.so") for folder in {[str(folder) for folder in folders]!r}]
        barrier = threading.Barrier(len(copies))
        def begin(copy):
            barrier.wait()
            copy.cuDriverGetVersion(ctypes.byref(ctypes.c_int()))
        threads = [threading.Thread(target=begin, args=[copy]) for copy in copies]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(copies[0].cuInit(0))
        count = ctypes.c_int()
        print({{(copy.cuDeviceGetCount(ctypes.byref(count)), count.value) for copy in copies}})
    """
    for _ in range(5):
        done = run(program, **connected)
        assert done.stdout == "0\n{(0, 1)}\n", done.stderr


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_another_namespace_is_another_client(tmp_path: Path, connected: dict[str, str]) -> None:
    """dlmopen gives a library its own C library; ours then has a connection of its own, as NVIDIA's has a context."""
    folder = plain(tmp_path / "client", SHIPPED)
    source, out = tmp_path / "program.c", tmp_path / "program"
    source.write_text(
        """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdio.h>
        int main(int count, char **words) {
            for (int i = 0; i < 2; i++) {
                void *cuda = dlmopen(i ? LM_ID_NEWLM : LM_ID_BASE, words[count - 1], RTLD_NOW);
                if (!cuda) { puts(dlerror()); return 1; }
                int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
                int (*devices)(int *) = (int (*)(int *))dlsym(cuda, "cuDeviceGetCount"), n = -1;
                int before = devices(&n), started = init(0), after = devices(&n);
                printf("%d %d %d %d\\n", before, started, after, n);
            }
            fflush(stdout);
            return 0;
        }
        """
    )
    subprocess.run([COMPILER or "cc", source, "-o", out, "-ldl"], check=True, capture_output=True, timeout=60)
    done = run([out, folder / "libcuda.so.1"], **connected)
    assert done.stdout == "3 0 0 1\n" * 2, done.stderr


# What can be wrong with a folder


FAIL = """
    cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
    text = nvml.nvmlErrorString
    text.restype = ctypes.c_char_p
    codes = [cuda.cuInit(0), cuda.cuInit(0), cuda.cuDeviceGetCount(None), nvml.nvmlInit_v2(), nvml.nvmlInit_v2()]
    print(*codes, text(0).decode())
"""


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.partition("]: ")[2] for line in done.stderr.splitlines()]


def fails(folder: Path, cuda: int, nvml: int, why: str) -> None:
    """Programs that use no CUDA live; the others get an error, and one sentence from each library."""
    done = run(["ls", "/"], LD_PRELOAD=preload(folder))
    assert (done.returncode, done.stderr) == (0, "")
    done = run(FAIL, LD_PRELOAD=preload(folder))
    codes = done.stdout.split()[:5]
    assert codes == [str(cuda)] * 3 + [str(nvml)] * 2, done.stderr
    found = sentences(done)
    assert len(found) == 2, done.stderr
    for name, sentence in zip(("libcuda", "libnvidia-ml"), found, strict=True):
        assert sentence.startswith(f"{name} ({folder}/{name}.so) works with the libteleport.so of its own version")
        assert why in sentence
        assert sentence.endswith("into one folder, all from the same package")


def test_libteleport_is_missing(tmp_path: Path) -> None:
    fails(plain(tmp_path / "client", SPEC[:2]), MISSING, NVML_MISSING, "there is none: libteleport.so.1: cannot open")


NO_LIBRARIES = {"empty": b"", "text": b"this is no library\n" * 100, "header": b"\x7fELF\x02\x01" + b"\xff" * 500}


@pytest.mark.parametrize("content", NO_LIBRARIES.values(), ids=NO_LIBRARIES.keys())
def test_libteleport_is_no_library(tmp_path: Path, content: bytes) -> None:
    folder = plain(tmp_path / "client")
    (folder / "libteleport.so").write_bytes(content)
    fails(folder, MISSING, NVML_MISSING, f"that cannot be loaded: {folder}/libteleport.so")


@pytest.mark.parametrize("part", [0.001, 0.01, 0.5, 0.9])
def test_libteleport_is_cut(tmp_path: Path, part: float) -> None:
    """An interrupted copy: the dynamic loader would map what is not there and die of SIGBUS."""
    folder = plain(tmp_path / "client")
    path = folder / "libteleport.so"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    fails(folder, MISSING, NVML_MISSING, f"that cannot be loaded: {folder}/libteleport.so is not whole")


def test_libteleport_may_not_be_read(tmp_path: Path) -> None:
    folder = plain(tmp_path / "client")
    (folder / "libteleport.so").unlink()
    (folder / "libteleport.so").mkdir()
    fails(folder, MISSING, NVML_MISSING, f"that cannot be loaded: {folder}/libteleport.so: ")


def test_another_library_under_the_name(tmp_path: Path) -> None:
    folder = plain(tmp_path / "client")
    shutil.copy(native_file("lib/libtf-simgpu.so"), folder / "libteleport.so")
    fails(folder, FOREIGN, NVML_FOREIGN, "there is a library under that name which is none of ours")


def test_libteleport_of_another_version(tmp_path: Path) -> None:
    """The two sides of the table are compared before it is used."""
    folder = plain(tmp_path / "client")
    for name in ("libcuda.so", "libnvidia-ml.so"):
        path = folder / name
        content = path.read_bytes()
        layouts = [word for word in content.split(b"\0") if len(word) == 32 and set(word) <= set(b"0123456789abcdef")]
        assert len(layouts) == 1
        path.write_bytes(content.replace(layouts[0], b"0" * 32))
    fails(folder, FOREIGN, NVML_FOREIGN, f"{folder}/libteleport.so is of another version")


def test_a_good_copy_stays_good_beside_a_bad_one(tmp_path: Path, connected: dict[str, str]) -> None:
    good, bad = plain(tmp_path / "good"), plain(tmp_path / "bad", SPEC[:1])
    program = f"""
        good, bad = (ctypes.CDLL(f"{{folder}}/libcuda.so") for folder in ({str(good)!r}, {str(bad)!r}))
        print(good.cuInit(0), bad.cuInit(0), len(libteleports()))
    """
    assert run(program, **connected).stdout == "0 0 1\n"


def test_errors_of_the_loader_are_the_program_s(tmp_path: Path) -> None:
    """dlerror() tells a program of its own mistakes only, whatever the libraries looked for."""
    folder = plain(tmp_path / "client", SPEC[:1])
    program = """
        cuda = ctypes.CDLL("libcuda.so.1")
        cuda.cuInit(0)
        dlerror = ctypes.CDLL(None).dlerror
        dlerror.restype = ctypes.c_char_p
        print(dlerror())
    """
    done = run(program, LD_PRELOAD=f"{folder}/libcuda.so")
    assert done.stdout == "None\n", done.stderr


def test_in_a_child_of_fork(tmp_path: Path, connected: dict[str, str]) -> None:
    folder = plain(tmp_path / "client")
    program = """
        cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2()  # libteleport is loaded here
        child = os.fork()
        print(cuda.cuInit(0), flush=True)
        if child:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    """
    done = run(program, LD_PRELOAD=preload(folder), **connected)
    assert done.stdout == "0\n0\n", done.stderr
    assert done.returncode == 0


def test_environment_has_no_other_way(tmp_path: Path) -> None:
    """The proof that the tests above use the copies: without them there is no libcuda here."""
    done = run('ctypes.CDLL("libcuda.so.1")')
    if not done.returncode:
        pytest.skip("this machine has a libcuda of its own")
    assert "libcuda.so.1" in done.stderr


def test_a_log_that_cannot_be_written_is_said_once(worker: Worker) -> None:
    """Each of the libraries looks at the settings."""
    variables = {
        "TF_ENABLE_LOG": "1",
        "TF_LOG_PATH": "/nothing/log",
        "TF_LOG_LEVEL": "loud",
        "LD_LIBRARY_PATH": str(client_folder()),
    }
    done = subprocess.run(
        [sys.executable, "-c", "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"],
        env={**worker.env, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "0\n", done.stderr
    assert done.stderr.count("TF_LOG_PATH=/nothing/log cannot be written") == 1, done.stderr
    assert done.stderr.count("TF_LOG_LEVEL=loud is not one of") == 1, done.stderr
