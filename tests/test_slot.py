"""The session beside a slot of the shared segment: its link by itself, and its process on the simulated GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from native_code import sources
from test_transport import NATIVE, ROOT, build, clean_environment

from tensor_fusion.abi import native_file, native_folder

SOURCES = [
    *sorted((ROOT / "tests/native").glob("test_slot*.c")),
    ROOT / "tests/native/test_transport_session.c",
    *sources("session", "link*"),
    *(path for name in ("base", "ring", "transport") for path in sorted((NATIVE / name).glob("*.c"))),
]
KINDS = {"plain": ["-Werror"], "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]}
# Written out, so that a case that vanishes from the program is missed.
CASES = (
    "calls",
    "calls_of_another_kernel",
    "transfers",
    "transfers_through_one_block",
    "transfers_of_another_kernel",
    "refused_uploads_give_their_blocks_back",
    "slow_reader_loses_nothing",
    "idle_costs_nothing",
    "idle_costs_nothing_beside_another_kernel",
    "idle_answers_at_once",
    "idle_answers_soon",
    "commands_beyond",
    "commands_back",
    "commands_far",
    "records_beyond",
    "replies_beyond",
    "downloads_beyond",
    "frame_empty",
    "frame_short",
    "frame_crooked",
    "frame_long",
    "record_block",
    "record_block_far",
    "record_empty",
    "record_long",
    "record_of_nothing",
    "record_handed",
    "record_twice",
    "unread_downloads",
    "never_reads",
    "death_behind_frames",
    "death_in_idleness",
    "death_in_idleness_of_another_kernel",
    "death_in_a_frame",
    "death_in_an_upload",
    "death_in_a_download",
    "flips_in_the_slot",
    "flips_in_the_rings",
)
# About time, not about memory.
PLAIN_ONLY = {name for name in CASES if name.startswith("idle_")}
NEEDED = ("bin/tensor-fusion-session", "lib/libtf-simgpu.so")


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [program, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False, env=clean_environment())


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("slot")
    return {kind: build(out / f"test_slot_{kind}", SOURCES, *flags) for kind, flags in KINDS.items()}


def test_every_case_is_run_here(programs: dict[str, Path]) -> None:
    assert tuple(run(programs["plain"], "--list").stdout.split()) == CASES


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, case) for kind in KINDS for case in CASES if kind == "plain" or case not in PLAIN_ONLY]
)
def test_slot(programs: dict[str, Path], kind: str, case: str) -> None:
    done = run(programs[kind], case)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    not all((native_folder() / name).is_file() for name in NEEDED),
    reason=f"the native files are not in {native_folder()}; install the package or set TF_NATIVE_DIR",
)
def test_the_session_process(programs: dict[str, Path]) -> None:
    found = re.search(r"^(\d+) start$", (ROOT / "api/opcodes.lock").read_text(), flags=re.MULTILINE)
    assert found
    session, driver = (native_file(name) for name in NEEDED)
    done = run(programs["plain"], "real", session, driver, found[1])
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("supervisor handed over slot 5 with 1 blocks at granule 0", "slot 5 with 17 blocks", "fewer than"):
        assert said in done.stderr
