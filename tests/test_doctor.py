"""tensor-fusion doctor: passes what works, and knows the causes of what does not by name. Each fault is made here."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from segment_harness import ACCEPTED, HEADER, SLOT_AT, SLOT_SIZE
from service import limit_too_low, service, silent
from stack.harness import COMPILER, Worker, clean_environment
from test_connection_url import answering, certificate, ok

from tensor_fusion.abi import Teleport, native_folder
from tensor_fusion.client import doctor, segment
from tensor_fusion.client.causes import CAUSES
from tensor_fusion.client.check import Check
from tensor_fusion.client.files import client_folder
from tensor_fusion.client.segment import MAGIC
from tensor_fusion.config import CONNECTION_INFO, CONNECTION_URL, segment_path
from tensor_fusion.worker.protocol import PROTOCOL_VERSION, Greeting, Status, Welcome

TOKEN_FILE = "TENSOR_FUSION_OPERATOR_TOKEN_FILE"
CA_FILE = "TF_CONNECTION_URL_CA_FILE"
DATA = Path(__file__).parent / "data"
GREETED, TAKEN = 2, 3  # states of a slot
NOWHERE = "native+127.0.0.1+1+0"


class Place:
    """Where a fault is made: a folder, an environment that a user could have, and what is undone in the end."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, stack: ExitStack, segment: str, worker: Worker) -> None:
        self.folder, self.patch, self.stack, self.segment, self.worker = folder, patch, stack, segment, worker
        self.connection: str | None = None
        self.set = patch.setenv

    def serve(self, serve: Callable[[socket.socket], None], tls: str = "") -> int:
        return self.stack.enter_context(service(serve, tls=certificate(tls) if tls else None))

    def answer(self, answer: bytes, **more: str) -> None:
        """The only thing that is set is the URL of a server that answers so."""
        self.set(CONNECTION_URL, f"http://127.0.0.1:{self.serve(answering(answer))}/x")

    def file(self, name: str, content: bytes = b"") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def copied(self) -> Path:
        """The client files in a folder of the user's, which this shell loads."""
        folder = self.folder / "copied"
        shutil.copytree(client_folder(), folder, symlinks=False)
        self.set("LD_LIBRARY_PATH", str(folder))
        self.set(CONNECTION_INFO, self.worker.connection)
        return folder

    def segment_file(self, megabytes: int = 16, **words: int) -> Path:
        """A file of shared memory whose header a test writes."""
        path = Path(f"/dev/shm{self.segment}")
        with path.open("wb") as file:
            file.truncate(megabytes << 20)
            if words:
                word = {"magic": MAGIC, "version": PROTOCOL_VERSION, "state": 1, "size": megabytes << 20, **words}
                file.write(struct.pack("<QIIQQ", word["magic"], word["version"], word["state"], word["size"], 1))
                file.write(Teleport().schema)
        self.connection = f"shmem+{self.segment}+{megabytes}+0"
        return path


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(transport="native") as started:
        yield started


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_name: str, worker: Worker) -> Iterator[Place]:
    clean = clean_environment()
    for name in set(os.environ) - set(clean):
        monkeypatch.delenv(name)
    for name in clean:
        if name.startswith(("TENSOR_FUSION_", "LD_", "CUDA_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name, raising=False)
    for name, value in clean.items():
        if name in ("TF_NATIVE_DIR", "PYTHONPATH", "TF_IMAGE_CACHE_PATH"):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "URL_TIMEOUT", 5.5)
    with ExitStack() as stack:
        yield Place(tmp_path, monkeypatch, stack, segment_name, worker)


def examine(place: Place) -> list[Check]:
    return list(doctor.examine(place.connection))


# What works passes


def passes(place: Place) -> dict[str, str]:
    found = examine(place)
    assert all(check.passed and not check.cause for check in found), found
    assert "Simulated" in found[-1].text
    return {check.name: check.text for check in found}


def test_a_connection_string_passes(place: Place) -> None:
    place.connection = place.worker.connection
    assert "tensor-fusion run sets up" in passes(place)["loader"]


def test_only_the_url_passes(place: Place) -> None:
    place.copied()
    place.patch.delenv(CONNECTION_INFO)
    place.answer(ok(place.worker.connection))
    assert place.worker.connection.partition("+")[0] in passes(place)["connection string"]


def test_a_copied_folder_passes(place: Place) -> None:
    folder = place.copied()
    assert passes(place)["loader"] == f"programs of this shell load {folder}/libcuda.so.1"


def test_the_three_files_preloaded_pass(place: Place) -> None:
    folder = place.folder / "three"
    folder.mkdir()
    for name in ("libcuda", "libnvidia-ml", "libteleport"):
        shutil.copyfile(native_folder() / f"client/{name}.so.1", folder / f"{name}.so")
    place.set("LD_PRELOAD", f"{folder}/libcuda.so:{folder}/libnvidia-ml.so")
    place.set(CONNECTION_INFO, place.worker.connection)
    assert passes(place)["loader"] == f"programs of this shell load {folder}/libcuda.so"


def test_shared_memory_passes(place: Place) -> None:
    """As in a container or a guest: the segment is a file there."""
    with Worker(transport="shmem") as other:
        place.connection = other.connection
        passes(place)


def test_the_device_of_a_guest_passes(place: Place) -> None:
    """As in a virtual machine: the segment is the memory of a PCI device, which is enabled where it was not."""
    worker = place.stack.enter_context(Worker(transport="shmem"))
    file, megabytes = worker.connection.split("+")[1:3]
    device = place.folder / "0000:00:04.0"
    device.mkdir()
    for name, text in (("vendor", "0x1af4\n"), ("device", "0x1110\n"), ("enable", "0\n")):
        (device / name).write_text(text)
    (device / "resource2").symlink_to(segment_path(file))
    place.connection = f"shmem+{device}/resource2+{megabytes}+0"
    said = passes(place)
    assert said["device"] == "0000:00:04.0 was not enabled and is now"
    assert said["memory type"].endswith("so it is cached")


def test_an_own_setting_is_no_fault(place: Place) -> None:
    for name in (
        "TF_CPP_MIN_LOG_LEVEL",
        "TF_ENABLE_ONEDNN_OPTS",
        "TF_GPU_ALLOCATOR",
        "TF_CLI_CONFIG_FILE",
        "TF_CONFIG",
    ):
        place.set(name, "1")  # of TensorFlow and Terraform
    place.set("TF_LOG_LEVEL", "DEBUG")
    place.connection = place.worker.connection
    passes(place)


# Faults: each function makes the one that its name says


def files_missing(place: Place) -> None:
    place.set("TF_NATIVE_DIR", str(place.folder))
    place.connection = NOWHERE


def broken_native(place: Place, name: str, content: Callable[[bytes], bytes]) -> None:
    native = place.folder / "native"
    shutil.copytree(native_folder() / "client", native / "client", symlinks=True)
    path = native / "client" / f"{name}.so.1"
    path.write_bytes(content(path.read_bytes()))
    place.set("TF_NATIVE_DIR", str(native))
    place.connection = NOWHERE


def files_damaged(place: Place) -> None:
    broken_native(place, "libcuda", lambda content: b"damaged" + content[7:])


def files_unloadable(place: Place) -> None:
    broken_native(place, "libteleport", lambda content: content[:18] + b"\0\0" + content[20:])  # of no machine


def teleport_missing(place: Place) -> None:
    for path in place.copied().glob("libteleport*"):
        path.unlink()


def teleport_cut(place: Place) -> None:
    for path in place.copied().glob("libteleport*"):
        path.write_bytes(path.read_bytes()[:100_000])


def teleport_other_version(place: Place) -> None:
    """Its functions stand in another order, which the digest of the table's layout tells."""
    for path in place.copied().glob("libcuda*"):
        content = path.read_bytes()
        (layout,) = {word for word in content.split(b"\0") if len(word) == 32 and set(word) <= set(b"0123456789abcdef")}
        path.write_bytes(content.replace(layout, b"0" * 32))


def library(place: Place, name: str, source: str, *flags: str) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler")
    (place.folder / "source.c").write_text(source)
    out = place.folder / name
    command = [COMPILER, "-shared", "-fPIC", *flags, "-o", str(out), str(place.folder / "source.c")]
    subprocess.run(command, check=True)
    return out


def teleport_foreign(place: Place) -> None:
    other = library(place, "other.so", "int nothing;\n", "-Wl,-soname,libteleport.so.1")
    for path in place.copied().glob("libteleport*"):
        shutil.copyfile(other, path)


def library_unloadable(place: Place) -> None:
    for path in place.copied().glob("libcuda*"):
        path.write_bytes(b"no library")


def preload_missing(place: Place) -> None:
    place.set("LD_PRELOAD", "/opt/nothing/libcuda.so")
    place.connection = NOWHERE


def foreign_libcuda(place: Place) -> None:
    """As NVIDIA's own driver is found in front of us."""
    source = 'int cuGetErrorString(int error, const char **text) { (void)error; *text = ""; return 0; }\n'
    library(place, "libcuda.so.1", source, "-Wl,-soname,libcuda.so.1")
    place.set("LD_LIBRARY_PATH", str(place.folder))
    place.set(CONNECTION_INFO, NOWHERE)


def shell_not_set_up(place: Place) -> None:
    place.set(CONNECTION_INFO, NOWHERE)


def no_worker_named(place: Place) -> None:
    place.connection = None


def connecting(connection: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.connection = connection

    return make


def url(value: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        url_alone(place)
        place.set(CONNECTION_URL, value)

    return make


def url_alone(place: Place) -> None:
    place.copied()
    place.patch.delenv(CONNECTION_INFO)


def answers(answer: bytes) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        url_alone(place)
        place.answer(answer)

    return make


def status(code: int, body: str = "") -> bytes:
    return f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def through_proxy(proxy: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        url("https://operator.example/")(place)
        place.set("https_proxy", proxy)

    return make


def url_proxy_refuses(place: Place) -> None:
    through_proxy(f"http://127.0.0.1:{place.serve(answering(status(403)))}")(place)


def url_silent(place: Place) -> None:
    url(f"http://127.0.0.1:{place.serve(silent)}/")(place)


def url_certificate(place: Place) -> None:
    url(f"https://127.0.0.1:{place.serve(answering(ok()), tls='here')}/")(place)


def url_no_tls(place: Place) -> None:
    port = place.serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    url(f"https://127.0.0.1:{port}/")(place)


def url_authority_file(place: Place) -> None:
    url_certificate(place)
    place.set(CA_FILE, "/nothing.pem")


def url_token_file(place: Place) -> None:
    answers(ok())(place)
    place.set(TOKEN_FILE, "/nothing")


def url_token_form(place: Place) -> None:
    answers(ok())(place)
    place.set(TOKEN_FILE, str(place.file("token", b"two words")))


def listening(serve: Callable[[socket.socket], None]) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.connection = f"native+127.0.0.1+{place.serve(serve)}+0"

    return make


def hanging_up(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.close()


def port_unanswered(place: Place) -> None:
    listener = place.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):  # fills its queue: what else comes is dropped, as by a firewall
        waiting = place.stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    place.connection = f"native+127.0.0.1+{listener.getsockname()[1]}+0"


def refusing(kind: Status, sentence: str) -> Callable[[Place], None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(256)
        connection.sendall(Welcome.build(kind, bytes(16), sentence))

    return listening(serve)


def other_version(connection: socket.socket) -> None:
    """A worker of the frame version before."""
    connection.recv(256)
    welcome = Welcome.build(Status.PROTOCOL_DIFFERS, bytes(16), "No.")
    connection.sendall(welcome[:8] + (1).to_bytes(4, "little") + welcome[12:])


def with_secrets(place: Place, keys: bytes = b"right\n") -> str:
    """The connection string of a worker that asks for one, without it."""
    path = str(place.file("keys", keys))
    other = Worker(transport="native", TF_ENABLE_URL_AUTH="1", TF_AUTHORIZED_KEY_PATH=path)
    return place.stack.enter_context(other).connection


def with_secret(secret: str, keys: bytes = b"right\n") -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.connection = with_secrets(place, keys) + secret

    return make


def secret_not_wanted(place: Place) -> None:
    place.connection = f"{place.worker.connection}+right"


def tls_library(place: Place) -> None:
    """The libssl that programs find is none."""
    assert COMPILER
    source, folder = place.file("empty.c"), place.folder / "lib"
    folder.mkdir()
    for name in ("libssl.so.3", "libssl.so.1.1"):
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(folder / name), str(source)], check=True)
    place.set("LD_LIBRARY_PATH", str(folder))
    place.connection = f"{with_secrets(place)}+right"


def worker_full(place: Place) -> None:
    other = place.stack.enter_context(Worker("--max-clients", "1", transport="native"))
    client = place.stack.enter_context(socket.create_connection(("127.0.0.1", other.port)))
    client.sendall(Greeting.build(Teleport().schema))
    assert client.recv(8)
    place.connection = other.connection


def segment_forbidden(place: Place) -> None:
    path = place.segment_file(state=1)
    path.chmod(0o400)
    if os.geteuid() == 0:  # who may do everything
        real = os.open

        def refuse(name: object, flags: int, *more: int) -> int:
            if str(name) == str(path) and flags & os.O_RDWR:
                raise PermissionError(13, "Permission denied", str(path))
            return real(name, flags, *more)  # type: ignore[arg-type]

        place.patch.setattr(os, "open", refuse)


def segment_no_file(place: Place) -> None:
    place.connection = f"shmem+{place.folder}+16+0"


def segment_other_size(place: Place) -> None:
    place.segment_file(32)
    place.connection = f"shmem+{place.segment}+16+0"


def with_header(**words: int) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.segment_file(16, **words)

    return make


def segment_small(place: Place) -> None:
    place.segment_file(1)


def segment_empty(place: Place) -> None:
    place.segment_file()


def segment_disabled(place: Place) -> None:
    place.segment_file().write_bytes(b"\xff" * (16 << 20))


SLOTS = range(SLOT_AT, SLOT_AT + 64 * SLOT_SIZE, SLOT_SIZE)


def beating(look: Callable[[mmap.mmap], None], megabytes: int = 16) -> Callable[[Place], None]:
    """A segment with a heart, and a worker of which `look` is all that it does."""

    def make(place: Place) -> None:
        file = place.stack.enter_context(place.segment_file(megabytes, state=1).open("r+b"))
        memory = place.stack.enter_context(mmap.mmap(file.fileno(), 0))
        stop = threading.Event()

        def beat() -> None:
            for count in range(1, 1 << 30):
                struct.pack_into("<Q", memory, HEADER["heartbeat"], count)
                look(memory)
                if stop.wait(0.002):
                    return

        thread = threading.Thread(target=beat)
        thread.start()
        place.stack.callback(thread.join)
        place.stack.callback(stop.set)

    return make


def every_place_taken(memory: mmap.mmap) -> None:
    for slot in SLOTS:
        struct.pack_into("<I", memory, slot, ACCEPTED)


def takes_and_forgets(memory: mmap.mmap) -> None:
    """It takes a greeting, as a worker that hangs over it."""
    for slot in SLOTS:
        if struct.unpack_from("<I", memory, slot)[0] == GREETED:
            struct.pack_into("<I", memory, slot, TAKEN)


def segment_unanswered(place: Place) -> None:
    place.patch.setattr(segment, "ANSWER_TIME", 0.5)
    beating(takes_and_forgets)(place)


def memory_uncached(place: Place) -> None:
    """No machine of the tests can map memory uncached."""
    place.patch.setattr(segment.SegmentFile, "read_speed", lambda _: 123.0)
    beating(every_place_taken)(place)


def device_disabled(place: Place) -> None:
    """A guest whose udev rule is missing, seen by a user."""
    device = place.folder / "0000:00:04.0"
    device.mkdir()
    for name, text in (("vendor", "0x1af4\n"), ("device", "0x1110\n"), ("enable", "0\n")):
        (device / name).write_text(text)
    (device / "resource2").symlink_to(place.segment_file())
    (device / "enable").chmod(0o444)
    if os.geteuid() == 0:  # who may do everything
        real = Path.write_text

        def refuse(path: Path, text: str) -> int:
            if path == device / "enable":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, text)

        place.patch.setattr(Path, "write_text", refuse)
    place.connection = f"shmem+{device}/resource2+16+0"


def devices_hidden(place: Place) -> None:
    place.connection = place.worker.connection
    place.set("CUDA_VISIBLE_DEVICES", "-1")


def devices_none(place: Place) -> None:
    """A worker whose GPUs went away behind its back answers an empty list."""
    place.connection = place.worker.connection
    place.patch.setattr(doctor, "_program", lambda role, env, seconds: done(0, '{"devices": [], "libraries": []}'))


def done(code: int, output: str = "", errors: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, output, errors)


def devices_refused(place: Place) -> None:
    """Something in the programs of this shell, not in doctor, keeps the client from its worker."""
    source = "int getaddrinfo(void) { return -4; }\nvoid freeaddrinfo(void) {}\n"
    place.set("LD_PRELOAD", str(library(place, "preload.so", source, "-fno-builtin")))
    place.connection = place.worker.connection


def devices_late(place: Place) -> None:
    """A worker whose session does not come to life."""

    def serve(connection: socket.socket) -> None:
        connection.recv(256)
        connection.sendall(Welcome.build(Status.ACCEPTED, Teleport().schema, session_id=1, data_connections=4))
        time.sleep(20)

    place.patch.setattr(doctor, "DEVICES_TIMEOUT", 2.0)
    listening(serve)(place)


def setting(name: str, value: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.set(name, value)
        place.connection = place.worker.connection

    return make


NO_FREE = '{"error": "no GPU is free"}'
FAULTS: dict[str, Callable[[Place], None]] = {
    "files-missing": files_missing,
    "files-damaged": files_damaged,
    "files-unloadable": files_unloadable,
    "teleport-missing": teleport_missing,
    "teleport-cut": teleport_cut,
    "teleport-other-version": teleport_other_version,
    "teleport-foreign": teleport_foreign,
    "library-unloadable": library_unloadable,
    "preload-missing": preload_missing,
    "foreign-libcuda": foreign_libcuda,
    "shell-not-set-up": shell_not_set_up,
    "url-malformed": url("ftp://operator/"),
    "url-proxy-refuses": url_proxy_refuses,
    "url-proxy-kind": through_proxy("socks5://127.0.0.1:1"),
    "url-proxy-malformed": through_proxy("http://:x"),
    "url-nobody": url("http://127.0.0.1:1/"),
    "url-not-ready": answers(status(503, NO_FREE)),
    "url-unknown-connection": answers(status(404)),
    "url-unauthorised": answers(status(401)),
    "url-other-answer": answers(status(500)),
    "url-silent": url_silent,
    "url-large": answers(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"),
    "url-no-http": answers(b"220 mail.example ESMTP\r\n"),
    "url-page": answers(ok("<html>hello</html>")),
    "url-json": answers(ok('{"other": 1}')),
    "url-redirect": answers(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "url-certificate": url_certificate,
    "url-no-tls": url_no_tls,
    "url-authority-file": url_authority_file,
    "url-token-file": url_token_file,
    "url-token-form": url_token_form,
    "no-worker-named": no_worker_named,
    "string-empty": connecting(""),
    "string-length": connecting("native+" + "h" * 2000),
    "string-characters": connecting("native+h h+1+0"),
    "string-protocol": connecting("tcp+h+1+0"),
    "string-fields": connecting("native+h+1"),
    "string-host": connecting("native+-h+1+0"),
    "string-port": connecting("native+h+70000+0"),
    "string-file": connecting("shmem++16+0"),
    "string-size": connecting("shmem+/f+many+0"),
    "string-version": connecting("native+h+1+"),
    "string-secret": connecting("native+h+1+0+"),
    "host-unknown": connecting("native+no-such-host.invalid+1+0"),
    "host-malformed": connecting("native+gpu..example+1+0"),
    "port-closed": connecting(NOWHERE),
    "port-unanswered": port_unanswered,
    "network-unreachable": connecting("native+255.255.255.255+1+0"),
    "not-a-worker": listening(lambda connection: connection.sendall(b"SSH-2.0-x\r\n")),
    "service-silent": listening(silent),
    "service-hangs-up": listening(hanging_up),
    "other-version": listening(other_version),
    "secret-refused": with_secret("+wrong"),
    "secret-expired": with_secret("+old", b"old expires=2001-01-01T00:00Z\nnew\n"),
    "secret-wanted": with_secret(""),
    "secret-not-wanted": secret_not_wanted,
    "tls-library": tls_library,
    "worker-full": worker_full,
    "worker-full-for-one": refusing(Status.NO_SESSION, "This worker serves 3 clients of this address already."),
    "too-many-at-once": refusing(
        Status.NO_SESSION, "16 clients of this address were let in and have asked for nothing; try again."
    ),
    "session-not-started": refusing(
        Status.NO_SESSION, "This worker could not start a session process; its log says why."
    ),
    "device-disabled": device_disabled,
    "segment-missing": connecting("shmem+/tf-test-nothing+16+0"),
    "segment-forbidden": segment_forbidden,
    "segment-no-file": segment_no_file,
    "segment-other-size": segment_other_size,
    "segment-small": segment_small,
    "segment-disabled": segment_disabled,
    "segment-empty": segment_empty,
    "segment-foreign": with_header(magic=7),
    "segment-other-format": with_header(version=99),
    "segment-published-size": with_header(size=1),
    "segment-ended": with_header(state=2),
    "segment-still": with_header(state=1),
    "memory-uncached": memory_uncached,
    "segment-full": beating(every_place_taken),
    "segment-unseen": beating(lambda memory: None),
    "segment-unanswered": segment_unanswered,
    "devices-hidden": devices_hidden,
    "devices-none": devices_none,
    "limit-too-low": limit_too_low,
    "devices-refused": devices_refused,
    "devices-late": devices_late,
    "setting-switch": setting("TF_ENABLE_LOG", "maybe"),
    "setting-level": setting("TF_LOG_LEVEL", "loud"),
    "setting-log-path": setting("TF_LOG_PATH", "/nothing/log"),
    "setting-count": setting("TF_MAX_CACHE_REQUEST_COUNT", "0"),
    "setting-unknown": setting("TF_LOGLEVEL", "debug"),
}


def test_every_cause_has_a_fault() -> None:
    assert list(FAULTS) == [cause.name for cause in CAUSES]
    assert len(CAUSES) >= 50
    assert all(cause.command for cause in CAUSES)


@pytest.mark.parametrize("name", FAULTS)
def test_cause_is_known_by_name(name: str, place: Place) -> None:
    FAULTS[name](place)
    found = examine(place)
    named = [check for check in found if check.cause]
    assert [check.cause for check in named] == [name], found
    assert named[0].command
    assert named[0].passed is name.startswith("setting-"), found
    # What comes after a fault is left out, and before it everything is right.
    assert all(check.passed for check in found if check is not named[0])
    assert named[0].passed or found[-1] is named[0] or found[-1].passed


def test_json_and_text(place: Place) -> None:
    command = [sys.executable, "-m", "tensor_fusion", "doctor", "--connect", NOWHERE]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(result.stdout)
    assert (result.returncode, report["passed"], report["checks"][-1]["cause"]) == (1, False, "port-closed")
    assert report["checks"][-1]["command"] == "tensor-fusion-worker -n native -p 1    # on 127.0.0.1"
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    assert "FAIL  worker reachable: Nothing listens at 127.0.0.1 port 1; " in text
    assert "      port-closed; next: tensor-fusion-worker -n native -p 1    # on 127.0.0.1\n" in text


def test_an_answer_that_no_worker_is_ready_is_enough(place: Place) -> None:
    """The client says it after 4 s, in which it has asked several times."""
    place.patch.setattr(doctor, "URL_TIMEOUT", 60.0)
    FAULTS["url-not-ready"](place)
    (failed,) = [check for check in examine(place) if not check.passed]
    assert "no GPU is free" in failed.text
    over = re.search(r"the client would go on waiting, (\d+) s are over here", failed.text)
    assert over and 3 <= int(over[1]) < 30, failed.text
