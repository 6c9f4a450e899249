"""Greetings of the releases that there were, byte for byte, and what releases of one frame version have in common.

Files of tests/data/releases never change. A release adds its own; so does a new frame version.
"""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from native_code import includes
from service import service
from stack.harness import COMPILER, ROOT, connected_elsewhere, generate_headers, whole_stack
from worker_harness import SCHEMA, Worker

from tensor_fusion.apigen.layouts import layouts
from tensor_fusion.apigen.model import load
from tensor_fusion.worker import hello
from tensor_fusion.worker.admission import Admission, Refused
from tensor_fusion.worker.protocol import (
    PROTOCOL_VERSION,
    RELEASE,
    Greeting,
    Role,
    Status,
    Welcome,
    release_name,
)

pytestmark = whole_stack
FOLDER = Path(__file__).parent / "data/releases"
SECRET = b"golden-secret"
NAMES = sorted(path.name.partition("-control")[0] for path in FOLDER.glob("*-control.txt"))
# What a worker of this release says to a client of another frame version, and this client to such a worker.
OLD = {
    "0.1": "is of release 0.1 and this {us} of 0.2.0; the two cannot talk to each other (frame versions 1 and 2): "
    "upgrade the {them} to release 0.2.0 or a later one."
}


def capture(name: str) -> bytes:
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def test_this_release_is_kept() -> None:
    assert release_name(PROTOCOL_VERSION, RELEASE) in NAMES and "0.1" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_greeting_means_the_same_for_ever(name: str) -> None:
    version, release = (1, 0) if name == "0.1" else (2, 2_000)
    control = Greeting.parse(capture(f"{name}-control"))
    assert control
    said = (control.version, control.role, control.release, control.program, control.user, control.connection_version)
    assert said == (version, Role.CONTROL, release, "python", "root", b"0")
    assert control.machine == bytes(range(16)) and not any(control.secret) and control.client_pid > 0
    data = Greeting.parse(capture(f"{name}-data"))
    welcome = Welcome.parse(capture(f"{name}-welcome"))
    assert data and welcome
    assert (data.version, data.role, data.data_index, data.release) == (version, Role.DATA, 0, 0)
    assert (data.session_id, data.session_key) == (welcome.session_id, welcome.session_key) != (0, 0)
    assert data.schema == control.schema == welcome.schema
    assert (welcome.version, welcome.status, welcome.data_connections) == (version, Status.ACCEPTED, 8)
    assert (welcome.sentence, welcome.release) == ("", release)
    assert release_name(welcome.version, welcome.release) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_hello_means_the_same_for_ever(name: str) -> None:
    first = hello.parse(capture(f"{name}-hello"))
    assert first.is_by(SECRET) and not first.is_by(b"another")
    greeting, plain = Greeting.parse(first.identity), Greeting.parse(capture(f"{name}-control"))
    assert greeting and plain
    assert (greeting.version, greeting.role, greeting.release) == (plain.version, Role.CONTROL, plain.release)
    assert (greeting.schema, greeting.program, greeting.user) == (plain.schema, plain.program, plain.user)


@pytest.mark.parametrize("name", NAMES)
def test_this_worker_answers_all_of_them(name: str) -> None:
    """Those of its frame version are let in, whatever they were built from."""
    with Worker() as worker:
        welcome = worker.exchange(capture(f"{name}-control"))[1]
        if name in OLD:
            assert welcome.status == Status.PROTOCOL_DIFFERS
            assert welcome.sentence == "The client " + OLD[name].format(us="worker", them="client")
            # With a secret, too: it is said before anything is looked up.
            raw = capture(f"{name}-hello")
            admission = Admission(SimpleNamespace(keys=None), SCHEMA, Any)  # type: ignore[arg-type]
            with pytest.raises(Refused, match="upgrade the client to release"):
                admission.check(raw, "here", network=True, hello=admission.hello(raw))
        else:
            assert (welcome.status, welcome.schema) == (Status.ACCEPTED, SCHEMA)


