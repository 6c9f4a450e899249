"""Types of C as api/ and the snapshots know them: sizes, kinds of handle, and the error for a line that cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .snapshot import Snapshot

SCALARS = {
    "char": 1, "signed char": 1, "unsigned char": 1, "uint8_t": 1,
    "short": 2, "unsigned short": 2, "uint16_t": 2,
    "int": 4, "unsigned int": 4, "uint32_t": 4, "int32_t": 4, "float": 4,
    "long long": 8, "unsigned long long": 8, "size_t": 8, "uint64_t": 8, "int64_t": 8, "long": 8, "unsigned long": 8,
    "double": 8,
}  # fmt: skip


class DescriptionError(Exception):
    """A line of api/ that cannot be: where it stands, the function, and what is wrong with it."""


def refuse(place: str, name: str, reason: str) -> DescriptionError:
    """The error for the line of `name` at `place` (file:line), told by the last two folders of the file's path."""
    file, _, number = place.rpartition(":")
    short = "/".join(Path(file).parts[-3:])
    return DescriptionError(f"{short}:{number}: {name}: {reason}")


def meant(word: str, known: Iterable[str]) -> str:
    """The question behind a sentence about a word that is none, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Kind:
    """A kind of handle."""

    name: str
    number: int
    ctype: str
    also: tuple[str, ...]
    refused: str  # the error for a handle that is none
    most: str = ""  # how many a client may hold, as C, if not as many as there are handles


class Types:
    """Sizes of C types and kinds of handles."""

    def __init__(self, snapshots: list[Snapshot], kinds: list[Kind]) -> None:
        self.kinds = {k.name: k for k in kinds}
        self.by_ctype = {k.ctype: k for k in kinds}
        self.structs: set[str] = set()
        self.declared: set[str] = set()  # structs that api/ says the fields of
        self._entries: dict[str, dict[str, Any]] = {}
        self._aliases: dict[str, str] = {}
        self._sizes = dict(SCALARS)
        for snapshot in snapshots:
            for entry in snapshot.types:
                self._learn(entry)

    def _learn(self, entry: dict[str, Any]) -> None:
        name = str(entry["name"])
        if entry["kind"] == "typedef" and str(entry["type"]).endswith(name):
            self._aliases[name] = str(entry["type"])[: -len(name)].strip()
        else:
            self._entries[name] = entry
        if entry["kind"] in ("struct", "union"):
            self._sizes[name] = int(str(entry["size"]))
            self.structs.add(name)
        elif entry["kind"] == "enum":
            self._sizes[name] = 4
        elif entry["kind"] == "typedef":
            text = str(entry["type"])
            base = text[: -len(name)].strip() if text.endswith(name) else ""
            if "*" in base:
                self._sizes[name] = 8
            elif base in self._sizes:
                self._sizes[name] = self._sizes[base]
                if base in self.structs:
                    self.structs.add(name)
            elif "(*" in text:
                self._sizes[name] = 8

    def learn(self, ctype: str, size: int) -> None:
        """A type of our own."""
        self._sizes[ctype] = size

    def base(self, ctype: str) -> str:
        """What a chain of typedefs ends in."""
        ctype = ctype.removeprefix("const ").strip()
        while ctype in self._aliases and ctype not in self._entries:
            ctype = self._aliases[ctype]
        return ctype

    def layout(self, ctype: str) -> dict[str, Any] | None:
        """The snapshot's entry of a struct or union, or None."""
        entry = self._entries.get(self.base(ctype))
        return entry if entry and entry["kind"] in ("struct", "union") else None

    def is_pointer(self, ctype: str) -> bool:
        """Whether a name stands for a pointer, to a function or an unknown struct."""
        return "*" in self.base(ctype) or "(" in str(self._entries.get(ctype, {}).get("type", ""))

    def enumerators(self, ctype: str) -> list[str]:
        """Names of an enumeration, without those that repeat a value or only end the list."""
        entry = self._entries.get(self.base(ctype))
        values = entry["values"] if entry and entry["kind"] == "enum" else []
        first: dict[int, str] = {}
        for name, value in values:
            if not name.endswith(("_MAX", "_INVALID")):
                first.setdefault(value, name)
        return list(first.values())

    def size(self, ctype: str) -> int:
        """Size in bytes, 0 when unknown."""
        ctype = ctype.removeprefix("const ").strip()
        return 8 if ctype.endswith("*") else self._sizes.get(ctype, 0)
