"""Declarations of structs, held against the snapshot: every pointer, handle, address and union has a role.

What comes out is a list of members in the order in which they are checked and copied: plain ones, and groups of which
one case counts. The same list makes the client's checks and the session's, see emit_structs.py.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from .describe import StructLine, Tagged
from .layout import DescriptionError, Types, meant, refuse

WORDS = {
    "value": "", "zero": "", "none": "", "null": "", "device": "", "struct": "", "handle": "kind", "known": "kind",
    "context": "", "dev": "length", "placed": "length", "word": "length", "number": "", "structs": "struct length",
    "hand": "", "token": "",
}  # fmt: skip
OPTIONAL = ("handle",)
EXTENTS = {"area": 3, "box": 5}  # of native/wire/tp_extent.h, with their number of arguments


@dataclass(frozen=True)
class Member:
    """One field, by its path in C."""

    path: str
    role: str
    ctype: str
    kind: str = ""  # of a handle; of a nested or counted struct its name
    length: str = ""
    optional: bool = False
    refused: str = ""  # the error for a handle that is none, where it is not that of its kind
    when: tuple[str, str] | None = None  # the role holds where this field has this value; else it is a value


@dataclass(frozen=True)
class Group:
    """Members of which the value of a field says which count."""

    tag: str
    cases: tuple[tuple[str, tuple[Member, ...]], ...]
    refused: tuple[str, ...]  # values that answer not-supported; all others are invalid


@dataclass(frozen=True)
class Struct:
    """A struct with its members in order, the groups behind the plain ones."""

    name: str
    members: tuple[Member | Group, ...]

    def flat(self) -> list[Member]:
        """All members, those of groups too."""
        out: list[Member] = []
        for member in self.members:
            if isinstance(member, Member):
                out.append(member)
            else:
                out += [m for _, case in member.cases for m in case]
        return out


@dataclass(frozen=True)
class _Leaf:
    """A field as the snapshot has it."""

    path: str
    ctype: str
    array: bool
    union: bool = False
    fields: tuple[_Leaf, ...] = ()  # of a union, and of a struct that has no name outside


class Structs:
    """All declared structs, by name."""

    def __init__(self, lines: dict[str, StructLine], types: Types) -> None:
        self.types = types
        self.lines = lines
        types.declared = set(lines)
        self.by_name: dict[str, Struct] = {}
        for line in lines.values():
            self.by_name[line.name] = _Reader(self, line).read()

    def declared(self, ctype: str) -> bool:
        """Whether a type has a declaration, under this name or the one that it is a typedef of."""
        return ctype.removeprefix("const ").strip() in self.lines


class _Reader:
    """Makes one declaration a Struct."""

    def __init__(self, all_structs: Structs, line: StructLine) -> None:
        self.all, self.line, self.types = all_structs, line, all_structs.types
        self.paths: dict[str, _Leaf] = {}

    def error(self, reason: str) -> DescriptionError:
        return refuse(self.line.place, self.line.name, reason)

    def read(self) -> Struct:
        entry = self.types.layout(self.line.name)
        if entry is None:
            raise self.error("no struct of the snapshot")
        leaves = self._leaves(entry["fields"], "")
        self.paths = paths = {leaf.path: leaf for leaf in _all(leaves)}
        groups = {n: r for n, r in self.line.roles.items() if isinstance(r, Tagged)}
        plain = {n: r for n, r in self.line.roles.items() if isinstance(r, str)}
        for path in plain:
            if path not in paths:
                raise self.error(f"has no field {path!r}{meant(path, paths)}")
        grouped = {p for g in groups.values() for case in g.cases.values() for p in case} | set(groups)
        if entry["kind"] == "union" and not groups:
            raise self.error("is a union: say which field tells what counts, with tagged()")
        members: list[Member | Group] = []
        for leaf in leaves:
            if leaf.path in grouped or any(p.startswith(f"{leaf.path}.") for p in grouped):
                continue
            members += self._plain(leaf, plain)
        members += [self._group(name, group, paths) for name, group in groups.items()]
        # What the driver keeps is there before what shows of it; what is by hand comes last: it may look at the others.
        places = {"token": -1, "hand": 1}
        members.sort(key=lambda m: places.get(m.role, 0) if isinstance(m, Member) else 0)
        return Struct(self.line.name, tuple(members))

    def _plain(self, leaf: _Leaf, roles: dict[str, str]) -> list[Member]:
        """The members of one field: itself, or what is in it."""
        if leaf.fields and leaf.path not in roles:
            if leaf.union:
                return [self._union(leaf)]
            return [m for inner in leaf.fields for m in self._plain(inner, roles)]
        return [self._member(leaf, roles.get(leaf.path, ""))]

    def _union(self, leaf: _Leaf) -> Member:
        """A union of plain values is copied by its largest member."""
        for inner in leaf.fields:
            if inner.fields or self._why_not_plain(inner):
                raise self.error(f"{leaf.path or 'its union'} holds more than values: say what counts, with tagged()")
        largest = max(leaf.fields, key=lambda inner: self.types.size(inner.ctype))
        return Member(largest.path, "array" if largest.array else "value", largest.ctype)

    def _why_not_plain(self, leaf: _Leaf) -> str:
        """Why a field cannot be copied as it is, or nothing."""
        if leaf.ctype.endswith("*") or "(" in leaf.ctype or self.types.is_pointer(leaf.ctype):
            if leaf.ctype in self.types.by_ctype:
                return "a handle"
            return "a pointer"
        if leaf.ctype in self.types.by_ctype:
            return "a handle"
        if leaf.ctype == "CUdeviceptr":
            return "an address of the device"
        if leaf.ctype == "CUdevice":
            return "a device"
        if self.all.declared(leaf.ctype):
            return "a struct with a declaration"
        entry = self.types.layout(leaf.ctype)
        if entry is None:
            return ""
        if entry["kind"] == "union" or any(
            self._why_not_plain(x) for x in _all(self._leaves(entry["fields"], "")) if not x.fields
        ):
            return "a struct that is not made of values alone"
        return ""

    def _member(self, leaf: _Leaf, text: str) -> Member:
        role, _, condition = text.partition(" if ")
        word, _, arg = role.partition(" ")
        optional = word.endswith("?")
        word = word.removesuffix("?") or "value"
        if word not in WORDS:
            raise self.error(f"no role of a field is called {word!r}, as {leaf.path} has it{meant(word, WORDS)}")
        if optional and word not in OPTIONAL:
            raise self.error(f"{leaf.path} cannot be {word!r} and optional")
        why = self._why_not_plain(leaf)
        if word == "value" and why:
            raise self.error(f"{leaf.path} is {why}: say what it stands for")
        arg, _, refused = (part.strip() for part in f" {arg}".partition(" or "))
        if refused and word not in ("handle", "token"):
            raise self.error(f"{leaf.path} is {word!r}, for which no error can be said")
        if word == "token" and (not leaf.array or not refused):
            raise self.error(f"{leaf.path} holds a token: that is an array of bytes, with an error for a wrong one")
        kind, length = self._argument(leaf, word, arg)
        when = None
        if condition:
            field, _, value = (part.strip() for part in condition.partition("=="))
            when = (self._prefix(leaf) + field, value)
        if word == "value" and leaf.array:
            word = "array"
        return Member(leaf.path, word, leaf.ctype, kind, length, optional, refused, when)

    @staticmethod
    def _prefix(leaf: _Leaf) -> str:
        return leaf.path.rpartition(".")[0] + "." if "." in leaf.path else ""

    def _argument(self, leaf: _Leaf, word: str, arg: str) -> tuple[str, str]:
        """Kind and length of a role, checked against the field's type."""
        pointee = leaf.ctype.removesuffix("*").removeprefix("const ").strip()
        kind, _, rest = arg.partition(" ")
        if bool(arg) != bool(WORDS[word]):
            need = f"a {WORDS[word].replace(' ', ' and a ')}" if WORDS[word] else "nothing"
            raise self.error(f"{leaf.path} needs {need} behind {word!r}, not {arg!r}")
        if word in ("handle", "known"):
            if kind not in self.types.kinds:
                known = meant(kind, self.types.kinds)
                raise self.error(f"no kind of handle is called {kind!r}, as {leaf.path} has it{known}")
            if leaf.ctype != self.types.kinds[kind].ctype:
                raise self.error(f"{leaf.path} is {leaf.ctype}, no {self.types.kinds[kind].ctype}")
            return kind, ""
        if word == "context" and leaf.ctype != "CUcontext":
            raise self.error(f"{leaf.path} is {leaf.ctype}, no CUcontext")
        if word in ("dev", "placed", "word"):
            if self.types.size(leaf.ctype) != 8:
                raise self.error(f"{leaf.path} is {leaf.ctype}, no address")
            return "", self._expression(leaf, arg)
        if word == "struct":
            if not self.all.declared(leaf.ctype):
                raise self.error(f"{leaf.path} is {leaf.ctype}, which has no declaration")
            return leaf.ctype, ""
        if word == "structs":
            if kind != pointee or not self.all.declared(kind):
                raise self.error(f"{leaf.path} is {leaf.ctype}, no list of a declared {kind}")
            return kind, self._expression(leaf, rest)
        return "", ""

    def _expression(self, leaf: _Leaf, text: str) -> str:
        """C for a length, with "@" before each field; sums and products are formed without overflow by tp_extent.h."""
        try:
            return self._formed(leaf, text, ast.parse(text, mode="eval").body)
        except SyntaxError:
            raise self.error(f"the length {text!r} of {leaf.path} is no expression") from None

    def _formed(self, leaf: _Leaf, text: str, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return str(node.value)
        if isinstance(node, ast.Name):
            path = self._prefix(leaf) + node.id
            if path not in self.paths:
                raise self.error(f"the length {text!r} of {leaf.path} has no field {path!r}{meant(path, self.paths)}")
            return f"(uint64_t)@{path}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            name, parts = "plus" if isinstance(node.op, ast.Add) else "times", [node.left, node.right]
        elif isinstance(node, ast.Call) and EXTENTS.get(ast.unparse(node.func)) == len(node.args):
            name, parts = ast.unparse(node.func), node.args
        else:
            raise self.error(f"the length {text!r} of {leaf.path} is no sum, product or extent of {list(EXTENTS)}")
        return f"tp_{name}({', '.join(self._formed(leaf, text, part) for part in parts)})"

    def _group(self, name: str, group: Tagged, paths: dict[str, _Leaf]) -> Group:
        tag = paths.get(group.field)
        if tag is None:
            raise self.error(f"{name} is told by {group.field!r}, which is no field{meant(group.field, paths)}")
        values = self.types.enumerators(tag.ctype)
        if not values:
            raise self.error(f"{name} is told by {group.field}, whose type {tag.ctype} is no enumeration")
        refused = [v for v in values if v not in group.cases] if group.refuse == ("*",) else list(group.refuse)
        for value in [*group.cases, *refused]:
            if value not in values:
                raise self.error(f"{tag.ctype} has no {value!r}{meant(value, values)}")
        missing = [v for v in values if v not in group.cases and v not in refused]
        if missing:
            raise self.error(f"{name} says nothing of {missing[0]}: name what counts then, or refuse it")
        cases = []
        for value, roles in group.cases.items():
            members: list[Member] = []
            roots = sorted({self._root(path, paths) for path in roles}, key=list(paths).index)
            for root in roots:
                inside = {p: r for p, r in roles.items() if p == root or p.startswith(f"{root}.")}
                members += self._plain(paths[root], {p: r for p, r in inside.items() if r})
            cases.append((value, tuple(members)))
        return Group(group.field, tuple(cases), tuple(refused))

    def _root(self, path: str, paths: dict[str, _Leaf]) -> str:
        """The member of the union that a path lies in: the outermost one that has fields."""
        if path not in paths:
            raise self.error(f"has no field {path!r}{meant(path, paths)}")
        parts = path.split(".")
        for end in range(1, len(parts)):
            leaf = paths.get(".".join(parts[:end]))
            if leaf and not leaf.union:
                return leaf.path
        return path

    def _leaves(self, fields: list[dict[str, Any]], prefix: str) -> list[_Leaf]:
        """Fields with those of unions and of unnamed structs in them."""
        out = []
        for item in fields:
            path = f"{prefix}{item['name']}"
            if "inline" in item:
                inner = f"{path}." if item["name"] else prefix
                union = item["inline"].startswith("union")
                inside = tuple(self._leaves(item["fields"], inner))
                out.append(_Leaf(path if item["name"] else "", item["inline"], bool(item["dims"]), union, inside))
                continue
            text = re.sub(rf"\b{re.escape(item['name'])}\b(\[\d+\])*$", "", item["type"]).strip()
            entry = self.types.layout(text)
            union = entry is not None and entry["kind"] == "union" and not self.all.declared(text)
            inside = tuple(self._leaves(entry["fields"], f"{path}.")) if entry and union else ()
            out.append(_Leaf(path, text, item["type"].endswith("]"), union, inside))
        return out


def _all(leaves: list[_Leaf] | tuple[_Leaf, ...]) -> list[_Leaf]:
    out: list[_Leaf] = []
    for leaf in leaves:
        if leaf.path:
            out.append(leaf)
        out += _all(leaf.fields)
    return out
