"""Make docs/track-record.md of docs/defects.json, or say that they differ.

    tools/track_record.py --write   # the page anew
    tools/track_record.py           # ends with 1 where the page is not what the file says

A test of the suite does the second, and looks whether each reproducer is there. Entries are newest first; `harm` is one
of HARMS, and `shown` a test that failed before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "defects.json"
PAGE = ROOT / "docs" / "track-record.md"
HARMS = {
    "wrong data": "a program got wrong bytes without an error",
    "hidden": "what a program was to be told was not told",
    "crash": "a session, a worker or a context ended",
    "stands": "calls that did not come back",
    "taken": "a client took more than its share",
    "lost": "what is somebody else's was removed",
    "entry": "somebody came in, stayed, or kept others out, who should not",
    "refused": "a right program was refused",
}
HEAD = """\
# Track record

Defects of Tensor Fusion that did harm or could have, newest first. Each was mended, and each has a test that failed
before; with the simulated GPU it runs anywhere: `.venv/bin/python -m pytest` and the name in the last column.
`tools/track_record.py --write` makes this page of [defects.json](defects.json). What holds today, what does not, and
how to tell us of a hole: [SECURITY.md](../SECURITY.md).

"""


@dataclass(frozen=True)
class Defect:
    """One entry: when it was mended and how it was found, what it did, the commit, and the test that shows it."""

    date: datetime.date
    found: str
    harm: str
    what: str
    mended: str
    shown: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Defect:
        """Raises ValueError where a field is missing, unknown or not of its kind."""
        if set(entry) != set(cls.__dataclass_fields__):
            raise ValueError(f"fields {sorted(entry)} instead of {sorted(cls.__dataclass_fields__)}")
        one = cls(**{**entry, "date": datetime.date.fromisoformat(entry["date"])})
        if one.harm not in HARMS:
            raise ValueError(f"harm {one.harm!r} is none of {sorted(HARMS)}")
        if not re.fullmatch(r"[0-9a-f]{7}", one.mended):
            raise ValueError(f"mended {one.mended!r} is no commit of seven digits")
        if not re.fullmatch(r"tests/\w+(/\w+)*\.py::test_\w+(\[[\w-]+\])?", one.shown):
            raise ValueError(f"shown {one.shown!r} is no test")
        if not one.what.endswith("."):
            raise ValueError(f"{one.what!r} is no sentence")
        return one


def read(path: Path = SOURCE) -> list[Defect]:
    """All defects in the order of the file, which is newest first. Raises ValueError that names the entry."""
    found: list[Defect] = []
    for number, entry in enumerate(json.loads(path.read_text()), 1):
        try:
            found.append(Defect.of(entry))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, entry {number}: {error}") from error
        if len(found) > 1 and found[-1].date > found[-2].date:
            raise ValueError(f"{path.name}, entry {number}: newer than the one before")
    return found


def page(defects: list[Defect]) -> str:
    """The page's whole text."""
    counts = Counter(defect.harm for defect in defects)
    kinds = [f"| {harm} | {meaning} | {counts[harm]} |" for harm, meaning in HARMS.items()]
    rows = [f"| {one.date} | {one.what} | {one.harm} | {one.found} | {one.mended} | `{one.shown}` |" for one in defects]
    return HEAD + "\n".join(
        [
            "| harm | what it means | defects |",
            "| --- | --- | --- |",
            *kinds,
            "",
            "| mended | what it was | harm | found by | commit | test |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page")
    text = page(read())
    if parser.parse_args().write:
        PAGE.write_text(text)
        return 0
    if not PAGE.is_file() or PAGE.read_text() != text:
        print("docs/track-record.md is not what docs/defects.json says: tools/track_record.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