@pytest.mark.parametrize("name", sorted(OLD))
def test_this_client_answers_an_older_worker(name: str) -> None:
    """Let in or refused by it, and asked by our commands: one sentence."""
    accepted = capture(f"{name}-welcome")
    refused = accepted[:12] + struct.pack("<I", Status.PROTOCOL_DIFFERS) + accepted[16:64] + b"No.".ljust(448, b"\0")
    for raw in (accepted, refused):

        def answer(connection: socket.socket, raw: bytes = raw) -> None:
            connection.recv(256, socket.MSG_WAITALL)
            connection.sendall(raw)

        with service(answer) as port:
            env = connected_elsewhere(f"native+127.0.0.1+{port}+0")
            program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
            doctor = ("-m", "tensor_fusion", "doctor", "--connect", f"native+127.0.0.1+{port}+0")
            for words in (("-c", program), doctor):
                command = [sys.executable, *words]
                done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
                said = re.findall(
                    r"(?:The GPU worker|The worker) at 127.0.0.1 port \d+ (.*)", done.stdout + done.stderr
                )
                assert said == [OLD[name].format(us="client", them="worker")], done.stdout + done.stderr


def test_this_client_says_what_its_capture_has() -> None:
    """But for what changes with each build, user and process. A change here wants another frame version."""
    said: list[bytes] = []
    with service(lambda connection: said.append(connection.recv(256, socket.MSG_WAITALL))) as port:
        env = connected_elsewhere(f"native+127.0.0.1+{port}+0", TF_WAIT_PROGRESS="0")
        program = "import ctypes; ctypes.CDLL('libcuda.so.1').cuInit(0)"
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, timeout=60, check=True)
    kept = capture(f"{release_name(PROTOCOL_VERSION, RELEASE)}-control")
    for start, end in ((0, 16), (48, 52), (56, 192)):
        assert said[0][start:end] == kept[start:end]


