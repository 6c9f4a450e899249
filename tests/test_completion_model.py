"""The models of completion and of what is held back (completion.pml, held.pml), explored by spin: every interleaving.

Without the Debian package `spin` this is skipped, unless `TF_TEST_SPIN=required`, as in CI.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_ring_model import errors, explore
from test_ring_model import spin as spin  # the fixture
from test_transport import ROOT

MODEL = ROOT / "tests/native/completion.pml"
HELD = ROOT / "tests/native/held.pml"


def test_completion(spin: str, tmp_path: Path) -> None:
    """Whoever learns that something is complete has all that belongs to it, and everything ends."""
    said = explore(spin, tmp_path, model=MODEL)
    assert errors(said) == 0, said
    states = re.search(r"(\d+) states, stored", said)
    assert states and int(states[1]) > 1_000_000, said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("NO_HOLD", r"present\["),
        ("NO_LEAVE", r"present\["),
        ("HOLD_NEWS", "assertion violated noticed"),
        ("WORD_FIRST", "assertion violated noticed"),
        ("EARLY_UPLOAD", r"\(staged==2\)"),
        ("BLOCKING", "invalid end state"),
    ],
)
def test_model_misses_what_is_changed(spin: str, tmp_path: Path, changed: str, message: str) -> None:
    """Each rule is needed, and the model can see that it is."""
    said = explore(spin, tmp_path, f"-D{changed}", model=MODEL, whole=False)
    assert errors(said) == 1 and re.search(message, said), said


def test_held_back(spin: str, tmp_path: Path) -> None:
    """What lets a stream go on is never behind what is held back for it, and that is bounded."""
    said = explore(spin, tmp_path, model=HELD)
    assert errors(said) == 0, said
    states = re.search(r"(\d+) states, stored", said)
    assert states and int(states[1]) > 1_000_000, said


@pytest.mark.parametrize("changed", ["NO_ASK", "URGENT_ASKS", "URGENT_WAITS", "SOON", "SHUT"])
def test_model_of_held_misses_what_is_changed(spin: str, tmp_path: Path, changed: str) -> None:
    """Each rule is needed, and the model can see that it is."""
    said = explore(spin, tmp_path, f"-D{changed}", model=HELD, whole=False)
    assert errors(said) == 1 and "invalid end state" in said, said
