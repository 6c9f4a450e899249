"""Native files of another build, made from this one: other layouts in the list that is compared, so another schema.

The bytes that such a build sends are still those of this one. What is refused is not sent, so nothing notices.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

from stack.harness import ROOT

from skew.relay import Row, pack
from tensor_fusion.abi import Teleport, native_folder
from tensor_fusion.apigen.layouts import layouts
from tensor_fusion.apigen.model import load

TABLES = ("client/libteleport.so.1", "bin/tensor-fusion-session")


@functools.cache
def own_rows() -> list[Row]:
    return [Row(row.name_hash, row.hash, row.number, row.flags) for row in layouts(load(ROOT / "api"))]


def patched(folder: Path, edit: Callable[[list[Row]], list[Row]]) -> Path:
    """A copy of the native folder with the list as `edit` makes it of the same number of rows."""
    shutil.copytree(native_folder(), folder, symlinks=True)
    before, after = pack(own_rows()), pack(edit(own_rows()))
    assert len(before) == len(after)
    schema = Teleport().schema
    for name in TABLES:
        content = (folder / name).read_bytes()
        assert content.count(before) == 1 and content.count(schema) == 1
        other = bytes(value ^ 0xFF for value in schema)
        (folder / name).write_bytes(content.replace(before, after).replace(schema, other))
    return folder


def renamed(*hashes: int) -> Callable[[list[Row]], list[Row]]:
    """As if these were not there, and others were that nobody knows."""
    return lambda rows: [Row(row.name ^ 1 if row.name in hashes else row.name, *_rest(row)) for row in rows]


def _rest(row: Row) -> tuple[int, int, int]:
    return row.layout, row.number, row.flags