FRAMES = """
#include <stdio.h>
#include <stddef.h>
#include <tp_net.h>
#include <tp_segment.h>
#include <tp_layouts.h>
#include <tp_secure.h>
#define SHOW(x) printf("%s %llu\\n", #x, (unsigned long long)(x))
#define AT(type, field) printf("%s.%s %zu\\n", #type, #field, offsetof(struct type, field))
int main(void) {
    FIELDS
    return 0;
}
"""
FIELDS = """
SHOW(TP_GREETING_SIZE) SHOW(TP_WELCOME_SIZE) SHOW(TP_DATA_CONNECTIONS) SHOW(TP_FRAME_MAX) SHOW(TP_CHUNK_MAX)
SHOW(TP_INLINE_MAX) SHOW(TP_BEHIND_MAX) SHOW(TP_FRAME_CALL) SHOW(TP_FRAME_REPLY) SHOW(TP_FRAME_COMPLETES)
SHOW(TP_ROLE_CONTROL) SHOW(TP_ROLE_DATA) SHOW(TP_ROLE_LOOK)
SHOW(TP_ACCEPTED) SHOW(TP_PROTOCOL_DIFFERS) SHOW(TP_STOPPED)
SHOW(TP_CHUNK_HANDED) SHOW(TP_HANDLE_TAG) SHOW(TP_INDEX_BITS) SHOW(TP_PSK_SIZE)
AT(tp_greeting,version) AT(tp_greeting,role) AT(tp_greeting,schema) AT(tp_greeting,session_id) AT(tp_greeting,machine)
AT(tp_greeting,release) AT(tp_greeting,index) AT(tp_greeting,process) AT(tp_greeting,zero) AT(tp_greeting,secret)
AT(tp_greeting,connection_version) AT(tp_greeting,program) AT(tp_greeting,user)
AT(tp_welcome,version) AT(tp_welcome,status) AT(tp_welcome,schema) AT(tp_welcome,session_id)
AT(tp_welcome,session_key) AT(tp_welcome,data_connections) AT(tp_welcome,release) AT(tp_welcome,sentence)
SHOW(sizeof(struct tp_frame)) AT(tp_frame,size) AT(tp_frame,op) AT(tp_frame,flags) AT(tp_frame,thread)
AT(tp_frame,context) SHOW(sizeof(struct tp_reply_frame)) AT(tp_reply_frame,size) AT(tp_reply_frame,op)
AT(tp_reply_frame,flags) AT(tp_reply_frame,thread) AT(tp_reply_frame,result) AT(tp_reply_frame,transfers)
SHOW(sizeof(struct tp_chunk)) AT(tp_chunk,transfer) AT(tp_chunk,offset) AT(tp_chunk,size) AT(tp_chunk,handed)
SHOW(sizeof(struct tp_layout)) AT(tp_layout,name) AT(tp_layout,layout) AT(tp_layout,number) AT(tp_layout,flags)
SHOW(TP_NEEDED) SHOW(TP_OPTIONAL) SHOW(TP_MESSAGE) SHOW(TP_HANDLE) SHOW(TP_LAYOUTS_MAX)
SHOW(TP_SEGMENT_MAGIC) SHOW(TP_SEGMENT_ADDRESS) SHOW(TP_GRANULE) SHOW(TP_SLOTS) SHOW(TP_SLOT_SIZE)
SHOW(TP_COMMAND_RING) SHOW(TP_REPLY_RING) SHOW(TP_CHUNK_RING) SHOW(TP_BLOCKS_MAX) SHOW(TP_DONE_WORDS)
SHOW(TP_LANDING) SHOW(TP_SEGMENT_SERVING) SHOW(TP_SEGMENT_CLOSED) SHOW(TP_SLOT_FREE) SHOW(TP_SLOT_CLAIMED)
SHOW(TP_SLOT_GREETED) SHOW(TP_SLOT_TAKEN) SHOW(TP_SLOT_ACCEPTED) SHOW(TP_SLOT_REFUSED) SHOW(TP_SLOT_ENDED)
AT(tp_segment_header,magic) AT(tp_segment_header,version) AT(tp_segment_header,state) AT(tp_segment_header,size)
AT(tp_segment_header,epoch) AT(tp_segment_header,schema) AT(tp_segment_header,boot_id)
AT(tp_segment_header,release) AT(tp_segment_header,heartbeat) AT(tp_segment_header,bell)
AT(tp_slot,state) AT(tp_slot,first) AT(tp_slot,blocks) AT(tp_slot,left) AT(tp_slot,stopped)
AT(tp_slot,beat) AT(tp_slot,client_nonce)
AT(tp_slot,echo) AT(tp_slot,client_boot_id) AT(tp_slot,client_life) AT(tp_slot,session_life) AT(tp_slot,greeting)
AT(tp_slot,welcome) AT(tp_slot,client_bell) AT(tp_slot,session_bell) AT(tp_slot,commands) AT(tp_slot,replies)
AT(tp_slot,chunks_up) AT(tp_slot,chunks_down) AT(tp_slot,up_block) AT(tp_slot,down_block) AT(tp_slot,done)
SHOW(sizeof(struct tp_chunk_record)) SHOW(sizeof(struct tp_ring_shared)) SHOW(sizeof(struct tp_bell))
SHOW(sizeof(struct tp_slot))
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_a_frame_version_is_what_it_was(tmp_path: Path) -> None:
    """What releases do not settle between them. If this fails, raise TP_PROTOCOL and keep a new file."""
    assert COMPILER
    source = tmp_path / "frames.c"
    source.write_text(FRAMES.replace("FIELDS", FIELDS.replace(") ", ");\n").replace(")\n", ");\n")))
    headers = [f"-I{generate_headers(tmp_path / 'generated')}", *includes("base", "wire", "ring", "transport")]
    out = tmp_path / "frames"
    subprocess.run(
        [COMPILER, "-std=gnu17", "-D_GNU_SOURCE", *headers, str(source), "-o", str(out)], check=True, timeout=60
    )
    printed = subprocess.run([str(out)], capture_output=True, text=True, check=True, timeout=10).stdout
    (row,) = [row for row in layouts(load(ROOT / "api")) if row.name == "layouts"]
    printed += f"operation layouts {row.number} {row.hash:016x}\n"
    kept = FOLDER / f"frames-{PROTOCOL_VERSION}.txt"
    assert printed == kept.read_text()


def test_a_release_has_one_number_everywhere() -> None:
    name = release_name(PROTOCOL_VERSION, RELEASE)
    wire = (ROOT / "native/wire/tp_wire.h").read_text()
    assert f"project(tensor_fusion VERSION {name} " in (ROOT / "CMakeLists.txt").read_text()
    assert f"#define TP_RELEASE {RELEASE}u\n" in wire and f"#define TP_PROTOCOL {PROTOCOL_VERSION}u\n" in wire
    headings = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert name in headings
