"""The header snapshots in api/snapshot as typed objects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """One parameter of a prototype; `type` is spelled as in the header."""

    name: str
    type: str


@dataclass(frozen=True)
class Prototype:
    """One function of the API."""

    name: str
    returns: str
    params: tuple[Parameter, ...]


@dataclass
class Snapshot:
    """Names, types and layouts of one API."""

    constants: dict[str, int]
    pointers: dict[str, tuple[str, int]]  # constants that the header casts to a pointer: type and value
    types: list[dict[str, Any]]
    functions: dict[str, Prototype]

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        raw = json.loads(path.read_text())
        functions = {
            name: Prototype(name, entry["returns"], tuple(Parameter(p["name"], p["type"]) for p in entry["params"]))
            for name, entry in raw["functions"].items()
        }
        pointers = {name: (str(kind), int(value)) for name, (kind, value) in raw["pointers"].items()}
        return cls(raw["constants"], pointers, raw["types"], functions)

    def header(self, guard: str) -> str:
        """C header with every type, constant and prototype."""
        lines = [f"#ifndef {guard}", f"#define {guard}", "#include <stddef.h>", "#include <stdint.h>"]
        defined = {v[0] for t in self.types if t["kind"] == "enum" for v in t["values"]}
        for name, value in self.constants.items():
            if name not in defined:
                lines.append(f"#define {name} {value if value < 2**31 else f'{value}u'}")
        for name, (kind, value) in self.pointers.items():
            lines.append(f"#define {name} (({kind}){value})")
        for entry in self.types:
            lines += _type(entry)
        for function in self.functions.values():
            lines.append(f"{function.returns} {function.name}({parameter_list(function)});")
        return "\n".join([*lines, "#endif", ""])


def declare(kind: str, name: str) -> str:
    """Declaration of `name` as `kind`, where `kind` may be an array or a function pointer."""
    if "(*)" in kind:
        return kind.replace("(*)", f"(*{name})", 1)
    if kind.endswith("]"):
        base, _, dims = kind.partition("[")
        return f"{base.strip()} {name}[{dims}"
    return f"{kind}{'' if kind.endswith('*') else ' '}{name}"


def parameter_list(function: Prototype) -> str:
    """Parameters of `function` as they stand between the parentheses."""
    return ", ".join(declare(p.type, p.name) for p in function.params) or "void"


def _type(entry: dict[str, Any]) -> list[str]:
    kind, name = entry["kind"], entry["name"]
    if kind == "typedef":
        return [f"typedef {entry['type']};"]
    if kind == "enum":
        # Values above INT_MAX exist (…_FORCE_UINT); gcc and clang give such an enum the type unsigned int, as the
        # headers do.
        body = ", ".join(f"{n} = {v}" for n, v in entry["values"])
        if name.startswith("enum ") or not name:
            return [f"{name or 'enum'} {{ {body} }};"]
        return [f"typedef enum {{ {body} }} {name};"]
    align = entry["align"]
    body = " ".join(_fields(entry["fields"]))
    attribute = f" __attribute__((aligned({align})))" if align > 8 else ""
    check = f'_Static_assert(sizeof({name}) == {entry["size"]}, "layout of {name}");'
    if entry.get("typedef"):
        return [f"typedef {kind} {{ {body} }}{attribute} {name};", check]
    return [f"{name} {{ {body} }}{attribute};", check]


def _fields(fields: list[dict[str, Any]]) -> list[str]:
    out = []
    for item in fields:
        if "inline" in item:
            out.append(f"{item['inline']} {{ {' '.join(_fields(item['fields']))} }} {item['name']}{item['dims']};")
        else:
            bits = f" : {item['bits']}" if "bits" in item else ""
            out.append(f"{item['type']}{bits};")
    return out
