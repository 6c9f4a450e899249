"""The model of the ring and its bells (tests/native/ring.pml), checked over every interleaving by spin.

Without the Debian package `spin` this is skipped, unless `TF_TEST_SPIN=required`, as in CI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_transport import ROOT, compiler

MODEL = ROOT / "tests/native/ring.pml"


@pytest.fixture(scope="module")
def spin() -> str:
    found = shutil.which("spin")
    if not found and os.environ.get("TF_TEST_SPIN") == "required":
        pytest.fail("TF_TEST_SPIN=required, but spin is not installed: apt-get install spin")
    if not found:
        pytest.skip("spin is not installed")
    return found


def explore(
    spin: str, folder: Path, *defines: str, progress: bool = False, model: Path = MODEL, whole: bool = True
) -> str:
    """What the checker says after the whole state space, or at the first violation.

    Where that is found at once, to optimise the checker takes longer than it saves.
    """
    subprocess.run([spin, *defines, "-a", model], cwd=folder, check=True, capture_output=True, timeout=60)
    kind = "-DNP" if progress else "-DSAFETY"
    subprocess.run(
        [*compiler(), "-O2" if whole else "-O0", "-w", kind, "-DMEMLIM=3000", "-o", "pan", "pan.c"],
        cwd=folder,
        check=True,
    )
    command = ["./pan", "-m100000", "-n", *(["-l"] if progress else [])]
    said = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=110).stdout
    # Of a search that was cut short the errors do not count.
    assert "max search depth too small" not in said and "out of memory" not in said, said
    return said


def errors(said: str) -> int:
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1])


@pytest.mark.parametrize("cells", [2, 3, 4, 8])
def test_ring(spin: str, tmp_path: Path, cells: int) -> None:
    """No lost wake-up, no overwrite, in order and exactly once, everything published is read; either side may die."""
    # The bigger rings have shorter store buffers, or their states were too many.
    said = explore(spin, tmp_path, f"-DN={cells}", *(["-DBUFFER=2"] if cells > 2 else []))
    assert errors(said) == 0, said
    states = re.search(r"(\d+) states, stored", said)
    assert states and int(states[1]) > 100_000, said


def test_survivor_ends(spin: str, tmp_path: Path) -> None:
    """Nobody goes round for ever without progress, whoever dies when."""
    said = explore(spin, tmp_path, "-DN=2", progress=True)
    assert errors(said) == 0, said


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("NO_RING_FENCE", "invalid end state"),
        ("NO_ARM_FENCE", "invalid end state"),
        ("NO_ROOM_RING", "invalid end state"),
        ("NO_NAP_FENCE", "invalid end state"),
        ("NO_NAP_LOOK", "invalid end state"),
        ("NO_CALL_RING", "invalid end state"),
        ("NO_FULL_RING", "invalid end state"),
        ("NO_LAST_LOOK", "assertion violated"),
        ("EARLY_HEAD", "assertion violated"),
        ("EARLY_TAIL", "assertion violated"),
        ("NO_LIFE", "non-progress cycle"),
    ],
)
def test_model_misses_what_is_taken_away(spin: str, tmp_path: Path, without: str, message: str) -> None:
    """Each rule is needed, and the model can see that it is."""
    said = explore(spin, tmp_path, "-DN=2", f"-D{without}", progress=without == "NO_LIFE", whole=False)
    assert errors(said) == 1 and message in said, said
