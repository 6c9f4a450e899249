"""The real worker command with two stand-ins: fake_session.py as the session, and Python for libteleport.

With FAKE_TELEPORT=PATH the library there is used instead of the second one: shared memory is native code.
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tensor_fusion.abi import SegmentCalls
from tensor_fusion.worker import driver, main, shmem, tcp

SCHEMA = bytes(range(16))


class FakeTeleport:
    schema = SCHEMA

    def segment(self, memory: mmap.mmap, owners: mmap.mmap) -> SegmentCalls:
        raise NotImplementedError("shared memory needs the real libteleport: set FAKE_TELEPORT")

    def boot_id(self) -> str:
        return ""


def native_folder(folder: Path) -> None:
    """Lay out a folder of native files in which the session is the fake one."""
    for relative in ("bin", "lib", "client"):
        (folder / relative).mkdir()
    session = folder / "bin" / "tensor-fusion-session"
    script = Path(__file__).with_name("fake_session.py")
    session.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{script}" "$@"\n')
    session.chmod(session.stat().st_mode | stat.S_IXUSR)
    (folder / "lib" / "libtf-simgpu.so").touch()
    teleport = folder / "client" / "libteleport.so.1"
    if real := os.environ.get("FAKE_TELEPORT"):
        teleport.symlink_to(real)
    else:
        teleport.touch()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        native_folder(Path(name))
        os.environ["TF_NATIVE_DIR"] = name
        if "FAKE_TELEPORT" not in os.environ:
            setattr(main, "Teleport", FakeTeleport)  # noqa: B010 - the command has no parameter for it
        if "FAKE_LONGEST_PAUSE" in os.environ:
            shmem.LONGEST_PAUSE = float(os.environ["FAKE_LONGEST_PAUSE"])
        for name in ("GREETING_DEADLINE", "TURN_DEADLINE"):
            setattr(tcp, name, float(os.environ.get(f"FAKE_{name}", getattr(tcp, name))))
        if "FAKE_REAL" in os.environ:  # a driver that is not simulated
            choose = driver.choose_driver
            setattr(main, "choose_driver", lambda gpu, environ: replace(choose(gpu, environ), simulated=False))  # noqa: B010
        code = main.main()
    sys.exit(code)
