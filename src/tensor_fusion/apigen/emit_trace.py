"""The trace: how each argument of each exported function is shown, as tables that one function in C reads."""

from __future__ import annotations

import re
from typing import Any

from .emit_wire import NOTE
from .layout import SCALARS
from .model import RESULTS, Api, Model
from .snapshot import Parameter

ADDRESS, UNKNOWN = "{TP_ADDRESS, 8, 0, 0, 0}", "{TP_UNKNOWN, 0, 0, 0, 0}"
REALS = ("float", "double")
BOX = ("X", "Y", "Z")


class _Types:
    """Rows of the table of types, each made once, and the lists of names and members that they point to."""

    def __init__(self, api: Api, handles: set[str]) -> None:
        self.known: dict[str, dict[str, Any]] = {str(t["name"]): t for t in api.snapshot.types}
        self.handles = handles
        self.specials: dict[str, list[tuple[str, int]]] = {}
        for name, (ctype, value) in api.snapshot.pointers.items():
            self.specials.setdefault(ctype, []).append((name, value))
        self.rows: list[str] = []
        self.named: list[str] = []
        self.members: list[str] = []
        self.names: dict[str, int] = {}
        self.end = 0
        self.index: dict[str, int] = {}

    def name(self, text: str) -> int:
        """Where a name lies in the text of all names: with pointers, each would be relocated in every process."""
        if text not in self.names:
            self.names[text] = self.end
            self.end += len(text) + 1
        return self.names[text]

    def row(self, ctype: str, *, inside: bool = False) -> int:
        """Number of the row for a type; `inside` a struct, what a pointer leads to is not followed."""
        ctype = ctype.removeprefix("const ").strip() if not ctype.endswith("*") else ctype
        key = f"{ctype}{' inside' if inside else ''}"
        if key not in self.index:
            self.index[key] = len(self.rows)
            self.rows.append("")  # a struct's members may need rows of their own first
            self.rows[self.index[key]] = self._make(ctype, inside)
        return self.index[key]

    def _make(self, ctype: str, inside: bool) -> str:
        if ctype.endswith("*"):
            return ADDRESS if inside else self._pointer(ctype[:-1].strip())
        if ctype in self.specials:
            return self._named("TP_ADDRESS", 8, self.specials[ctype])
        if ctype in self.handles or "deviceptr" in ctype:
            return ADDRESS
        if ctype in SCALARS:
            form = "TP_REAL" if ctype in REALS else "TP_UNSIGNED" if _is_unsigned(ctype) else "TP_SIGNED"
            return f"{{{form}, {SCALARS[ctype]}, 0, 0, 0}}"
        entry = self.known.get(ctype)
        if entry is None:
            return UNKNOWN
        if entry["kind"] == "typedef":
            return self._typedef(ctype, str(entry["type"]), inside)
        if entry["kind"] == "enum":
            return self._named("TP_SIGNED", 4, [(str(n), int(v)) for n, v in entry["values"]])
        if entry["kind"] == "union":
            return f"{{TP_UNKNOWN, {entry['size']}, 0, 0, 0}}"
        return self._struct(ctype, entry)

    def _typedef(self, name: str, text: str, inside: bool) -> str:
        base = text[: -len(name)].strip() if text.endswith(name) else ""
        if "(" in text:
            return ADDRESS
        if base.endswith("*"):  # a handle, or a pointer to what programs may hold but not look into
            return ADDRESS
        return self.rows[self.row(base, inside=inside)] if base and base != name else UNKNOWN

    def _pointer(self, target: str) -> str:
        read_only = target.startswith("const ") and not target.endswith("*")
        plain = target.removeprefix("const ").strip() if not target.endswith("*") else target
        if plain == "void":
            return ADDRESS
        to = self.row(plain)
        if plain == "char":
            return f"{{TP_TEXT, 8, {int(not read_only)}, 0, 0}}"
        if self.rows[to].startswith(("{TP_UNKNOWN", "{}")) or not self.rows[to]:
            return ADDRESS
        return f"{{TP_POINTER, 8, {int(not read_only)}, {to}, 0}}"

    def _named(self, form: str, size: int, values: list[tuple[str, int]]) -> str:
        first: dict[int, str] = {}
        for name, value in values:
            first.setdefault(value, name)
        number = len(self.named)
        self.named += [f"{{{self.name(name)}, {value}}}" for value, name in sorted(first.items())]
        return f"{{{form}, {size}, {len(first)}, 0, {number}}}"

    def _struct(self, ctype: str, entry: dict[str, Any]) -> str:
        members = []
        for item in entry["fields"]:
            if "inline" in item or "bits" in item or not item["name"]:
                continue
            found = re.fullmatch(rf"(.*?)\b{item['name']}((?:\[\d+\])*)", str(item["type"]))
            base = found[1].strip() if found else "void *"  # a pointer to a function
            count = 1
            for dimension in re.findall(r"\d+", found[2]) if found else []:
                count *= int(dimension)
            is_text = base == "char" and count > 1
            row = self.row(base, inside=True)
            members.append(f"{{{self.name(item['name'])}, {item['offset'] // 8}, {count}, {row}, {int(is_text)}}}")
        if not members:
            return f"{{TP_UNKNOWN, {entry['size']}, 0, 0, 0}}"
        number = len(self.members)
        self.members += members
        return f"{{TP_STRUCT, {entry['size']}, {len(members)}, 0, {number}}}"


