"""What tools/release.py says while it works; that it makes what it should, CI sees."""

from __future__ import annotations

import re
import sys
import time
import zipfile
from pathlib import Path

import pytest
import release

BUILD = """
import time
print("[1/2] CMake tries the compiler", flush=True)
for number in (1, 50, 100):
    time.sleep(0.1)
    print(f"[{number}/100] Building C object", flush=True)
    print("a warning of the compiler", flush=True)
"""


def test_the_time_that_is_left_is_told_once_something_was_compiled(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(release, "SAID_EVERY", 0.0)
    told = release.Told()
    fetching, compiling, *rest = release.PARTS
    with told.shown():
        told.part(fetching)
        said = release.run(sys.executable, "-c", BUILD, told=told)
        for name in rest:
            told.part(name)
    assert said.count("a warning of the compiler") == 3  # all of it is there, for who wants to see why it failed
    output, errors = capfd.readouterr()
    assert output == ""
    lines = errors.splitlines()
    assert lines[:2] == [f"release: {fetching}", f"release: {compiling}"]
    left = re.compile(r"release: (.*), about (?:\d+ min)? ?(?:\d+ s)? left")
    parts = [f"{compiling}, {number} of 100" for number in (1, 50, 100)] + rest
    assert [found[1] for line in lines[2:] if (found := left.fullmatch(line))] == parts


def test_what_a_failed_command_said_is_shown() -> None:
    with pytest.raises(SystemExit, match=r"failed with 3:\n.*what went wrong"):
        release.run(sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)", told=release.Told())


def test_what_a_checkout_s_shell_has_set_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("TF_NATIVE_DIR", "/nowhere")
    said = release.run(
        sys.executable, "-c", "import os; print('/nowhere' in os.environ.values(), os.environ['X'])", X="x"
    )
    assert said == "False x\n"


def test_the_client_s_archive_has_the_same_bytes_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "one.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in release.CLIENT:
            archive.writestr(f"tensor_fusion/_native/client/{name}.so.1", name * 1000)
    made = []
    for number, moment in enumerate(("1764460800", "1764460800", "1764460801")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", moment)
        out = tmp_path / str(number)
        out.mkdir(mode=0o700)
        release.client(wheel, "1.2", out)
        time.sleep(1.1)  # or a time of now would not show
        (archived,) = out.glob("*.tar.gz")
        made.append(archived.read_bytes())
    assert made[0] == made[1] != made[2]
