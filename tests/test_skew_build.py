"""A release that was really built from another description, as client and as worker of this one, over both transports.

test_skew.py asks the same of files in which only the list was changed; here the numbers are others, too, in all code.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from skew.build import GONE, build
from stack.harness import whole_stack
from test_skew import NOT_SUPPORTED, meet, run

pytestmark = [
    *whole_stack,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake"),
    pytest.mark.timeout(1800),  # the build of client and session, beside other tests
]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("release"))


@pytest.mark.parametrize("transport", ["native", "shmem"])
@pytest.mark.parametrize("side", ["worker", "client"])
def test_another_release(other: Path, transport: str, side: str) -> None:
    """One operation that only this build has, one of another layout, and all numbers moved by one."""
    with meet(transport, side, other) as env:
        results, sentences = run(env)
        assert {call: code for call, code in results.items() if code} == {
            GONE: NOT_SUPPORTED,
            "cuLaunchHostFunc": NOT_SUPPORTED,
        }
        assert len(sentences) == 2, sentences
        gone = "it is gone" if side == "client" else f"they do not have the same operation '{GONE}'"
        for words in (gone, "they do not have the same operation 'host_function'"):
            assert sum(words in line for line in sentences) == 1, sentences


def test_both_of_the_other_release(other: Path) -> None:
    """It works by itself: what differs above differs between the two."""
    with meet("native", "worker", other) as env:
        results, sentences = run({**env, "LD_LIBRARY_PATH": str(other / "client")})
        assert {call: code for call, code in results.items() if code} == {GONE: NOT_SUPPORTED}
        assert len(sentences) == 1 and "it is gone" in sentences[0]
