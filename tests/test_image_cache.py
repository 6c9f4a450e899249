"""The worker's cache of module images, on the whole stack: what is sent, what is kept, what happens when files are bad.

A client asks by hash only if its worker is far away, so programs here reach theirs through a relay that takes its time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from native_code import includes, sources
from stack.harness import COMPILER, MIB, ROOT, Worker, clean_environment, whole_stack
from worker_harness import eventually, fails

from tensor_fusion.client.files import client_environment
from tensor_fusion.config import ImageCache, UserError

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
DELAY = 0.001
# Loads each image that is named, fills memory with one of its kernels, and looks at what that wrote.
PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def ok(name, *words):
    result = getattr(cuda, name)(*words)
    assert result == 0, (name, result)
context, memory = ctypes.c_void_p(), ctypes.c_uint64()
ok("cuInit", 0)
ok("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
ok("cuCtxSetCurrent", context)
ok("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(4096))
print("ready", flush=True)
sys.stdin.readline()
for value, path in enumerate(sys.argv[1:], 1):
    module, function, image = ctypes.c_void_p(), ctypes.c_void_p(), open(path, "rb").read() + bytes(1)
    ok("cuModuleLoadData", ctypes.byref(module), image)
    ok("cuModuleGetFunction", ctypes.byref(function), module, b"fill_u32")
    args = [memory, ctypes.c_uint32(value), ctypes.c_uint64(256)]
    words = (ctypes.c_void_p * 3)(*[ctypes.addressof(arg) for arg in args])
    ok("cuLaunchKernel", function, 1, 1, 1, 256, 1, 1, 0, None, words, None)
    back = (ctypes.c_uint32 * 256)()
    ok("cuMemcpyDtoH_v2", back, memory, ctypes.c_size_t(1024))
    assert list(back) == [value] * 256
print("right", cuda.cuMemMapArrayAsync(None, 0), cuda.cuMemMapArrayAsync(None, 0))
"""


