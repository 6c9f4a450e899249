"""docs/defects.json, its page, and that the test which shows each defect is there."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import track_record

ROOT = Path(__file__).resolve().parent.parent
ENTRY = {
    "date": "2026-11-29",
    "found": "a review",
    "harm": "crash",
    "what": "It ended.",
    "mended": "0123abc",
    "shown": "tests/test_rules.py::test_links_in_documents_lead_somewhere",
}


def test_the_page_is_what_the_file_says() -> None:
    assert track_record.PAGE.read_text() == track_record.page(track_record.read())


@pytest.mark.parametrize("shown", sorted({defect.shown for defect in track_record.read()}))
def test_each_reproducer_is_there(shown: str) -> None:
    path, _, name = shown.partition("::")
    function, _, case = name.rstrip("]").partition("[")
    text = (ROOT / path).read_text()
    assert function in {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert not case or f'"{case}"' in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"harm": "bad"}, "entry 2: harm 'bad' is none of"),
        ({"mended": "soon"}, "no commit"),
        ({"shown": "tests/test_rules.py"}, "no test"),
        ({"more": ""}, "fields"),
        ({"what": "It ended"}, "no sentence"),
        ({"date": "yesterday"}, "isoformat"),
        ({"date": "2026-11-30"}, "entry 2: newer"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    path = tmp_path / "defects.json"
    path.write_text(json.dumps([ENTRY, ENTRY]))
    assert len(track_record.read(path)) == 2
    path.write_text(json.dumps([ENTRY, {**ENTRY, **changed}]))
    with pytest.raises(ValueError, match=words):
        track_record.read(path)
