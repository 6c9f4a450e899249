"""Random programs (tests/random_programs) on the driver of this environment, natively and remotely.

    python random_programs_run.py [--seconds 60] [--seed 1] [--features NAMES]

Both sides make the same programs, of what the stack serves; how many depends on their speed. The digest says that all
were right, or what was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from random_programs.run import Driver, compile_interpreter, features_of, run_for


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--features")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(compile_interpreter(Path(folder), "gcc"))
        outcome = run_for(driver, given.seconds, given.seed, features_of(given.features))
        library = driver.opened
    print(outcome.sentence())
    if outcome.failure:
        print(outcome.failure, outcome.shrunk, sep="\n")
    metrics = {"programs": outcome.programs, "operations": outcome.operations}
    digest = outcome.failure or "right"
    print(json.dumps({"digest": digest, "metrics": metrics, "libraries": [library]}))
    return bool(outcome.failure)


if __name__ == "__main__":
    sys.exit(main())
