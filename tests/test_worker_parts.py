"""Parts of the supervisor by themselves: formats, the choice of a driver, the authorised keys."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensor_fusion.config import UserError
from tensor_fusion.worker import driver
from tensor_fusion.worker.keys import AuthorizedKeys
from tensor_fusion.worker.protocol import RELEASE, Greeting, Packet, Role, Status, Welcome, printable
from tensor_fusion.worker.supervisor import replace_text

SCHEMA = bytes(range(16))


def test_greeting_layout() -> None:
    raw = Greeting.build(
        SCHEMA,
        role=Role.DATA,
        session_id=0x1122,
        session_key=0x3344,
        data_index=5,
        client_pid=77,
        secret="hush",
        connection_version="worker-1",
        program="python3",
    )
    assert len(raw) == 256
    assert raw[:8] == b"TFUSION\0"
    assert struct.unpack_from("<II", raw, 8) == (2, 2)
    assert raw[16:32] == SCHEMA
    assert struct.unpack_from("<QQIIQ", raw, 32) == (0x1122, 0x3344, 5, 77, 0)
    assert raw[64:68] == b"hush"
    assert raw[128:136] == b"worker-1"
    assert raw[192:199] == b"python3"
    parsed = Greeting.parse(raw)
    assert parsed
    assert (parsed.role, parsed.session_id, parsed.session_key, parsed.data_index) == (2, 0x1122, 0x3344, 5)
    assert (parsed.program, parsed.connection_version, parsed.raw) == (
        "python3",
        b"worker-1",
        raw[:64] + bytes(64) + raw[128:],
    )


@given(st.binary(max_size=600))
def test_any_bytes_are_a_greeting_or_none(raw: bytes) -> None:
    parsed = Greeting.parse(raw)
    assert parsed is None or (len(raw) == 256 and raw[:8] == b"TFUSION\0")
    Welcome.parse(raw)
    Packet.parse(raw)


@pytest.mark.parametrize("length", range(256))
def test_truncated_greeting_is_none(length: int) -> None:
    assert Greeting.parse(Greeting.build(SCHEMA)[:length]) is None


@given(st.binary(min_size=248, max_size=248))
def test_greeting_text_is_printable(rest: bytes) -> None:
    parsed = Greeting.parse(b"TFUSION\0" + rest[:48] + bytes(8) + rest[56:])
    assert parsed
    assert parsed.program.isprintable()
    assert parsed.program.isascii()


def test_welcome_layout() -> None:
    raw = Welcome.build(Status.ACCEPTED, SCHEMA, session_id=9, session_key=10, data_connections=8)
    assert len(raw) == 512
    assert struct.unpack_from("<II16sQQII", raw, 8) == (2, 0, SCHEMA, 9, 10, 8, 0)
    assert struct.unpack_from("<I4x", raw, 56) == (RELEASE,)
    refused = Welcome.parse(Welcome.build(Status.NO_SESSION, SCHEMA, "é" * 400))
    assert refused
    assert (refused.status, refused.data_connections) == (4, 0)
    assert refused.sentence == "é" * 223


def test_packet_layout() -> None:
    raw = Packet(16, 3, 4, 5, 6, "H200", b"g" * 256).build()
    assert len(raw) == 512
    assert struct.unpack_from("<IIQQQ", raw) == (16, 3, 4, 5, 6)
    assert raw[32:37] == b"H200\0"
    assert raw[256:] == b"g" * 256
    assert Packet.parse(raw) == Packet(16, 3, 4, 5, 6, "H200", b"g" * 256)


def test_printable() -> None:
    assert printable(b"ok\x1b\xff\n\0rest") == "ok???"


def _library(folder: Path, name: str = "libcuda.so.1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder


def test_driver_is_never_our_own_client(tmp_path: Path) -> None:
    ours = _library(tmp_path / "ours")
    _library(ours, "libteleport.so.1")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "libcuda.so.1").symlink_to(ours / "libcuda.so.1")
    stubs = _library(tmp_path / "lib" / "stubs")
    real = _library(tmp_path / "real")
    nowhere = tmp_path / "nowhere"
    assert driver.find_library("libcuda.so.1", [nowhere, ours, linked, stubs]) is None
    assert driver.find_library("libcuda.so.1", [ours, linked, stubs, real]) == real / "libcuda.so.1"


def test_driver_needs_both_libraries(tmp_path: Path) -> None:
    folder = _library(tmp_path / "real")
    with pytest.raises(UserError, match="libnvidia-ml"):
        driver.find_nvidia([folder])
    other = _library(tmp_path / "other", "libnvidia-ml.so.1")
    found = driver.find_nvidia([folder, other])
    assert found == driver.Driver(folder / "libcuda.so.1", other / "libnvidia-ml.so.1", simulated=False)
    assert driver.find_nvidia([tmp_path]) is None


def test_session_environment_drops_only_our_entries(tmp_path: Path) -> None:
    ours = _library(tmp_path / "ours", "libteleport.so.1")
    environ = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL": "http://x/",
        "LD_LIBRARY_PATH": f"/a:{ours}:/b",
        "LD_PRELOAD": f"{ours}/libcuda.so /opt/keep.so:libjemalloc.so",
    }
    assert driver.session_environment(environ) == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_LIBRARY_PATH": "/a:/b",
        "LD_PRELOAD": "/opt/keep.so:libjemalloc.so",
    }
    assert driver.session_environment({"LD_PRELOAD": f"{ours}/libcuda.so"}) == {}


def test_keys_compare_whole_and_exact(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alpha\n  beta  \n\n# gamma\n#delta\nwith#inside\n" + "k" * 63 + "\n")
    keys = AuthorizedKeys(path)
    for good in (b"alpha", b"beta", b"with#inside", b"k" * 63):
        assert keys.find(good.ljust(64, b"\0"))
    for bad in (b"", b"# gamma", b"gamma", b"#delta", b"alph", b"alphaa", b"Alpha", b"k" * 62, b"k" * 64):
        assert not keys.find(bad.ljust(64, b"\0"))


def test_empty_keys_let_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n")
    assert not AuthorizedKeys(path).find(bytes(64))


def test_replaced_file_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "connections"
    replace_text(path, "one\n")
    replace_text(path, "two\n")
    assert path.read_text() == "two\n"
    assert list(tmp_path.iterdir()) == [path]
