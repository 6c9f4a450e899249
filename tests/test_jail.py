"""What a session that was taken over can still do, tried by a library that plays one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from stack.harness import COMPILER, Worker, clean_environment, whole_stack
from stranger import Stranger
from worker_harness import Worker as FakeWorker
from worker_harness import alive, eventually, fails

from tensor_fusion.abi import native_file
from tensor_fusion.config import LogSettings
from tensor_fusion.worker import jail, log
from tensor_fusion.worker.driver import choose_driver
from tensor_fusion.worker.lines import Lines

pytestmark = whole_stack
HERE = Path(__file__).parent
PROGRAM = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror"]
LEAST = 60  # attempts
OF_THE_MACHINE = {
    "write_sysfs": ("/sys/devices/system/cpu/uevent", os.W_OK),
    "write_core_pattern": ("/proc/sys/kernel/core_pattern", os.W_OK),
    "write_sysrq": ("/proc/sysrq-trigger", os.W_OK),
    "read_kernel_log": ("/dev/kmsg", os.R_OK),
    "read_memory_of_machine": ("/dev/mem", os.R_OK),
    "read_keys": ("/proc/keys", os.R_OK),
}
NOBODY = 65534


@dataclass(frozen=True)
class Built:
    library: Path
    bystander: Path


class UnprivilegedWorker(Worker):
    user = NOBODY


@dataclass(frozen=True)
class Place:
    folder: Path
    user: int | None = None  # whose worker it is; None: of the tests' user
    worker: type[Worker] = Worker


@pytest.fixture(scope="module")
def escapes(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("escapes")
    built = Built(out / "escapes.so", out / "bystander")
    out.chmod(0o755)
    for above in out.parents:  # what another user runs lies below them
        if above.stat().st_mode & stat.S_IXOTH:
            break
        above.chmod(0o711)
    sources = sorted(map(str, (HERE / "native").glob("escapes*.c")))
    library = [COMPILER or "", *PROGRAM, "-shared", "-fPIC", *sources, "-ldl", "-o", str(built.library)]
    program = [COMPILER or "", *PROGRAM, str(HERE / "native/bystander.c"), "-lrt", "-o", str(built.bystander)]
    for command in (library, program):
        subprocess.run(command, check=True, timeout=60)
    return built


@pytest.fixture(params=["own", "unprivileged"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A folder with a short name, as sockets have to have one."""
    with tempfile.TemporaryDirectory() as name:
        if request.param == "own":
            yield Place(Path(name))
            return
        if os.geteuid() != 0:
            pytest.skip("the tests run without privileges already")
        command = ["test", "-x", str(native_file("bin/tensor-fusion-session"))]
        if subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=False).returncode:
            pytest.skip("another user cannot read the native files here")
        os.chown(name, NOBODY, NOBODY)
        yield Place(Path(name), NOBODY, UnprivilegedWorker)


@dataclass(frozen=True)
class Attempt:
    who: str  # may do it without a jail: tests/native/escapes.h
    name: str
    result: str


