"""Clients and workers of different releases: what both have works, the rest is refused by name or in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from native_code import includes, sources
from skew.patched import patched, renamed
from skew.relay import OtherRelease, Row, changed, moved, name, pack, without
from stack.harness import COMPILER, ROOT, Worker, connected_elsewhere, whole_stack

from tensor_fusion.abi import native_folder

pytestmark = whole_stack
PROGRAM = Path(__file__).parent / "skew/program.py"
RELEASES = r"the GPU worker at 127\.0\.0\.1 port \d+ is of release 3\.4\.5, this client of 0\.2\.0"
NOT_SUPPORTED, REFUSED = 801, 46
NVML_NOT_SUPPORTED, NVML_REFUSED = 3, 9
Edit = Callable[[list[Row]], list[Row]]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(transport="native") as running:
        yield running


def run(env: dict[str, str], *words: str) -> tuple[dict[str, int], list[str]]:
    """Results by call, all of them right, and the sentences on standard error without time and process."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    results: dict[str, int] = {}
    for line in done.stdout.splitlines():
        call, code, right = line.rsplit(" ", 2)
        assert right == "right", done.stdout
        results[call] = int(code)
    assert results
    return results, [
        re.sub(r"^\S+ +\w+ client\[\d+\]: |^tensor-fusion: ", "", line) for line in done.stderr.splitlines()
    ]


def against(worker: Worker, edit: Edit, *words: str, **variables: str) -> tuple[dict[str, int], list[str]]:
    with OtherRelease(worker.port, edit) as other:
        results, sentences = run(connected_elsewhere(other.connection, **variables), *words)
        assert other.asked == 1
        return results, sentences


def test_the_same_release_asks_for_no_list(worker: Worker) -> None:
    """What the program does works there, or the tests below would prove nothing."""
    results, sentences = run(worker.env)
    assert not any(results.values()) and not sentences
    assert len(results) > 18


@pytest.mark.parametrize("edit", [lambda rows: rows, moved], ids=["the same numbers", "all numbers moved"])
def test_the_same_operations_work(worker: Worker, edit: Edit) -> None:
    results, sentences = against(worker, edit)
    assert not any(results.values()), results
    assert not sentences