def _is_unsigned(ctype: str) -> bool:
    return ctype.startswith(("unsigned", "uint", "size_t"))


def trace(model: Model, api: Api) -> str:
    """tpg_<api>_trace.h: for every exported function its name, its arguments and its result."""
    types = _Types(api, {k.ctype for k in model.kinds} | {c for k in model.kinds for c in k.also})
    calls: list[str] = []
    arguments: list[str] = []
    for name in api.exports:
        line = api.lines[name]
        prototype = api.prototype(name) or api.prototype(api.resolve(line).name)
        returns = types.row(prototype.returns if prototype else RESULTS[api.name])
        rows = _arguments(types, prototype.params) if prototype else []
        calls.append(
            f"static const struct tp_call call_{name} = {{{types.name(name)}, {len(arguments)}, {returns}, "
            f"{len(rows)}, {int(prototype is not None)}}};"
        )
        arguments += rows
    guard = f"TPG_{api.name.upper()}_TRACE_H"
    head = [NOTE, f"#ifndef {guard}", f"#define {guard}", "#include <tp_trace.h>"]
    text = [f'    "{name}\\0"' for name in types.names]
    return "\n".join(
        [
            *head,
            *("static const char trace_names[] =", *text, "    ;"),
            *_table("tp_type trace_types", types.rows),
            *_table("tp_named trace_named", types.named),
            *_table("tp_member trace_members", types.members),
            *_table("tp_argument trace_arguments", arguments),
            "static const struct tp_tables trace_tables = {",
            "    trace_names, trace_types, trace_named, trace_members, trace_arguments,",
            "};",
            *calls,
            "#endif",
            "",
        ]
    )


def _table(what: str, rows: list[str]) -> list[str]:
    return [f"static const struct {what}[] = {{", *(f"    {row}," for row in rows or ["{0}"]), "};"]


def _arguments(types: _Types, params: tuple[Parameter, ...]) -> list[str]:
    """Rows for parameters; three neighbours that are X, Y and Z of one thing are shown as one."""
    rows = []
    for at, parameter in enumerate(params):
        shown, together = parameter.name, 1
        names = [p.name for p in params[at : at + 3]]
        stem = parameter.name[:-1]
        if stem and names == [stem + letter for letter in BOX]:
            shown, together = stem, 3
        rows.append(f"{{{types.name(shown)}, {types.row(parameter.type)}, {together}}}")
    return rows