def tried(escapes: Built, place: Place, *options: str) -> list[Attempt]:
    """What came of each attempt, in a session that then serves a client."""
    folder = place.folder
    images, log, home = folder / "images", folder / "log", folder / "home"
    for made in (images, home, folder / "runtime", folder / "mount"):
        made.mkdir(mode=0o700)
    (folder / "secrets").write_text("secret\n")
    (home / "letter").write_text("dear\n")
    image = "0" * 64
    (images / image).write_text("of another client")
    for made in (images, images / image, home, folder / "runtime", folder / "mount", folder / "secrets"):
        if place.user is not None:
            os.chown(made, place.user, place.user)
    key, name = random.randrange(1, 1 << 30), f"tf-escape-{os.getpid()}-{random.randrange(1 << 30)}"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (f"\0{name}", str(folder / "socket")):
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(address)
            unix.listen()
        if place.user is not None:
            os.chown(folder / "socket", place.user, place.user)
        words = [str(escapes.bystander), str(key), name]
        bystander = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=place.user, group=place.user
        )
        stack.enter_context(bystander)
        assert bystander.stdin and bystander.stdout
        stack.callback(bystander.stdin.close)
        memory = bystander.stdout.readline().split()[0]
        variables = {
            "LD_PRELOAD": str(escapes.library),
            "HOME": str(home),
            "ESCAPES_REPORT": str(images / "report"),
            "ESCAPES_SECRETS": str(folder / "secrets"),
            "ESCAPES_NEW": str(folder / "new"),
            "ESCAPES_FOLDER": str(folder / "mount"),
            "ESCAPES_HOME_FILE": str(home / "letter"),
            "ESCAPES_SOCKET": str(folder / "socket"),
            "ESCAPES_PORT": str(listener.getsockname()[1]),
            "ESCAPES_BYSTANDER": str(bystander.pid),
            "ESCAPES_MEMORY": memory,
            "ESCAPES_KEY": str(key),
            "ESCAPES_NAME": name,
            "ESCAPES_IMAGE": image,
            "ESCAPES_DRIVER": str(native_file("lib/libtf-simgpu.so")),
            "TF_RUNTIME_PATH": str(folder / "runtime"),
            "TF_IMAGE_CACHE_PATH": str(images),
            "TF_ENABLE_LOG": "1",
            "TF_LOG_PATH": str(log),
        }
        with (
            place.worker(*options, program=None, transport="native", **variables) as worker,
            Stranger(worker.port) as client,
        ):
            assert client.call("cuMemGetInfo_v2")[0] == 0
            error, out = client.call("memory_alloc", size=1 << 20)
            assert error == 0 and out["address"]
        assert eventually(lambda: "serving stranger" in log.read_text())  # a line of the session's own
        assert bystander.poll() is None
    report = images / "report"
    found = re.findall(r"ESCAPE (\S+) (\S+) (.*)$", (report if report.exists() else log).read_text(), re.MULTILINE)
    return [Attempt(*words) for words in found]


def done(attempts: list[Attempt]) -> set[str]:
    return {attempt.name for attempt in attempts if attempt.result == "done"}


def failed(attempts: list[Attempt], *who: str) -> list[Attempt]:
    """Those of `who` that did not succeed, but for files that this machine has not got for anybody."""
    there = {name for name, (path, right) in OF_THE_MACHINE.items() if os.access(path, right)}
    nowhere = OF_THE_MACHINE.keys() - there
    return [
        attempt
        for attempt in attempts
        if attempt.who in who and attempt.result != "done" and attempt.name not in nowhere
    ]


def test_the_attempts_are_real(escapes: Built, place: Place) -> None:
    """Without a jail they succeed, as far as this user may."""
    attempts = tried(escapes, place, "--jail", "off")
    root = place.user is None and os.geteuid() == 0
    assert failed(attempts, "user", "peer", *(["root"] if root else [])) == []
    refused = {one.name: one.result for one in attempts if one.name in ("write_limits", "clear_a_cell")}
    assert refused == dict.fromkeys(("write_limits", "clear_a_cell"), "Permission denied"), "as everywhere"
    assert "write_limits_as_memory" not in done(attempts)
    assert not root or "open_raw_socket" in done(attempts)


def test_the_basic_jail_leaves_the_rights_of_the_user_only(escapes: Built, place: Place) -> None:
    attempts = tried(escapes, place, "--jail", "basic")
    root = place.user is None and os.geteuid() == 0
    assert failed(attempts, "user", "root" if root else "peer") == []
    assert [attempt for attempt in attempts if attempt.who == "right" and attempt.result == "done"] == []


@pytest.fixture
def all_layers(layers: tuple[jail.Layer, ...]) -> None:
    """All of them are there. In a root that was changed by chroot, without a namespace of mounts, no user has one."""
    if gone := jail.missing(layers):
        with pytest.raises(AssertionError):  # it says why, and ends
            Worker("--jail", "full", "--require-jail", transport="native")
        pytest.skip(f"this machine has not all layers of the jail: {gone}")


@pytest.mark.usefixtures("all_layers")
def test_in_the_full_jail_nothing_succeeds(escapes: Built, place: Place) -> None:
    attempts = tried(escapes, place, "--jail", "full", "--require-jail")
    assert len(attempts) >= LEAST
    assert done(attempts) == set()
    ways = ("grow_cell", "copy_cell", "move_cell", "become_another_cell", "grow_memory", "exchange_pages")
    found = {one.name: one.result for one in attempts if one.name in ways}
    assert found == dict.fromkeys(ways, "Operation not permitted"), "to the cells of others on the quota page"
    assert (place.folder / "secrets").read_text() == "secret\n"
    assert not (place.folder / "new").exists()