def test_moved_numbers_are_named_by_ours(worker: Worker) -> None:
    """The trace, which reads frames back, and the notice of a failed post, which carries the worker's number."""
    fault = {"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "trace"}
    _, lines = against(worker, moved, **fault)
    text = "\n".join(lines)
    shared = re.search(r"(\d+) of this client's (\d+) operations are the same there", text)
    assert shared and shared[1] == shared[2] and re.search(RELEASES, text)
    frames = re.findall(r"^frame \d+: (\w+), ", text, re.MULTILINE)
    assert {"start", "copy_in_bulk", "cuStreamGetAttribute", "nvml_start"} <= set(frames)
    assert "unknown operation" not in text


@pytest.mark.parametrize(
    ("edit", "operation", "functions", "calls"),
    [
        (changed("cuStreamGetAttribute"), "cuStreamGetAttribute", "cuStreamGetAttribute", ["cuStreamGetAttribute"]),
        (without("cuStreamGetAttribute"), "cuStreamGetAttribute", "cuStreamGetAttribute", ["cuStreamGetAttribute"]),
        (
            lambda rows: changed("cuStreamGetAttribute")(moved(rows)),
            "cuStreamGetAttribute",
            "cuStreamGetAttribute",
            ["cuStreamGetAttribute"],
        ),
        (changed("copy_in_bulk"), "copy_in_bulk", r"A part of cuMemcpy, .* and \d+ others", ["copy 1048576"]),
        (
            without("host_function"),
            "host_function",
            "A part of cuLaunchHostFunc, cuStreamAddCallback",
            ["cuLaunchHostFunc"],
        ),
        (changed("cuEventDestroy_v2"), "cuEventDestroy_v2", "cuEventDestroy_v2", ["cuEventDestroy"]),
    ],
    ids=["another layout", "not there", "moved as well", "one of several", "with a message", "success after loss"],
)
def test_what_differs_is_refused_by_name(
    worker: Worker, edit: Edit, operation: str, functions: str, calls: list[str]
) -> None:
    results, sentences = against(worker, edit)
    assert {call: code for call, code in results.items() if code} == dict.fromkeys(calls, NOT_SUPPORTED)
    assert len(sentences) == 1, sentences
    assert re.fullmatch(
        rf"{functions} is not supported here: {RELEASES}, and they do not have the same operation '{operation}'; "
        "install the same release on both sides",
        sentences[0],
    ), sentences


def test_what_differs_in_nvml_is_refused_by_name(worker: Worker) -> None:
    results, sentences = against(worker, changed("nvmlDeviceGetTemperature"), "nvml")
    assert results.pop("nvmlDeviceGetTemperature") == NVML_NOT_SUPPORTED
    assert not any(results.values())
    assert len(sentences) == 1 and sentences[0].startswith("nvmlDeviceGetTemperature is not supported here: ")


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (changed("start"), "they do not have the same 'start', without which nothing works"),
        (without("context_create"), "the worker has no 'context_create', without which nothing works"),
        (changed("device_broken"), "they do not have the same 'device_broken', without which nothing works"),
        (changed("handle stream"), "they do not have the same 'a kind of handle', without which nothing works"),
        (
            lambda rows: sorted([*rows, Row(1, 2, 60_000, 1)], key=lambda row: (row.flags & 8, row.number)),
            "they do not have the same 'operation that the worker wants', without which nothing works",
        ),
    ],
    ids=["an operation", "one that is not there", "a message", "a kind of handle", "one that only the worker knows"],
)
def test_without_what_is_needed_one_sentence_says_so(worker: Worker, edit: Edit, why: str) -> None:
    results, sentences = against(worker, edit)
    assert results == {"cuInit": REFUSED, "cuInit again": REFUSED}
    assert len(sentences) == 1, sentences
    assert re.fullmatch(rf"{RELEASES}, and {why}: install the same release on both sides\.", sentences[0]), sentences
    results, sentences = against(worker, edit, "nvml")
    assert results == {"nvmlInit": NVML_REFUSED} and len(sentences) == 1, sentences


def test_a_new_message_that_is_optional_is_dropped(worker: Worker) -> None:
    """And one that nobody has announced ends the connection."""
    frame = (24 + 8).to_bytes(4, "little") + (700).to_bytes(2, "little") + bytes(26)

    def announced(rows: list[Row]) -> list[Row]:
        kinds = [row for row in rows if row.flags & 8]
        return [*(row for row in rows if not row.flags & 8), Row(name("news"), 5, 700, 4 | 2), *kinds]

    with OtherRelease(worker.port, announced, unasked=3 * frame) as other:
        results, sentences = run(connected_elsewhere(other.connection))
        assert not any(results.values()) and not sentences
    with OtherRelease(worker.port, unasked=frame) as other:
        results, sentences = run(connected_elsewhere(other.connection))
        assert results["cuInit"] == REFUSED
        assert len(sentences) == 1 and "a message with number 700" in sentences[0]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "has 0 bytes, which cannot be"),
        (bytes(23), "has 23 bytes, which cannot be"),
        (bytes(24), "row 0 of the worker's list of operations has the number 0, which cannot be"),
        (bytes(24 * 8193), f"has {24 * 8193} bytes, which cannot be"),
        (pack([Row(1, 1, 20, 0), Row(2, 2, 20, 0)]), "row 1 of the worker's list of operations has the number 20"),
        (pack([Row(1, 1, 20, 0), Row(2, 2, 19, 0)]), "row 1 of the worker's list of operations has the number 19"),
        (pack([Row(1, 1, 5, 8), Row(2, 2, 19, 0)]), "row 1 of the worker's list of operations has the number 19"),
        (pack([Row(1, 1, 0xFFFF, 0)]), "has the number 65535, which cannot be"),
        (pack([Row(name("watch"), 1, 20, 0), Row(name("watch"), 1, 21, 0)]), "list has 'watch' twice"),
        (pack([Row(i, i, i, 0) for i in range(1, 8193)]), "the worker has no '"),
    ],
    ids=[
        "empty",
        "no row",
        "zeros",
        "too long",
        "twice",
        "falling",
        "kinds first",
        "no number",
        "a name twice",
        "strange",
    ],
)
def test_a_list_that_cannot_be(worker: Worker, raw: bytes, why: str) -> None:
    with OtherRelease(worker.port, raw=raw) as other:
        results, sentences = run(connected_elsewhere(other.connection))
    assert results == {"cuInit": REFUSED, "cuInit again": REFUSED}
    assert len(sentences) == 1 and why in sentences[0], sentences


