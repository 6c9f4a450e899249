"""The transport in C, built from source and run: client connection against session link, HTTP, log, quota page.

`TF_TEST_SANITIZE=address,undefined` or `thread` builds it with those sanitizers.
"""

from __future__ import annotations

import ctypes
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from native_code import includes
from native_code import sources as code_of

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "native"
CASES: list[dict[str, Any]] = json.loads((ROOT / "tests/data/connection_strings.json").read_text())
FAULTS = (
    "none", "empty", "length", "characters", "protocol", "fields", "host", "port", "file", "size", "version", "secret"
)  # fmt: skip
# Stands in for the hash that is generated from api/: these programs have no operations of the real schema.
SCHEMA_H = """#include <stdint.h>
#include <tp_layouts.h>
extern __attribute__((visibility("default"))) const unsigned char tpg_schema_hash[16];
const char *tpg_op_name(uint16_t op);
enum {
    TPG_OP_caught_up = 4711, /* what the connection asks by itself; no session here has host functions */
    TPG_OP_device_broken,    /* and what it listens for at the end */
    TPG_OP_layouts,          /* which no worker of the same schema is asked */
    TPG_OP_LIMIT
};
#define TPG_LAYOUTS 1
#define TPG_OPERATIONS 1u
extern const struct tp_layout tpg_layouts[TPG_LAYOUTS];
const char *tpg_op_functions(uint16_t op);
"""
OPS_H = """#include <tp_wire.h>
#include <tpg_schema.h>
struct tpg_layouts_out {
    const void *rows;
    size_t rows_size;
};
static inline void tpg_get_layouts_out(struct tp_cursor *c, struct tpg_layouts_out *out) {
    out->rows = tp_get_bytes(c, &out->rows_size);
}
"""
SCHEMA_C = """#include <tpg_schema.h>
const unsigned char tpg_schema_hash[16] = "transport tests";
const char *tpg_op_name(uint16_t op) { return op ? "operation" : "none"; }
const char *tpg_op_functions(uint16_t op) { return tpg_op_name(op); }
const struct tp_layout tpg_layouts[TPG_LAYOUTS] = {{.name = 1, .layout = 2, .number = TPG_OP_layouts}};
"""


def compiler() -> list[str]:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return [name]
    return [sys.executable, "-m", "ziglang", "cc"]


def build(out: Path, sources: list[Path], *flags: str) -> Path:
    generated = out.parent / "generated"
    generated.mkdir(exist_ok=True)
    (generated / "tpg_schema.h").write_text(SCHEMA_H)
    (generated / "tpg_ops.h").write_text(OPS_H)
    (generated / "tpg_tables.c").write_text(SCHEMA_C)
    folders = includes("base", "wire", "ring", "transport", "client/core", "session")
    command = [
        *compiler(), "-std=c17", "-D_GNU_SOURCE", "-O2", "-g1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow",
        "-Wstrict-prototypes", "-Wno-sign-conversion", "-fno-strict-aliasing", "-fvisibility=hidden", "-fPIC", *flags,
        "-Wno-unused-parameter", *folders, f"-I{generated}", *map(str, sources), str(generated / "tpg_tables.c"),
        "-lpthread", "-o", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def core_sources() -> list[Path]:
    folders = ("base", "ring", "transport", "client/core")
    return sorted([NATIVE / "wire/layouts.c", *(path for folder in folders for path in (NATIVE / folder).glob("*.c"))])


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sanitize = os.environ.get("TF_TEST_SANITIZE")
    flags = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"] if sanitize else ["-Werror"]
    sources = [*core_sources(), *code_of("session", "link*"), *(ROOT / "tests/native").glob("test_transport*.c")]
    return build(tmp_path_factory.mktemp("transport") / "test_transport", sources, *flags)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("teleport") / "libteleport.so", core_sources(), "-shared")))


def clean_environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "TENSOR_FUSION_"))}
    return kept | variables


def run(program: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=clean_environment(**variables),
    )


# Written out, so that a case that vanishes from the program is missed.
NATIVE_CASES = [
    "calls",
    "threads",
    "thread_numbers_are_reused",
    "cancelled_while_it_waits",
    "uploads",
    "downloads",
    "transfers_of_many_threads",
    "messages",
    "held_frames",
    "counts_do_not_go_back",
    "downloads_land_while_a_program_only_appends",
    "idle_costs_nothing",
    "lost_wakes_everybody",
    "death_in_mid_download",
    "loss_in_the_last_piece",
    "idle_loss_is_found_by_the_next_call",
    "vanished_peer",
    "slow_reader_is_not_lost",
    "refused_transfers",
    "fork_in_mid_use",
    "fork_before_first_use",
    "refused_secret",
    "unreachable",
    "next_address_is_tried",
    "not_configured",
    "raw_short_frame",
    "raw_zero_frame",
    "raw_long_frame",
    "raw_huge_frame",
    "raw_crooked_frame",
    "raw_half_frame_then_end",
    "raw_upload_that_never_comes",
    "raw_drip",
    "raw_never_reads",
    "raw_long_chunk",
    "raw_empty_chunk",
    "raw_chunk_of_nothing",
    "raw_chunk_handed",
    "raw_half_chunk_then_end",
    "raw_data_connections_beyond_the_limit",
    "every_truncation",
    "who_waits_rings_the_session",
    "who_expects_something_wakes_the_sender",
] + [f"bad_session_{kind}" for kind in range(13)]


