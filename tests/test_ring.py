"""The ring and the segment in C, built from source and run: plain, under the address and the thread sanitizer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from test_transport import NATIVE, ROOT, clean_environment, compiler

SOURCES = [
    *sorted((ROOT / "tests/native").glob("test_ring*.c")),
    NATIVE / "ring/ring.c",
    NATIVE / "ring/segment.c",
    *sorted((NATIVE / "base").glob("*.c")),
]
KINDS = {
    "plain": ["-Werror"],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    # It does not know fences, of which it warns. The pairs of release and acquire are enough for it.
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
}
# Two threads on one ring: fewer frames where each costs more.
FRAMES = {"plain": "10000000", "address": "1000000", "thread": "300000"}
CASES = (
    "every_size_at_every_place",
    "wrap_at_the_exact_end",
    "full_and_empty",
    "nothing_is_seen_before_it_is_published",
    "hostile_head",
    "hostile_tail",
    "a_million_lies",
    "hammer_with_a_common_kernel",
    "hammer_without_a_common_kernel",
    "limits",
    "naps_grow",
    "idleness_costs_little",
    "wakes_at_once",
    "looks_again_without_a_common_kernel",
    "wakes_another_process",
    "a_bell_that_lies",
    "who_waits_ends_a_nap",
    "naps_grow_with_the_stream",
    "format",
    "life_of_a_client",
    "granules_outlive_the_session",
    "a_guest_started_anew",
    "dead_claimers_are_freed",
    "a_life_word_that_was_overwritten",
    "refused",
    "a_held_slot_greets_for_nothing",
    "states_that_cannot_be",
    "header_is_restored",
    "clients_until_it_is_full",
    "blocks_grow_with_the_arena",
    "waiting_costs_little",
    "arena_edges",
    "arena_under_threads",
)
# About time and other processes, not about memory.
PLAIN_ONLY = {"naps_grow", "idleness_costs_little", "waiting_costs_little", "dead_claimers_are_freed"}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind; a kind that this compiler cannot build is left out."""
    folder = tmp_path_factory.mktemp("ring")
    built = {}
    for kind, flags in KINDS.items():
        out = folder / kind
        command = [
            *compiler(), "-std=c17", "-D_GNU_SOURCE", "-O2", "-g1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow",
            "-Wstrict-prototypes", "-Wno-sign-conversion", "-fno-strict-aliasing", *flags,
            *(f"-I{NATIVE / name}" for name in ("base", "wire", "ring")), *map(str, SOURCES), "-lpthread",
            "-o", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and runs(out):
            built[kind] = out
        else:
            assert kind != "plain", done.stderr
    return built


def runs(program: Path) -> bool:
    """The thread sanitizer does not start under every kernel's address layout."""
    return subprocess.run([program, "--list"], capture_output=True, check=False).returncode == 0


def test_every_case_is_run_here(programs: dict[str, Path]) -> None:
    listed = subprocess.run([programs["plain"], "--list"], capture_output=True, text=True, check=True)
    assert sorted(listed.stdout.split()) == sorted(CASES)


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case in CASES for kind in KINDS if kind == "plain" or case not in PLAIN_ONLY]
)
def test_native(programs: dict[str, Path], case: str, kind: str) -> None:
    if kind not in programs:
        pytest.skip(f"this compiler has no {kind} sanitizer")
    done = subprocess.run(
        [programs[kind], case],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=clean_environment(
            TEST_RING_FRAMES=FRAMES[kind],
            # Cases end with what they forked and locked still there.
            ASAN_OPTIONS="detect_leaks=0",
            TSAN_OPTIONS="report_mutex_bugs=0",
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_fences_stand_where_the_model_has_them() -> None:
    """No run here can show a missing fence on every machine; the model (ring.pml) does, and this ties the two."""
    text = (NATIVE / "ring/tp_ring.h").read_text()
    for function, before, after in (
        ("tp_bell_arm_for", "atomic_store_explicit(&bell->sleeps, what", "}"),
        ("tp_bell_ring", "{", "atomic_load_explicit(&bell->sleeps"),
        ("tp_bell_ring_sleeper", "{", "atomic_load_explicit(&bell->sleeps"),
    ):
        body = re.search(rf"static inline void {function}\(.*?\n}}", text, flags=re.DOTALL)
        assert body
        start = body[0].index(before)
        assert "atomic_thread_fence(memory_order_seq_cst);" in body[0][start : body[0].index(after, start + 1)]