# Over both transports, and with the client as the one that is other: files of this build with another list in them.


@pytest.fixture(params=["native", "shmem"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["worker", "client"])
def other_side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def meet(transport: str, other_side: str, other: Path) -> Iterator[dict[str, str]]:
    """The environment of a program; `other` are the native files of one side, those of this build are the other's."""
    here = native_folder()
    with Worker(transport=transport, TF_NATIVE_DIR=str(other if other_side == "worker" else here)) as worker:
        path = {"LD_LIBRARY_PATH": str(other / "client")} if other_side == "client" else {}
        yield {**worker.env, **path}


def test_another_build_with_the_same_operations(tmp_path: Path, transport: str, other_side: str) -> None:
    with meet(transport, other_side, patched(tmp_path / "other", lambda rows: rows)) as env:
        results, sentences = run(env)
        assert not any(results.values()) and not sentences, (results, sentences)
        _, lines = run({**env, "TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "info"})
        assert any("operations are the same there" in line for line in lines)  # it is one


@pytest.mark.parametrize(
    "edit", [changed, lambda *names: renamed(*map(name, names))], ids=["other layouts", "other names"]
)
def test_another_build_with_other_operations(
    tmp_path: Path, transport: str, other_side: str, edit: Callable[..., Edit]
) -> None:
    other = patched(tmp_path / "other", edit("cuStreamGetAttribute", "host_function", "nvmlDeviceGetTemperature"))
    with meet(transport, other_side, other) as env:
        results, sentences = run(env)
    assert {call: code for call, code in results.items() if code} == {
        "cuStreamGetAttribute": NOT_SUPPORTED,
        "cuLaunchHostFunc": NOT_SUPPORTED,
        "nvmlDeviceGetTemperature": NVML_NOT_SUPPORTED,
    }
    assert len(sentences) == 3 and all(" is not supported here: the GPU worker at " in line for line in sentences)


def test_another_build_that_starts_otherwise(tmp_path: Path, transport: str, other_side: str) -> None:
    with meet(transport, other_side, patched(tmp_path / "other", changed("start"))) as env:
        results, sentences = run(env)
        assert results == {"cuInit": REFUSED, "cuInit again": REFUSED}
        assert len(sentences) == 1 and "'start', without which nothing works: install the same" in sentences[0]


def test_another_build_in_tls(tmp_path: Path) -> None:
    """The session says the welcome there, not the supervisor."""
    with meet("tls", "worker", patched(tmp_path / "other", changed("cuStreamGetAttribute"))) as env:
        results, sentences = run(env)
        assert {call: code for call, code in results.items() if code} == {"cuStreamGetAttribute": NOT_SUPPORTED}
        assert len(sentences) == 1


def test_any_list_is_bounded(tmp_path: Path) -> None:
    """30,000 lists, most of them made to be bad, under the sanitizers."""
    assert COMPILER
    out = tmp_path / "test_layouts"
    files = [ROOT / "tests/native/test_layouts.c", *sources("wire", "layouts")]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run([COMPILER, *flags, *includes("wire"), *map(str, files), "-o", str(out)], check=True, timeout=100)
    done = subprocess.run([str(out)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ work, \d+ do not\n", done.stdout)
