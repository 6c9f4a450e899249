"""What a session that was taken over can still do, tried by a library that plays one."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from stack.harness import COMPILER, Worker, whole_stack
from stranger import Stranger
from worker_harness import eventually

from tensor_fusion.abi import landlock_version

pytestmark = whole_stack
HERE = Path(__file__).parent
# By the rights of the worker's user, which the basic jail leaves to a session. What only root may do is apart.
OF_THE_USER = {"read_secrets", "write_secrets", "move_secrets", "make_file", "signal_supervisor", "connect_somewhere"}
OF_ROOT = {"mount_something", "become_another", "change_root", "open_raw_socket", "read_supervisor", "trace_supervisor"}


@pytest.fixture(scope="module")
def escapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("escapes") / "escapes.so"
    flags = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [COMPILER or "", *flags, str(HERE / "native/escapes.c"), "-ldl", "-o", str(out)]
    subprocess.run(command, check=True, timeout=60)
    return out


def tried(escapes: Path, folder: Path, jail: str) -> dict[str, str]:
    """What came of each attempt, in a session that then serves a client."""
    images, log = folder / "images", folder / "log"
    images.mkdir(mode=0o700)
    (folder / "secrets").write_text("secret\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        variables = {
            "LD_PRELOAD": str(escapes),
            "ESCAPES_REPORT": str(images / "report"),
            "ESCAPES_SECRETS": str(folder / "secrets"),
            "ESCAPES_NEW": str(folder / "new"),
            "ESCAPES_PORT": str(listener.getsockname()[1]),
            "TF_IMAGE_CACHE_PATH": str(images),
            "TF_ENABLE_LOG": "1",
            "TF_LOG_PATH": str(log),
        }
        with (
            Worker("--jail", jail, program=None, transport="native", **variables) as worker,
            Stranger(worker.port) as client,
        ):
            assert client.call("memory_info")[0] == 0
            error, out = client.call("memory_alloc", size=1 << 20)
            assert error == 0 and out["address"]
    assert eventually(lambda: "serving stranger" in log.read_text())  # a line of the session's own
    lines = (images / "report").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def done(results: dict[str, str]) -> set[str]:
    return {name for name, result in results.items() if result == "done"}


def test_the_attempts_are_real(escapes: Path, tmp_path: Path) -> None:
    """Without a jail they succeed, as far as this user may."""
    results = tried(escapes, tmp_path, "off")
    assert done(results) >= OF_THE_USER
    assert os.geteuid() != 0 or "open_raw_socket" in done(results)


def test_the_basic_jail_leaves_the_rights_of_the_user_only(escapes: Path, tmp_path: Path) -> None:
    results = tried(escapes, tmp_path, "basic")
    assert done(results) >= OF_THE_USER
    assert not done(results) & {"mount_something", "become_another", "change_root", "open_raw_socket"}


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel's Landlock has no scopes yet")
def test_in_the_full_jail_nothing_succeeds(escapes: Path, tmp_path: Path) -> None:
    results = tried(escapes, tmp_path, "full")
    assert len(results) == 16
    assert done(results) == set()
    assert {results[name] for name in OF_ROOT | {"signal_supervisor"}} <= {
        "Operation not permitted",
        "Permission denied",
    }
    assert results["read_secrets"] == results["connect_somewhere"] == "Permission denied"
    assert (tmp_path / "secrets").read_text() == "secret\n"
    assert not (tmp_path / "new").exists()


def test_the_folder_for_images_is_made_before_the_full_jail(tmp_path: Path) -> None:
    folder, log = tmp_path / "not" / "there", tmp_path / "log"
    variables = {"TF_IMAGE_CACHE_PATH": str(folder), "TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log)}
    with Worker("--jail", "full", program=None, transport="native", **variables):
        assert folder.stat().st_mode & 0o777 == 0o700
