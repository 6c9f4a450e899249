"""The description that the code was made from (schema.json), and bodies of frames decoded by it.

Bytes come from whoever made the capture: each length is bounded by what is there before it is used, and what is shown
of strings, bytes and arrays is bounded, too.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensor_fusion.abi import native_file
from tensor_fusion.config import UserError
from tensor_fusion.dump.damage import Damage

SHOWN_BYTES, SHOWN_ELEMENTS, SHOWN_TEXT = 16, 8, 64
_NUMBERS = {
    ("signed", 1): "<b", ("signed", 2): "<h", ("signed", 4): "<i", ("signed", 8): "<q",
    ("unsigned", 1): "<B", ("unsigned", 2): "<H", ("unsigned", 4): "<I", ("unsigned", 8): "<Q",
    ("real", 4): "<f", ("real", 8): "<d",
}  # fmt: skip
_VARIABLE = ("string", "bytes", "handles", "array")
_STREAMS = {0: "NULL", 1: "CU_STREAM_LEGACY", 2: "CU_STREAM_PER_THREAD"}


@dataclass(frozen=True)
class Operation:
    """One operation or message: rows are name, form, size and enum of a field."""

    name: str
    api: str
    rows: dict[str, list[list[Any]]]


class Schema:
    """schema.json of the installed package."""

    def __init__(self, path: Path | None = None) -> None:
        found = path or native_file("schema.json")
        try:
            raw = json.loads(found.read_text())
            self.hash = bytes.fromhex(raw["hash"])
            self.handles: dict[str, str] = raw["handles"]
            self.errors: dict[str, str] = raw["errors"]
            self.enums: dict[str, dict[str, str]] = raw["enums"]
            self._operations = {
                int(number): Operation(row["name"], row["api"], {"in": row["in"], "out": row["out"]})
                for number, row in raw["operations"].items()
            }
        except OSError as error:
            raise UserError(f"{found} cannot be read: {error.strerror}; install the package again.", 1) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{found} cannot be understood ({error!r}); install the package again.", 1) from error

    def operation(self, number: int, at: int) -> Operation:
        """By its number, which stands at `at`."""
        found = self._operations.get(number)
        if found is None:
            raise Damage(at, f"{number} is the number of no operation")
        return found

    def result(self, api: str, result: int) -> str:
        """As the trace has it."""
        name = self.errors.get(str(result)) if api == "cuda" else self.enums.get("nvmlReturn_t", {}).get(str(result))
        return f"{name} ({result})" if name else str(result)

    def arguments(self, rows: list[list[Any]], data: bytes, at: int) -> str:
        """The fields of a body that lies at `at`, as "name=value, …". Raises Damage."""
        body, texts, fixed = _Body(data, at), [], True
        for name, form, size, enum in rows:
            if form in _VARIABLE:
                if fixed:
                    body.pad()
                    fixed = False
                place = body.place
                texts.append(f"{name}={self._variable(form, size, body.variable(name), name, place)}")
            else:
                texts.append(f"{name}={self._value(name, form, size, enum, body.take(size, name))}")
        body.pad()
        if body.left:
            raise Damage(body.place, f"{body.left} bytes lie behind the last field")
        return ", ".join(texts)

    def _value(self, name: str, form: str, size: int, enum: str, data: bytes) -> str:
        number = int.from_bytes(data, "little")
        if form == "handle":
            return self._handle(number, special="stream" in name.lower())
        if form == "address":
            return hex(number) if number else "NULL"
        if form == "raw":
            return _shown(data)
        value = struct.unpack(_NUMBERS[form, size], data)[0]
        if form == "real":
            return f"{value:g}"
        named = self.enums.get(enum, {}).get(str(value))
        # What is as large as an address, or a handle in a field of another name, is easier to find in hexadecimal.
        return named or (hex(value) if value >= 1 << 32 else str(value))

    def _handle(self, value: int, *, special: bool = False) -> str:
        if value < 1 << 46:
            return (_STREAMS.get(value) if special else None) or (hex(value) if value else "NULL")
        kind = self.handles.get(str(value >> 36 & 0x3F), "?")
        return f"{kind} {value:#x}"

    def _variable(self, form: str, size: int, data: bytes, name: str, place: int) -> str:
        if form == "string":
            if data and data.find(0) != len(data) - 1:
                raise Damage(place, f"the string {name} does not end with its only NUL")
            return _quoted(data[:-1]) if data else "NULL"
        if form == "bytes":
            return _shown(data)
        if len(data) % size:
            raise Damage(place, f"{name} has {len(data)} bytes, which are no elements of {size}")
        elements = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)[:SHOWN_ELEMENTS]]
        shown = [self._handle(value) if form == "handles" else hex(value) for value in elements]
        return "[" + ", ".join(shown) + (", …" if len(data) > size * SHOWN_ELEMENTS else "") + "]"


class _Body:
    """Bytes of a frame behind its header."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._start, self._taken = data, at, 0

    @property
    def place(self) -> int:
        return self._start + self._taken

    @property
    def left(self) -> int:
        return len(self._data) - self._taken

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise Damage(self.place, f"{what} needs {size} bytes, and the frame has {self.left} more")
        self._taken += size
        return self._data[self._taken - size : self._taken]

    def pad(self) -> None:
        self.take(-self._taken % 8, "the padding")

    def variable(self, what: str) -> bytes:
        data = self.take(int.from_bytes(self.take(8, f"the length of {what}"), "little"), what)
        self.pad()
        return data


def _shown(data: bytes) -> str:
    more = "…" if len(data) > SHOWN_BYTES else ""
    return f"{len(data)} byte{'' if len(data) == 1 else 's'} {data[:SHOWN_BYTES].hex(' ')}{more}" if data else "none"


def _quoted(data: bytes) -> str:
    """On one line and of plain characters, whatever it holds."""
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in data[:SHOWN_TEXT])
    return json.dumps(text) + ("..." if len(data) > SHOWN_TEXT else "")
