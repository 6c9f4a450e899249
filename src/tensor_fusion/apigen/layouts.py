"""What two builds compare before they use an operation between them: a hash over what makes its bytes differ.

That is the name, the fields in their order with their forms and sizes, the structs in them, the kinds of handle,
whether it completes something, its `edition`, the structs of native/wire that it `carries`, and all of this of what
it `brings`. A check that is stricter than before is no other layout: the same bytes mean the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .fields import Field
from .layout import Kind, meant, refuse
from .model import Model, Op, padding
from .structs import Group, Member, Struct

# native/wire/tp_layouts.h, enum tp_layout_flags.
NEEDED, OPTIONAL, MESSAGE, HANDLE = 1, 2, 4, 8
# Roles that differ in what is looked at, of the same bytes.
_VALUES = ("value", "dev", "word", "bits", "most")
_HANDLES = ("handle", "name")
_STRUCTS = ("struct", "structs", "outstruct", "outkept")
_STRUCT = r"struct {name} \{{(.*?)\n\}};"
_DEFINE = re.compile(r"^#define (\w+) (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """One row of the list that a session shows: an operation, a message, or a kind of handle."""

    name: str
    number: int
    flags: int
    hash: int

    @property
    def name_hash(self) -> int:
        return _short(self.name)


def _short(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def layouts(model: Model) -> list[Layout]:
    """The whole list: operations and messages by number, then kinds of handle by number."""
    return [*_Reader(model).rows(), *(_of_kind(kind) for kind in model.kinds)]


def schema(rows: list[Layout]) -> bytes:
    """First 16 bytes of a SHA-256 over everything that both sides compare."""
    text = "".join(f"{row.number} {row.name} {row.flags} {row.hash:016x}\n" for row in rows)
    return hashlib.sha256(text.encode()).digest()[:16]


def _of_kind(kind: Kind) -> Layout:
    return Layout(f"handle {kind.name}", kind.number, HANDLE, _short(f"{kind.number}"))


class _Reader:
    """Writes down what the bytes of each operation are."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.ops = {op.name: op for op in model.frames}
        self.brought = {name for op in model.frames for name in op.line.brings.split()}
        self.carried: Mapping[str, str] = _wire_structs(model.wire)

    def rows(self) -> list[Layout]:
        return [Layout(op.name, op.number, self._flags(op), _short(self._text(op))) for op in self.model.frames]

    def _flags(self, op: Op) -> int:
        flags = NEEDED if op.line.needed else 0
        if op.kind == "message":
            flags |= MESSAGE | (OPTIONAL if op.line.optional else 0)
            if not op.line.optional and op.name not in self.brought:
                flags |= NEEDED  # it may come whatever the client does
        return flags

    def _text(self, op: Op) -> str:
        line = op.line
        words = f"{op.name} edition {line.edition}{' completes' if line.completes else ''}"
        parts = [words, *self._fields("in", op.inputs()), *self._fields("out", op.outputs())]
        for name in line.carries.split():
            if name not in self.carried:
                reason = f"carries {name!r}, which is no struct of native/wire{meant(name, self.carried)}"
                raise refuse(line.place, line.name, reason)
            parts.append(f"carries {self.carried[name]}")
        for name in line.brings.split():
            other = self.ops.get(name)
            if other is None:
                reason = f"brings {name!r}, which is no operation and no message{meant(name, self.ops)}"
                raise refuse(line.place, line.name, reason)
            if other.line.brings:
                raise refuse(line.place, line.name, f"brings {name!r}, which brings something itself: name that here")
            parts.append(f"brings {self._text(other)}")
        return "\n".join(parts)

    def _fields(self, way: str, fields: list[Field]) -> list[str]:
        lines = [f"{way} {padding(fields)}"] if fields else []
        for item in fields:
            role = "value" if item.role in _VALUES else "handle" if item.role in _HANDLES else item.role
            length = "" if item.role in _VALUES else item.length
            words = [item.name, role, str(item.size), self._kind(item.kind), length]
            words += ["optional" * item.optional, item.by]
            if not item.is_handle:
                words.append(self._type(item.ctype))
            if item.role in _STRUCTS:
                words.append(self._struct(self.model.structs[item.ctype.removeprefix("const ").strip()]))
            lines.append(" | ".join(words))
        return lines

    def _kind(self, name: str) -> str:
        return f"{name} {self.model.types.kinds[name].number}" if name else ""

    def _type(self, ctype: str) -> str:
        """A type with its size; a record of api/ with its fields."""
        for record in self.model.records:
            if ctype == f"struct tpg_{record.name}":
                return f"{ctype} {record.fields}"
        return f"{ctype} {self.model.types.size(ctype)}"

    def _struct(self, struct: Struct) -> str:
        members = [self._group(m) if isinstance(m, Group) else self._member(m) for m in struct.members]
        return f"{struct.name} {self.model.types.size(struct.name)} {{{'; '.join(members)}}}"

    def _group(self, group: Group) -> str:
        cases = [f"{value}: {', '.join(self._member(m) for m in members)}" for value, members in group.cases]
        return f"by {group.tag} ({'; '.join(cases)})"

    def _member(self, member: Member) -> str:
        role = "value" if member.role in ("word", "placed", "dev", "number") else member.role
        words = [member.path, role, self._type(member.ctype), member.length if role == "structs" else ""]
        words += ["optional" * member.optional, " is ".join(member.when or ())]
        if member.role in ("struct", "structs"):
            words.append(self._struct(self.model.structs[member.kind]))
        else:
            words.append(self._kind(member.kind))
        return " ".join(filter(None, words))


def _wire_structs(headers: list[Path]) -> dict[str, str]:
    """The structs that the headers of native/wire write down, without comments, and with the numbers that they name."""
    found: dict[str, str] = {}
    for header in headers:
        text = _COMMENT.sub(" ", header.read_text())
        numbers = dict(_DEFINE.findall(text))
        for name in re.findall(r"^struct (\w+) \{$", text, re.MULTILINE):
            match = re.search(_STRUCT.format(name=name), text, re.DOTALL)
            if match:
                words = [numbers.get(word, word) for word in re.findall(r"\w+|[^\w\s]", match[1])]
                found[name] = f"{name} {{{' '.join(words)}}}"
    return found
