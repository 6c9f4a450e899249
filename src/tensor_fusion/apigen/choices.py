"""Functions that hand what a struct describes to one of several functions, by the value of a field.

Of each case the line says the function and which members it gets behind the parameters that all of them have: for a
parameter that is a struct by a pointer, a copy of as much of the member as that struct has; else the member itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .describe import Choice
from .layout import Types, meant, refuse
from .snapshot import Parameter, declare

if TYPE_CHECKING:
    from .model import Api

CASE = re.compile(r"(\w+)\((.*)\)")


def called(choice: Choice, text: str) -> tuple[str, list[str]]:
    """The function of a case, and the members that it gets."""
    match = CASE.fullmatch(text)
    if not match:
        raise refuse(choice.place, choice.name, f"{text!r} is no call of a function with members of {choice.struct}")
    return match[1], [member.strip() for member in match[2].split(",") if member.strip()]


def head(choice: Choice, api: Api, types: Types) -> tuple[Parameter, ...]:
    """The parameters that all of its functions begin with; raises for what cannot be."""
    found: tuple[Parameter, ...] = ()
    if choice.struct not in types.structs:
        raise refuse(choice.place, choice.name, f"{choice.struct!r} is no struct of the snapshot")
    for value, text in choice.cases.items():
        name, members = called(choice, text)
        prototype = api.prototype(name) if name in api.lines else None
        if prototype is None:
            raise refuse(choice.place, choice.name, f"no function is called {name!r}{meant(name, api.lines)}")
        if len(prototype.params) != choice.head + len(members):
            wanted = len(prototype.params) - choice.head
            raise refuse(choice.place, choice.name, f"{value}: {name} wants {wanted} members, not {len(members)}")
        own = prototype.params[: choice.head]
        if found and [p.type for p in own] != [p.type for p in found]:
            raise refuse(choice.place, choice.name, f"{value}: {name} does not begin as the functions before it do")
        found = found or own
    return found


def signature(choice: Choice, api: Api, types: Types) -> str:
    """`*chosen` is false, and nothing done, for a value that has no case."""
    params = [declare(p.type, p.name) for p in head(choice, api, types)]
    return f"CUresult tpg_{choice.name}({', '.join([*params, f'const {choice.struct} *from', 'bool *chosen'])})"


def body(choice: Choice, api: Api, types: Types, prefix: str) -> list[str]:
    """The function."""
    lines = [f"{signature(choice, api, types)} {{", "    *chosen = true;", f"    switch (from->{choice.field}) {{"]
    common = [p.name for p in head(choice, api, types)]
    for value, text in choice.cases.items():
        name, members = called(choice, text)
        prototype = api.prototype(name)
        assert prototype is not None
        lines.append(f"    case {value}: {{")
        arguments = list(common)
        for parameter, member in zip(prototype.params[choice.head :], members, strict=True):
            plain = parameter.type.removesuffix("*").removeprefix("const ").strip()
            if parameter.type.endswith("*") and plain in types.structs:
                lines.append(f"        {plain} {parameter.name};")
                lines.append(f"        memcpy(&{parameter.name}, &from->{member}, sizeof {parameter.name});")
                arguments.append(f"&{parameter.name}")
            else:
                arguments.append(f"from->{member}")
        target = api.resolve(api.lines[name])
        lines += [f"        return {prefix}_{target.name}({', '.join(arguments)});", "    }"]
    return [*lines, "    default:", "        *chosen = false;", "        return 0;", "    }", "}"]