def test_every_native_case_is_run_here(program: Path) -> None:
    assert sorted(run(program, "--list").stdout.split()) == sorted(NATIVE_CASES)


@pytest.mark.parametrize("case", NATIVE_CASES)
def test_native(program: Path, case: str) -> None:
    done = run(program, case)
    if " skipped" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_user_reads(program: Path) -> None:
    assert "TENSOR_FUSION_OPERATOR_CONNECTION_INFO" in run(program, "not_configured").stderr
    refused = run(program, "refused_secret").stderr
    assert "The secret is wrong; ask who runs the worker." in refused
    assert "wrong+" not in refused
    assert "+wrong" not in refused
    assert "\x1b" not in refused
    assert "127.0.0.1 port 1" in run(program, "unreachable").stderr
    lost = run(program, "idle_loss_is_found_by_the_next_call").stderr
    assert lost.count("is lost") == 1


# ---- log and statistics ----


def test_log_goes_to_its_file_and_errors_to_stderr_too(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    done = run(program, "refused_secret", TF_ENABLE_LOG="1", TF_LOG_LEVEL="debug", TF_LOG_PATH=str(path))
    assert "refused the connection" in path.read_text()
    assert "refused the connection" in done.stderr
    path.unlink()
    done = run(program, "calls", TF_ENABLE_LOG="1", TF_LOG_LEVEL="info", TF_LOG_PATH=str(path))
    assert "INFO  client[" in path.read_text()
    assert "Connected to" in path.read_text()
    assert "Connected to" not in done.stderr
    assert "Connected to" not in run(program, "calls").stderr


def test_log_with_bad_settings_still_runs(program: Path, tmp_path: Path) -> None:
    done = run(program, "messages", TF_ENABLE_LOG="1", TF_LOG_LEVEL="loud", TF_LOG_PATH=str(tmp_path / "no" / "log"))
    assert done.returncode == 0
    assert "TF_LOG_LEVEL=loud" in done.stderr
    assert "TF_LOG_PATH=" in done.stderr


def test_switch_that_is_neither_on_nor_off_is_said(program: Path) -> None:
    assert "TF_ENABLE_LOG=maybe is neither 1 nor 0; 0 is used" in run(program, "messages", TF_ENABLE_LOG="maybe").stderr
    for off in ("", "0", "off", "False"):
        assert run(program, "messages", TF_ENABLE_LOG=off).stderr == ""


def test_statistics_at_exit(program: Path, tmp_path: Path) -> None:
    assert run(program, "calls", TF_STATS_PATH=str(tmp_path / "stats-%p.json")).returncode == 0
    (path,) = tmp_path.glob("stats-*.json")
    assert path.stem.removeprefix("stats-").isdigit()
    stats = json.loads(path.read_text())
    assert stats["round_trips"] == 14
    assert stats["by_function"]["echo"]["round_trips"] == 13
    assert stats["frames"] == 100014
    assert stats["bytes_sent"] > 100000 * 24
    assert stats["bytes_received"] > 0
    assert 0 < stats["by_function"]["echo"]["blocked_ns"] <= stats["blocked_ns"]


def test_a_forked_child_writes_no_statistics(program: Path, tmp_path: Path) -> None:
    assert run(program, "fork_in_mid_use", TF_STATS_PATH=str(tmp_path / "%p")).returncode == 0
    assert len(list(tmp_path.iterdir())) == 1


# ---- connection strings ----


class Endpoint(ctypes.Structure):
    _fields_ = (
        ("transport", ctypes.c_uint32),
        ("port", ctypes.c_uint32),
        ("megabytes", ctypes.c_uint64),
        ("host", ctypes.c_char * 256),
        ("file", ctypes.c_char * 1024),
        ("version", ctypes.c_char * 64),
        ("secret", ctypes.c_char * 64),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:40])
def test_connection_strings(library: ctypes.CDLL, case: dict[str, Any]) -> None:
    out = Endpoint()
    why = ctypes.create_string_buffer(2048)
    fault = library.tp_parse_connection(case["text"].encode(), ctypes.byref(out), why, ctypes.c_size_t(len(why)))
    if "valid" in case:
        expected = case["valid"]
        assert fault == 0, why.value
        assert out.version.decode() == expected["version"]
        assert out.secret.decode() == expected["secret"]
        if expected["protocol"] == "native":
            assert (out.transport, out.host.decode(), out.port) == (1, expected["host"], expected["port"])
        else:
            assert (out.transport, out.file.decode(), out.megabytes) == (2, expected["file"], expected["megabytes"])
    else:
        assert FAULTS[fault] == case["fault"]
        assert why.value.decode().endswith(".")


