"""Older forms of functions: which argument of the newer one comes from where.

Arguments that both have are handed on by name. A number may be narrower, and a struct that is read may be of an earlier
version, whose fields are all in the later one under the same names: the rest of that is 0. What the newer form has
alone is given by the line, as C; what the older one has alone must be named there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .describe import Line
from .layout import Types, meant, refuse
from .snapshot import Parameter, Prototype


@dataclass(frozen=True)
class Joined:
    """One argument of the newer function."""

    value: str
    wide: str = ""  # the struct that `value`, a pointer to the struct `narrow`, becomes; or nothing
    narrow: str = ""


def joined(line: Line, own: Prototype | None, newer: Line, target: Prototype | None, types: Types) -> list[Joined]:
    """The arguments of the newer function in their order; an error for a line that does not say all of them."""
    lists = {name for name, role in newer.roles.items() if role.startswith(("structs", "array"))}
    if own is None or target is None:
        raise refuse(line.place, line.name, "no header declares it" if own is None else f"no header has {line.target}")
    mine = {p.name: p for p in own.params}
    names = [p.name for p in target.params]
    for name in line.roles:
        if name not in names:
            raise refuse(line.place, line.name, f"{line.target} has no parameter {name!r}{meant(name, names)}")
    out = []
    for parameter in target.params:
        text = line.roles.get(parameter.name, parameter.name if parameter.name in mine else "")
        if not text:
            raise refuse(line.place, line.name, f"has no {parameter.name!r}: say what {line.target} is given")
        many = parameter.name in lists
        out.append(_one(line, mine.get(text), parameter, text, types, many=many))
    said = set(re.findall(r"[A-Za-z_]\w*", " ".join(item.value for item in out)))
    lost = [name for name in mine if name not in said]
    if lost:
        raise refuse(line.place, line.name, f"nothing of {line.target} is given {lost[0]!r}")
    return out


def _one(line: Line, own: Parameter | None, target: Parameter, text: str, types: Types, *, many: bool) -> Joined:
    """One argument, converted if it has to be."""
    if own is None or own.type.removeprefix("const ") == target.type.removeprefix("const "):
        return Joined(text)
    reason = f"{own.type} {own.name} does not become {target.type}"
    if own.type.endswith("*") and target.type.endswith("*"):
        narrow, wide = (_plain(x.type) for x in (own, target))
        if not own.type.startswith("const "):
            raise refuse(line.place, line.name, f"{reason}: it may be written")
        if many:
            raise refuse(line.place, line.name, f"{reason}: it is a list")
        fields(line, narrow, wide, types)
        return Joined(text, wide, narrow)
    if own.type.endswith("*") or target.type.endswith("*") or types.size(own.type) > types.size(target.type):
        raise refuse(line.place, line.name, reason)
    return Joined(text)


def handed_on(line: Line, items: Sequence[Joined], types: Types) -> tuple[list[str], list[str]]:
    """In C: what an older form does before it calls the newer one, and the arguments that it calls it with."""
    body, arguments = [], []
    for index, item in enumerate(items):
        if not item.wide:
            arguments.append(item.value)
            continue
        body += [f"    {item.wide} wide_{index};", f"    memset(&wide_{index}, 0, sizeof wide_{index});"]
        body += [f"    if ({item.value}) {{"]
        for name, array in fields(line, item.narrow, item.wide, types):
            to, source = f"wide_{index}.{name}", f"{item.value}->{name}"
            body.append(f"        memcpy({to}, {source}, sizeof {source});" if array else f"        {to} = {source};")
        body += ["    }"]
        arguments.append(f"{item.value} ? &wide_{index} : NULL")
    return body, arguments


def _plain(kind: str) -> str:
    return kind.removesuffix("*").strip().removeprefix("const ").strip()


def fields(line: Line, narrow: str, wide: str, types: Types) -> list[tuple[str, bool]]:
    """The fields of the earlier struct and whether each is an array; all of them are in the later one."""
    pairs = []
    for name in (narrow, wide):
        entry = types.layout(name)
        if entry is None:
            raise refuse(line.place, line.name, f"no struct of the snapshot is called {name}")
        pairs.append({item["name"]: str(item.get("type", "")) for item in entry["fields"]})
    for name, kind in pairs[0].items():
        if name not in pairs[1]:
            raise refuse(line.place, line.name, f"{wide} has no {name!r} as {narrow} has it{meant(name, pairs[1])}")
        sizes = [types.size(re.sub(rf"\b{name}\b(\[\d+\])*$", "", p[name]).strip()) for p in pairs]  # a union has none
        if ("[" in kind) != ("[" in pairs[1][name]) or not sizes[0] or sizes[0] > sizes[1]:
            raise refuse(line.place, line.name, f"{name} of {narrow} does not fit {wide}")
    return [(name, "[" in kind) for name, kind in pairs[0].items()]
