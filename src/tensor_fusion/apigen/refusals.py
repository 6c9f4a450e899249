"""What a refused function looks at before it answers its code: each parameter by its type, or by what the line says.

A pointer must be there, a handle alive, a device one of the program's; a stream may be the default one. The role
``"value"`` is not looked at; ``"there"`` must not be 0, or gets the error that stands behind the word; ``"device"`` and
``"handle"``, or ``"handle?"``, are what a parameter of such a type is by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from .describe import Line
from .layout import Types, meant, refuse
from .snapshot import Parameter

ROLES = ("value", "there", "device", "handle", "handle?")


@dataclass(frozen=True)
class Look:
    """One parameter that is looked at."""

    name: str
    how: str  # there, device, handle
    kind: str = ""  # of a handle
    optional: bool = False
    code: str = ""  # there: the error, "" for that of a NULL


def looks(line: Line, params: tuple[Parameter, ...], types: Types, codes: list[str]) -> list[Look]:
    """The parameters that are looked at, in their order, which is that of the checks; `codes` are errors of the API."""
    names = [p.name for p in params]
    for name in line.roles:
        if name not in names:
            raise refuse(line.place, line.name, f"has no parameter {name!r}{meant(name, names)} (it has {names})")
    if line.unseen and line.roles:
        raise refuse(line.place, line.name, f"is unseen, so nobody looks at {next(iter(line.roles))}")
    found = (_look(line, p, types, codes) for p in params if not line.unseen)
    return [look for look in found if look]


def _look(line: Line, parameter: Parameter, types: Types, codes: list[str]) -> Look | None:
    kind = types.by_ctype.get(parameter.type)
    code = ""
    if parameter.name in line.roles:
        word, _, code = line.roles[parameter.name].partition(" ")
        if word not in ROLES or ("handle" in word) > bool(kind) or (code and (word != "there" or code not in codes)):
            said = line.roles[parameter.name]
            reason = f"{parameter.name} of a refused function is one of {', '.join(ROLES)}, not {said!r}"
            raise refuse(line.place, line.name, reason)
    elif kind:
        word = "handle?" if parameter.type == "CUstream" else "handle"
    elif parameter.type.endswith("*"):
        word = "there"
    else:
        word = "device" if parameter.type == "CUdevice" else "value"
    if word == "value":
        return None
    how = word.removesuffix("?")
    return Look(parameter.name, how, kind.name if kind and how == "handle" else "", word.endswith("?"), code)