# ---- asking a URL ----

Answers = Callable[[int, dict[str, str]], tuple[int, dict[str, str], bytes]]


class Operator:
    """An HTTP server that answers its n-th request as a test says."""

    def __init__(self, answers: Answers) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        operator = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                operator.requests.append((self.path, headers))
                status, extra, body = answers(len(operator.requests), headers)
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                if "Transfer-Encoding" not in extra:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *_: object) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/connection?name=a&namespace=b"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def operators() -> Iterator[Callable[[Answers], Operator]]:
    started: list[Operator] = []

    def start(answers: Answers) -> Operator:
        started.append(Operator(answers))
        return started[-1]

    yield start
    for operator in started:
        operator.close()


def fetch(library: ctypes.CDLL, url: str) -> tuple[int, str, str]:
    text, why = ctypes.create_string_buffer(1026), ctypes.create_string_buffer(2048)
    size = ctypes.c_size_t
    status = library.tp_fetch_connection(url.encode(), text, size(len(text)), why, size(len(why)))
    return status, text.value.decode(), why.value.decode()


TP_OK, TP_ERROR_CONFIG = 0, 1
STRING = "native+10.0.0.1+8000+pod-1"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/plain"}, STRING.encode()),
        ({"Content-Type": "text/plain"}, f"{STRING}\n".encode()),
        ({"Content-Type": "application/json"}, json.dumps({"x": 1, "connection_url": STRING}).encode()),
        (
            {"Transfer-Encoding": "chunked"},
            f"7\r\n{STRING[:7]}\r\n{len(STRING) - 7:x}\r\n{STRING[7:]}\r\n0\r\n\r\n".encode(),
        ),
    ],
    ids=["plain", "newline", "json", "chunked"],
)
def test_url_answers(
    library: ctypes.CDLL,
    operators: Callable[[Answers], Operator],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    headers: dict[str, str],
    body: bytes,
) -> None:
    token = tmp_path / "token"
    token.write_text("abc.def\n")
    monkeypatch.setenv("TENSOR_FUSION_OPERATOR_TOKEN_FILE", str(token))
    operator = operators(lambda _n, _headers: (200, {**headers, "Connection": "close"}, body))
    status, text, why = fetch(library, operator.url)
    assert (status, text.strip()) == (TP_OK, STRING), why
    path, sent = operator.requests[0]
    assert path == "/api/connection?name=a&namespace=b"
    assert sent["authorization"] == "Bearer abc.def"
    assert sent["host"] == f"127.0.0.1:{operator.server.server_port}"


def test_url_not_ready_is_asked_again(library: ctypes.CDLL, operators: Callable[[Answers], Operator]) -> None:
    def answers(n: int, _headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, STRING.encode()) if n == 4 else (503 if n % 2 else 504, {}, b'{"error": "not yet"}')

    operator = operators(answers)
    begin = time.monotonic()
    status, text, _ = fetch(library, operator.url)
    assert (status, text, len(operator.requests)) == (TP_OK, STRING, 4)
    assert time.monotonic() - begin > 0.5


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (404, b'{"error": "connection a not found"}', ("404", "connection a not found", "name and namespace")),
        (401, b'{"error": "bad \\"token\\""}', ("401", 'bad "token"', "token")),
        (500, b"oops", ("500",)),
        (200, b'{"other": 1}', ("connection_url",)),
        (200, b"x" * 5000, ("too long",)),
    ],
)
def test_url_refusals_stop_with_a_sentence(
    library: ctypes.CDLL, operators: Callable[[Answers], Operator], code: int, body: bytes, expected: tuple[str, ...]
) -> None:
    operator = operators(lambda _n, _headers: (code, {}, body))
    status, _, why = fetch(library, operator.url)
    assert status == TP_ERROR_CONFIG
    assert len(operator.requests) == 1
    assert all(part in why for part in expected), why


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://", "http://"),
        ("ftp://operator/api", "http://"),
        ("http://", "http://"),
        ("http://h:0/", "http://"),
        ("http://h:99999/", "http://"),
        ("http://user@h/", "http://"),
        ("http://h/a b", "http://"),
        ("http://h/a\r\nX: y", "http://"),
        ("http://[::1/x", "http://"),
    ],
)
def test_bad_urls(library: ctypes.CDLL, url: str, expected: str) -> None:
    status, _, why = fetch(library, url)
    assert status == TP_ERROR_CONFIG
    assert expected in why


def test_unreadable_token_is_named(
    library: ctypes.CDLL, operators: Callable[[Answers], Operator], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operator = operators(lambda _n, _headers: (200, {}, STRING.encode()))
    monkeypatch.setenv("TENSOR_FUSION_OPERATOR_TOKEN_FILE", str(tmp_path / "none"))
    status, _, why = fetch(library, operator.url)
    assert status == TP_ERROR_CONFIG
    assert str(tmp_path / "none") in why
    assert not operator.requests
