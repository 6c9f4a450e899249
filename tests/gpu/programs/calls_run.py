"""Single calls with good and bad arguments (tests/calls) on the driver of this environment, natively and remotely.

    python calls_run.py [--only PART_OF_A_NAME]

Prints one line for each call; the two texts must be equal. A call that crashes natively says so in its line, and then
any answer is right; `tests/calls/fuzz.py compare` groups what differs and knows that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calls.fuzz import all_cases, by_state, compile_calls


def library() -> str:
    """The file that the loader takes, as a process that opens it sees it."""
    code = "import ctypes; ctypes.CDLL('libcuda.so.1'); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return next(line.split()[-1] for line in maps.splitlines() if Path(line.split()[-1]).name.startswith("libcuda.so"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = by_state(compile_calls(Path(folder), "gcc"), "libcuda.so.1", all_cases(given.only))
    print("\n".join(lines))
    print(json.dumps({"digest": "", "metrics": {"calls": len(lines)}, "libraries": [library()]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