EVENT = """
import ctypes
cuda, context, event, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_void_p(), (ctypes.c_char * 64)()
assert cuda.cuInit(0) == cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == cuda.cuCtxSetCurrent(context) == 0
interprocess, no_timing = 4, 2
print(cuda.cuEventCreate(ctypes.byref(event), interprocess | no_timing), cuda.cuIpcGetEventHandle(handle, event),
      cuda.cuEventRecord(event, None), cuda.cuEventSynchronize(event), cuda.cuEventQuery(event))
"""


@pytest.mark.usefixtures("all_layers")
def test_an_interprocess_event_is_made_in_the_full_jail() -> None:
    """The driver keeps them in a file of /dev/shm, which the session has to have."""
    with Worker("--jail", "full", "--require-jail", transport="native") as worker:
        done = subprocess.run(
            [sys.executable, "-c", EVENT], env=worker.env, capture_output=True, text=True, timeout=30, check=False
        )
    assert done.stdout.split() == ["0"] * 5, done.stderr


def test_the_end_of_the_worker_ends_a_stopped_session_in_the_full_jail() -> None:
    """Entering the namespaces has not made the kernel forget it."""
    with Worker("--jail", "full", transport="native") as worker, Stranger(worker.port):
        (session,) = worker.sessions()
        session.suspend()
        assert eventually(lambda: session.status() == psutil.STATUS_STOPPED)
        worker.end(signal.SIGKILL)
        assert eventually(lambda: not alive(session))


# What a session in the full jail says


def told(process: int, *pieces: bytes, bounded: bool = True) -> float:
    """Send the pieces as a session's output; seconds until all were read."""

    async def run() -> float:
        loop, lines = asyncio.get_running_loop(), Lines(bounded)
        end = os.dup(lines.given)
        lines.begin(process)
        begin = loop.time()
        for piece in pieces:
            await loop.run_in_executor(None, os.write, end, piece)
        os.close(end)
        while time.monotonic() < begin + 5 and lines.reading():
            await asyncio.sleep(0.01)
        taken = loop.time() - begin
        lines.close()
        return taken

    return asyncio.run(run())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    heard: list[tuple[int, str]] = []
    monkeypatch.setattr(log, "said", lambda process, line: heard.append((process, line)))
    return heard


def test_lines_come_whole_and_in_order(said: list[tuple[int, str]]) -> None:
    told(7, b"one\ntw", b"o\n", b"x" * 20000 + b"\nend")
    assert [line for _, line in said[:2]] == ["one", "two"] and said[-1] == (7, "end")
    assert {len(line) for _, line in said[2:-1]} <= {*range(1, 8193)}
    assert sum(len(line) for _, line in said[2:-1]) >= 8192


def test_a_session_that_writes_too_much_waits(said: list[tuple[int, str]]) -> None:
    flood = [(b"y" * 99 + b"\n") * 600] * 10
    assert told(7, *flood) > 1
    assert len(said) == 6000
    said.clear()
    assert told(7, *flood, bounded=False) < 1


def test_a_line_that_looks_like_another_session_is_marked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    log.configure(LogSettings(enabled=True, level="info", path=path))
    try:
        own, other = (f"2026-11-30T14:00:00.000Z ERROR session[{number}]: it broke" for number in (7, 8))
        for line in (own, other, "2026-11-30T14:00:00.000Z INFO  worker[1]: all is well", "\x1b[2J"):
            log.said(7, line)
    finally:
        log.configure(LogSettings(enabled=False, level="info", path=None))
    first, *rest = path.read_text().splitlines()
    assert first == own and capfd.readouterr().err.strip() == own
    assert [line.partition(": ")[2] for line in rest] == [
        f"session 7 says: {other}",
        "session 7 says: 2026-11-30T14:00:00.000Z INFO  worker[1]: all is well",
        "session 7 says: ?[2J",
    ]