class Relay:
    """Carries connections to a worker and lets each piece of data wait a moment."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                worker = socket.create_connection(("127.0.0.1", self._to))
                for one, other in ((client, worker), (worker, client)):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(MIB):
                time.sleep(DELAY)
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # A blocked accept is not ended by close alone.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@dataclass(frozen=True)
class Run:
    """What one program did, by its statistics."""

    sent: int
    loads: int
    unsupported: dict[str, int]


class Host:
    """A worker with an image folder, its log, and the relay in front of it."""

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        self.images, self.log = folder / "images", folder / "worker.log"
        log = {"TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(self.log)}
        variables = {"TF_IMAGE_CACHE_PATH": str(self.images), **log, **variables}
        self.worker = Worker(*options, program=None, **variables)
        self.relay = Relay(self.worker.port)
        self._count = 0
        self._folder = folder

    def start(self, *images: Path, far: bool = True) -> tuple[subprocess.Popen[str], Path]:
        self._count += 1
        statistics = self._folder / f"statistics-{id(self)}-{self._count}.json"
        clean = clean_environment(TF_STATS_PATH=str(statistics))
        port = self.relay.port if far else self.worker.port
        env = {**clean, **client_environment(f"native+127.0.0.1+{port}+0", clean)}
        command = [sys.executable, "-c", PROGRAM, *map(str, images)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True), statistics

    def finish(self, started: tuple[subprocess.Popen[str], Path]) -> Run:
        process, path = started
        output, errors = process.communicate("load\n", timeout=60)
        assert output.removeprefix("ready\n") == "right 801 801\n", (output, errors)
        statistics = json.loads(path.read_text())
        loads = statistics["by_function"]["cuModuleLoadData"]["round_trips"]
        return Run(statistics["bytes_sent"], loads, statistics["unsupported"])

    def run(self, *images: Path, far: bool = True) -> Run:
        run = self.finish(self.start(*images, far=far))
        # A session writes what it keeps aside, and ends after that.
        assert eventually(lambda: not self.worker.sessions())
        return run

    def names(self) -> set[str]:
        return {path.name for path in self.images.iterdir()} if self.images.is_dir() else set()

    def said(self, words: str) -> int:
        return self.log.read_text().count(words)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *end: object) -> None:
        self.relay.close()
        self.worker.__exit__(*end)  # type: ignore[arg-type]


def make_image(folder: Path, size: int, mark: str = "a") -> Path:
    """The test kernels, and a comment that makes their PTX large."""
    path = folder / f"{mark}-{size}.ptx"
    text = (ROOT / "tests/kernels/kernels.ptx").read_text()
    path.write_text(f"{text}\n//{mark * (size - len(text) - 4)}\n")
    assert path.stat().st_size == size
    return path


def name_of(image: Path) -> str:
    return hashlib.sha256(image.read_bytes() + b"\0").hexdigest()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path, 4 * MIB)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as running:
        yield running


# The hash


@pytest.fixture(scope="module")
def sha256_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sha256") / "sha256_lines"
    base = ROOT / "native/base"
    parts = [ROOT / "tests/native/sha256_lines.c", *sources("base", "sha256", "log", "time_lock")]
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{base}", "-pthread"]
    subprocess.run([COMPILER or "", *flags, *map(str, parts), "-o", str(out)], check=True, timeout=100)
    return out


def test_hash_is_sha256(sha256_program: Path) -> None:
    """Both implementations, all lengths around the block size, added whole and in pieces."""
    random = Random(256)
    cases = [(size, piece) for size in range(200) for piece in (1, 3, 63, 64, 65, 4096)]
    cases += [(size, piece) for size in (4096, 65537, MIB + 63) for piece in (61, 64, 4096, 2 * MIB)]
    given, expected = b"", []
    for size, piece in cases:
        data = random.randbytes(size)
        given += struct.pack("<II", size, piece) + data
        expected.append(hashlib.sha256(data).hexdigest())
    done = subprocess.run([sha256_program], input=given, capture_output=True, timeout=60, check=True)
    instructions, *lines = done.stdout.decode().splitlines()
    assert lines == [f"{one} {one}" for one in expected]
    assert instructions == str(int(" sha_ni " in Path("/proc/cpuinfo").read_text()))


# The session's side by itself


@pytest.fixture(scope="module")
def images_program(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "test_images"
    parts = [
        ROOT / "tests/native/test_images.c",
        *sources("session", "images", "images_store"),
    ]
    parts += [*sources("base", "sha256", "quota", "log", "time_lock"), *sources("transport", "*")]
    folders = [*includes("base", "wire", "ring", "transport", "session"), f"-I{headers}"]
    sanitize = os.environ.get("TF_TEST_SANITIZE")
    flags = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"] if sanitize else []
    flags += ["-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-sign-conversion"]
    flags.append("-Wno-unused-parameter")  # as the session's own build
    command = [COMPILER or "", *flags, *folders, *map(str, parts), "-pthread", "-o", str(out)]
    subprocess.run(command, check=True, timeout=100)
    return out


FILES = {"lies": 0, "sizes": 1, "crowd": 2, "unscanned": 2, "small": 0}


@pytest.mark.parametrize("case", FILES)
def test_what_clients_say_and_do_at_once(images_program: Path, tmp_path: Path, case: str) -> None:
    env = clean_environment(TF_IMAGE_CACHE_PATH=str(tmp_path / "a/b/images"))
    done = subprocess.run([images_program, case], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "a/b/images").iterdir())) == FILES[case]


# What is sent


def test_second_program_sends_no_image(host: Host, image: Path) -> None:
    first, second = host.run(image), host.run(image)
    assert first.loads == 2, "asked, then sent"
    assert first.sent > 4 * MIB
    assert host.names() == {name_of(image)}
    assert second.loads == 1
    assert second.sent < 64 << 10
    file = host.images / name_of(image)
    assert file.stat().st_mode & 0o777 == 0o600
    assert host.images.stat().st_mode & 0o777 == 0o700
    assert file.read_bytes() == image.read_bytes() + b"\0"


def test_images_outlive_the_worker(tmp_path: Path, image: Path) -> None:
    with Host(tmp_path) as host:
        assert host.run(image).loads == 2
    with Host(tmp_path) as host:
        run = host.run(image, image)
    assert run.loads == 2, "one question for each of the two modules"
    assert run.sent < 64 << 10


def test_small_image_is_sent_at_once(host: Host, tmp_path: Path) -> None:
    small = make_image(tmp_path, 60 << 10)
    assert host.run(small).loads == 1
    assert host.run(small).sent > 60 << 10
    assert host.names() == set()


def test_two_programs_with_the_same_image_at_once(host: Host, image: Path) -> None:
    started = [host.start(image) for _ in range(4)]
    runs = [host.finish(one) for one in started]
    assert all(run.loads in (1, 2) for run in runs)
    assert eventually(lambda: not host.worker.sessions())
    assert host.names() == {name_of(image)}
    assert (host.images / name_of(image)).read_bytes() == image.read_bytes() + b"\0"
    assert host.run(image).loads == 1


def test_cache_off(tmp_path: Path, image: Path) -> None:
    with Host(tmp_path, TF_IMAGE_CACHE_PATH="") as host:
        for _ in range(2):
            run = host.run(image, image)
            assert run.loads == 3, "the first answer says that there is no use in asking"
            assert run.sent > 8 * MIB
    assert host.names() == set()


# In the full jail, where the supervisor writes


def test_sessions_in_the_full_jail_keep_images_through_the_supervisor(tmp_path: Path, image: Path) -> None:
    with Host(tmp_path, "--jail", "full") as host:
        assert host.run(image).loads == 2
        path = host.images / name_of(image)
        assert eventually(path.exists)
        assert path.read_bytes() == image.read_bytes() + b"\0"
        os.utime(path, (1, 1))
        assert host.run(image).loads == 1
        assert eventually(lambda: path.stat().st_atime > 1), "it counts as used"
        path.write_bytes(path.read_bytes().replace(b"vector_add", b"vector_bad"))
        assert host.run(image).loads == 2
        assert eventually(lambda: path.exists() and path.read_bytes() == image.read_bytes() + b"\0")
        assert host.said("is damaged and is removed") == 1


# Files that are not what they should be


@pytest.mark.parametrize("damage", ["poisoned", "cut", "empty", "longer"])
def test_damaged_file_is_removed_and_written_again(tmp_path: Path, image: Path, damage: str) -> None:
    right = image.read_bytes() + b"\0"
    bad = right.replace(b"vector_add", b"vector_bad")
    wrong = {"poisoned": bad, "cut": right[:-4096], "empty": b"", "longer": right + b"\0"}[damage]
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    (images / name_of(image)).write_bytes(wrong)
    with Host(tmp_path) as host:
        run = host.run(image)
        assert run.loads == 2
        assert run.sent > 4 * MIB
        assert host.said("is damaged and is removed") == 1
        assert (images / name_of(image)).read_bytes() == right
        assert host.run(image).loads == 1


def test_file_that_changes_after_it_was_used(host: Host, image: Path) -> None:
    """Whoever takes a session over can change it, and put its time back."""
    host.run(image)
    assert host.run(image).loads == 1
    path = host.images / name_of(image)
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"vector_add", b"vector_bad"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert host.run(image).loads == 2
    assert host.run(image).loads == 1


@pytest.mark.parametrize("what", ["folder", "link"])
def test_other_things_under_the_name_are_no_image(tmp_path: Path, image: Path, what: str) -> None:
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    path = images / name_of(image)
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with Host(tmp_path) as host:
        for _ in range(2):
            run = host.run(image)
            assert run.loads == 2
            assert run.sent > 4 * MIB


def test_folder_that_cannot_be_made(tmp_path: Path, image: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with Host(tmp_path, TF_IMAGE_CACHE_PATH=str(tmp_path / "file/images")) as host:
        run = host.run(image, image)
        assert run.loads == 3
        assert host.said("cannot be used: Not a directory") == 1


def test_folder_that_others_can_write_to(tmp_path: Path, image: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o777)
    with Host(tmp_path) as host:
        assert host.run(image).loads == 2
        assert host.said("others than this user") == 1
    assert host.names() == set()


def test_no_room_on_the_disk(tmp_path: Path, image: Path) -> None:
    """A limit on the size of files stands in for a full disk: both fail in write, after a part."""
    with Host(tmp_path) as host:
        started = host.start(image, make_image(tmp_path, 5 * MIB, "b"))
        # Memory that the simulated GPU gives out is a file, too: first the program has what it needs of that.
        assert started[0].stdout
        assert started[0].stdout.readline() == "ready\n"
        limit = f"--fsize={2 * MIB}"
        subprocess.run(["prlimit", "--pid", str(host.worker.sessions()[0].pid), limit], check=True)
        assert host.finish(started).loads == 4
        assert eventually(lambda: not host.worker.sessions())
        assert host.said("images of this client are not kept from now on") == 1
        assert host.names() == set()
        assert host.run(image).loads == 2


# The bound


def test_least_recently_used_images_make_room(tmp_path: Path) -> None:
    one, two, three = (make_image(tmp_path, 4 * MIB, mark) for mark in "xyz")
    with Host(tmp_path, TF_IMAGE_CACHE_SIZE="9") as host:
        host.run(one)
        host.run(two)
        assert host.names() == {name_of(one), name_of(two)}
        assert host.run(one).loads == 1, "now it is the other that was not used for longest"
        host.run(three)
        assert host.names() == {name_of(one), name_of(three)}


def test_image_above_the_bound_is_not_kept(tmp_path: Path, image: Path) -> None:
    with Host(tmp_path, TF_IMAGE_CACHE_SIZE="3") as host:
        assert host.run(image).loads == 2
        assert host.names() == set()


def test_only_own_files_are_removed(tmp_path: Path, image: Path) -> None:
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    for name, age in (("notes.txt", 0), ("new-1-0", 3600), ("new-2-0", 0)):
        (images / name).write_bytes(bytes(8 * MIB))
        os.utime(images / name, (time.time() - age,) * 2)
    with Host(tmp_path, TF_IMAGE_CACHE_SIZE="5") as host:
        host.run(image)
        assert host.names() == {"notes.txt", "new-2-0", name_of(image)}, "one unfinished file had been left behind"


# Settings and statistics


@pytest.mark.parametrize("size", ["many", "-1", "1.5", "10000000000"])
def test_size_must_be_a_number(size: str) -> None:
    code, errors = fails(TF_IMAGE_CACHE_SIZE=size)
    assert code == 2
    assert f"TF_IMAGE_CACHE_SIZE is '{size}'" in errors


def test_place_of_the_cache() -> None:
    def folder(**environ: str) -> Path | None:
        return ImageCache.read(environ).folder

    assert folder(HOME="/home/me") == Path("/home/me/.cache/tensor-fusion/images")
    assert folder(HOME="/home/me", XDG_CACHE_HOME="/c") == Path("/c/tensor-fusion/images")
    assert folder(HOME="/home/me", XDG_CACHE_HOME="c") == Path("/home/me/.cache/tensor-fusion/images")
    assert folder(HOME="/home/me", TF_IMAGE_CACHE_PATH="/i") == Path("/i")
    assert folder(HOME="/home/me", TF_IMAGE_CACHE_PATH="") is None
    assert folder(HOME="/home/me", TF_IMAGE_CACHE_SIZE="0") is None
    assert folder() is None
    assert ImageCache.read({}).megabytes == 4096
    with pytest.raises(UserError):
        folder(TF_IMAGE_CACHE_SIZE="4 GB")


def test_unsupported_calls_are_counted_by_name(host: Host, image: Path) -> None:
    assert host.run(image, far=False).unsupported == {"cuMemMapArrayAsync": 2}
