"""What kernels print and the text of assertions come out of the program, over both transports as on the driver."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack.harness import ROOT, Worker, clean_environment, generate_headers, link_with_driver, whole_stack

from tensor_fusion.abi import native_folder

pytestmark = whole_stack
PTX = ROOT / "tests" / "kernels" / "print.ptx"
ASSERTION = "print.cu:15: "


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prints")
    return link_with_driver(folder / "prints", [ROOT / "tests/stack/apart/prints.c"], generate_headers(folder))


@pytest.fixture(scope="module", params=["simulated", "native", "shmem"])
def env(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if request.param == "simulated":
        folder = tmp_path_factory.mktemp("simulated")
        (folder / "libcuda.so.1").symlink_to(native_folder() / "lib" / "libtf-simgpu.so")
        yield clean_environment(LD_LIBRARY_PATH=str(folder))
    else:
        with Worker(transport=request.param) as worker:
            yield worker.env


def run(program: Path, env: dict[str, str], way: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [program, PTX, way], env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def lines(value: int, count: int = 1) -> list[str]:
    return [f"thread {i} of {count}: {value}" for i in range(count)]


def test_each_wait_shows_what_was_printed(program: Path, env: dict[str, str]) -> None:
    done = run(program, env, "waits")
    wanted = [
        "begin",
        *lines(1, 2),
        "stream",
        *lines(2),
        "event",
        *lines(3),
        "context",
        *lines(4),
        "copy",
        *lines(5),
        "end",
    ]
    assert done.stdout.splitlines() == wanted
    assert not done.stderr


def test_much_is_shown_whole(program: Path, env: dict[str, str]) -> None:
    assert run(program, env, "much").stdout.splitlines() == [line for i in range(20) for line in lines(i, 1000)]


def test_context_that_ends_shows_all(program: Path, env: dict[str, str]) -> None:
    wanted = ["reset", *lines(8), "create", "destroy", *lines(9), "end"]
    assert run(program, env, "ends").stdout.splitlines() == wanted


def test_green_contexts_print(program: Path, env: dict[str, str]) -> None:
    assert run(program, env, "green").stdout.splitlines() == ["wait", *lines(6), "end"]


def test_what_nobody_waits_for_is_shown_at_the_end(program: Path, env: dict[str, str]) -> None:
    assert run(program, env, "never").stdout.splitlines() == lines(1)


def test_assertion_has_its_text(program: Path, env: dict[str, str]) -> None:
    done = run(program, env, "assert")
    assert done.stdout.splitlines() == [*lines(1), "gave 710", "gave 710"]
    assert [line.startswith(ASSERTION) for line in done.stderr.splitlines()] == [True]


def test_compressed_code_prints_too(program: Path, env: dict[str, str]) -> None:
    """Behind more waits than such a program asks behind, closer to each other than it asks, at its very end."""
    for _ in range(5):
        assert run(program, env, "late").stdout.splitlines() == lines(7)