def test_the_folder_for_images_is_made_before_the_full_jail(tmp_path: Path) -> None:
    folder, log = tmp_path / "not" / "there", tmp_path / "log"
    variables = {"TF_IMAGE_CACHE_PATH": str(folder), "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log)}
    with Worker("--jail", "full", program=None, transport="native", **variables):
        assert folder.stat().st_mode & 0o777 == 0o700


# What is missing


@pytest.fixture
def layers() -> tuple[jail.Layer, ...]:
    driver = choose_driver("sim", {})
    return jail.probe(native_file("bin/tensor-fusion-session"), driver, {})


def test_each_layer_is_tried(layers: tuple[jail.Layer, ...]) -> None:
    assert [layer.name for layer in layers] == list(jail.LAYERS)
    assert all(layer.on or layer.why for layer in layers)


def test_a_layer_that_the_kernel_refuses_has_a_reason() -> None:
    """Inside a jail there are no more namespaces, as in a container without rights."""
    driver = choose_driver("sim", {})
    session = native_file("bin/tensor-fusion-session")
    command = [str(session), "--layers", "--driver", str(driver.cuda), "--nvml", str(driver.nvml)]
    bounded = f"""
import ctypes, os, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 272), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]  # unshare: EPERM
code = b"".join(struct.pack("HBBI", *step) for step in steps)
program = struct.pack("HxxxxxxP", len(steps), ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p).value)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
sys.exit(subprocess.call({command!r}))
"""
    done = subprocess.run([sys.executable, "-c", bounded], capture_output=True, text=True, timeout=60, check=True)
    lines = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    refused = {name for name, text in lines.items() if text == "off\tunshare: Operation not permitted"}
    assert refused == {"user", "mount", "net", "ipc", "uts"}, done.stdout
    assert lines["calls"] == "on"


def test_what_is_missing_is_named_at_the_start() -> None:
    with FakeWorker("--jail", "full", FAKE_LACKS="mount,net") as worker:
        client = worker.client()
        assert client.ask("confine") == "user,ipc,uts,landlock,calls"
        client.close()
        assert worker.stop() == 0
    (notice,) = [line for line in worker.errors.splitlines() if "NOTICE: sessions run without these layers" in line]
    assert "mount namespace (it is not allowed here), network namespace (it is not allowed here)" in notice


def test_nothing_is_said_where_nothing_is_missing() -> None:
    with FakeWorker("--jail", "full", "--require-jail") as worker:
        assert worker.stop() == 0
    assert "without these layers" not in worker.errors


@pytest.mark.parametrize(
    ("options", "variables", "words"),
    [
        (["--jail", "full"], {"FAKE_LACKS": "landlock"}, "has not all of --jail full: Landlock (it is not allowed"),
        (
            ["--jail", "basic"],
            {"FAKE_REAL": "1", "FAKE_SESSION": "free"},
            "in the basic jail the driver does not start",
        ),
        (["--jail", "full"], {"FAKE_REAL": "1", "FAKE_SESSION": "unconfined"}, "in the full jail the driver does not"),
    ],
)
def test_a_jail_that_is_required(options: list[str], variables: dict[str, str], words: str) -> None:
    code, errors = fails("-p", "0", "--gpu", "sim", "--require-jail", *options, **variables)
    assert code == 1 and words in errors


def test_doctor_says_which_layers_there_are(layers: tuple[jail.Layer, ...]) -> None:
    command = [sys.executable, "-m", "tensor_fusion", "doctor", "--worker", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout)
    found = {check["name"]: check["passed"] for check in report["checks"]}
    assert {name: found[name] for name in jail.LAYERS.values()} == {layer.title: layer.on for layer in layers}
    assert report["passed"] == all(layer.on for layer in layers) == (done.returncode == 0)


@pytest.mark.parametrize("jail_name", ["basic", "full"])
def test_doctor_says_in_which_jail_a_worker_runs(jail_name: str, layers: tuple[jail.Layer, ...]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker("--jail", jail_name, transport="native", TF_RUNTIME_PATH=folder) as worker,
    ):
        command = [sys.executable, "-m", "tensor_fusion", "doctor", "--worker", "--json"]
        env = clean_environment(TF_RUNTIME_PATH=folder)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    checks = {check["name"]: check["text"] for check in json.loads(done.stdout)["checks"]}
    titles = ", ".join(layer.title for layer in layers if layer.on)
    wanted = f"its sessions run with --jail {jail_name}" + (f": {titles}" if jail_name == "full" else "")
    assert checks[f"worker {worker.process.pid}"] == wanted
