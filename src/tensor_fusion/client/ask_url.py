"""Ask the connection URL as the client does, in a process that can be ended: an operator may take minutes.

Prints JSON with the connection string, or with the sentence that says why there is none. While it waits, libteleport
says on standard error what for.
"""

from __future__ import annotations

import json
import sys

from tensor_fusion.abi import Teleport


def main(url: str) -> int:
    text, sentence = Teleport().fetch_connection(url)
    sys.stdout.write(json.dumps({"text": text, "sentence": sentence}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
