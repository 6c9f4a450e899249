"""A client process that greets through a segment and then waits to be told what to do, or killed.

    python segment_client.py FILE GREETING-IN-HEX SECONDS [HEX-EDIT …]

It prints one JSON line: the outcome, and the welcome in hex. An edit is OFFSET=BYTES-IN-HEX, written into the mapped
file before greeting. A line on the standard input, or its end, ends it.
"""

from __future__ import annotations

import json
import mmap
import os
import sys

from tensor_fusion.abi import Teleport


def main() -> None:
    path, greeting, seconds, *edits = sys.argv[1:]
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 0)
    for edit in edits:
        at, content = edit.split("=")
        memory[int(at) : int(at) + len(content) // 2] = bytes.fromhex(content)
    outcome, welcome = Teleport().ask(memory, int(float(seconds) * 1000), bytes.fromhex(greeting))
    print(json.dumps({"outcome": outcome.name, "welcome": welcome.hex()}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
