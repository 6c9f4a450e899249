"""The worker as one file: what PyInstaller starts, on a host without our Python environment (tools/release.py).

The file unpacks itself into a folder of its own among the temporary files and runs there, as the child of a process
that waits to take the folder away. So this ends when that one is killed, and hands on no search path into the folder.
"""

from __future__ import annotations

import os
import signal
import sys

from tensor_fusion.abi import end_with_parent
from tensor_fusion.entry import worker


def restore(name: str) -> None:
    """PyInstaller's starter sets LD_LIBRARY_PATH for itself and keeps what was there."""
    before = os.environ.pop(f"{name}_ORIG", None)
    if before is not None:
        os.environ[name] = before
    else:
        os.environ.pop(name, None)


if __name__ == "__main__":
    restore("LD_LIBRARY_PATH")
    end_with_parent(signal.SIGTERM)
    sys.exit(worker())
