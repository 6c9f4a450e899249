"""The worker as one file: what PyInstaller's folder starts, on a host without our Python environment.

The starter in front of the folder (native/onefile, tools/release.py) has become this process. What it starts gets no
search path into the folder.
"""

from __future__ import annotations

import os
import sys

from tensor_fusion.entry import worker


def restore(name: str) -> None:
    """PyInstaller's program sets LD_LIBRARY_PATH for itself and keeps what was there."""
    before = os.environ.pop(f"{name}_ORIG", None)
    if before is not None:
        os.environ[name] = before
    else:
        os.environ.pop(name, None)


if __name__ == "__main__":
    restore("LD_LIBRARY_PATH")
    if sys.argv[1:2] == ["service"]:  # for who has no command tensor-fusion
        from tensor_fusion.worker.service import one_file

        sys.exit(one_file(sys.argv[0], sys.argv[2:]))
    sys.exit(worker())
