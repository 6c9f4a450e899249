"""What captures forbid, in which mode and to whom (tests/captures): as a driver answered, and over both transports.

By default in few ways each; TF_CALLS=all asks in all of them.
"""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path

import pytest
from stack.harness import COMPILER, Worker, whole_stack

from tensor_fusion.abi import native_folder

pytestmark = whole_stack
HERE = Path(__file__).parent / "captures"
WAYS = "all" if os.environ.get("TF_CALLS") == "all" else "few"


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER
    out = tmp_path_factory.mktemp("captures") / "captures"
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
    subprocess.run([COMPILER, *flags, HERE / "captures.c", "-o", out, "-ldl", "-pthread"], check=True)
    return out


def read(text: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in text.splitlines())


def name_of(question: str) -> str:
    """Without how it was asked."""
    return question.partition(" stream n capture ")[0].partition(" stream b capture ")[0].removesuffix(" no capture")


def driver() -> dict[str, str]:
    """What driver 580.159.04 answered on an H200, as far as it was asked."""
    text = lzma.decompress((HERE / "driver-580.159.04.txt.xz").read_bytes()).decode()
    answers = read(text)
    assert len(answers) > 3_500
    return answers


def differences() -> set[tuple[str, str, str]]:
    """Names, the driver's answer and ours, where these differ and a reason is known."""
    found = set()
    for line in (HERE / "differences.expect").read_text().splitlines():
        if line and not line.startswith("#"):
            name, answers = line.split(" = ", 1)
            judge, answer = answers.split(" | ")
            found.add((name, judge, answer))
    return found


def asked(binary: Path, library: str, folder: Path, env: dict[str, str] | None = None) -> dict[str, str]:
    names = folder / "names"
    names.write_text("".join(f"{name}\n" for name in dict.fromkeys(map(name_of, driver()))))
    done = subprocess.run(
        [binary, library, WAYS, names], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    answers = read(done.stdout)
    assert len(answers) > (3_500 if WAYS == "all" else 2_500)
    return answers


def compare(answers: dict[str, str]) -> None:
    judge = driver()
    known = differences()
    wrong = [
        f"{key} = {judge[key]} | {answer}"
        for key, answer in answers.items()
        if answer != judge.get(key, answer) and (name_of(key), judge[key], answer) not in known
    ]
    assert not wrong, "\n".join(wrong[:40])
    if WAYS == "few":
        assert len(set(answers) & set(judge)) > len(answers) - 30  # two names were not asked in every way


def test_the_simulated_gpu_forbids_what_the_driver_forbids(binary: Path, tmp_path: Path) -> None:
    compare(asked(binary, str(native_folder() / "lib/libtf-simgpu.so"), tmp_path))


@pytest.mark.parametrize("transport", ["native", "shmem"])
def test_the_client_forbids_what_the_driver_forbids(binary: Path, tmp_path: Path, transport: str) -> None:
    with Worker(transport=transport) as worker:
        compare(asked(binary, "libcuda.so.1", tmp_path, worker.env))
