"""What is looked at before a function that is refused, or written by hand in the client.

Of a refused one each parameter by its type, or by what the line says: a pointer must be there, a handle alive, a device
one of the program's; a stream may be the default one. The role ``"value"`` is not looked at; ``"there"`` must not be 0,
or gets the error that stands behind the word; ``"device"`` and ``"handle"``, or ``"handle?"``, are what a parameter of
such a type is by itself. Of one written by hand what its line names, in that order; a stream may be
``"uncaptured"`` there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .describe import Line
from .layout import Types, meant, refuse
from .snapshot import Parameter

ROLES = ("value", "there", "device", "handle", "handle?")
OWN_ROLES = (*ROLES[1:], "uncaptured", "handle or")  # of what is written by hand: a stream that captures refuses it
CODED = ("there", "handle or")  # behind which an error stands
BOUNDS = ("bits", "most", "below", "is", "version")  # of numbers, with what bounds them


@dataclass(frozen=True)
class Look:
    """One parameter that is looked at."""

    name: str
    how: str  # there, device, handle, uncaptured, or one of BOUNDS
    kind: str = ""  # of a handle
    optional: bool = False
    code: str = ""  # the error for a NULL, "" for the usual one
    bound: str = ""  # of one of BOUNDS: C


def beginning(values: dict[str, str]) -> str:
    """C that sets the outputs of a function which hold something from the beginning on."""
    said = [(name, *value.partition(" if ")[::2]) for name, value in values.items()]
    return " ".join(f"if ({name}{when and f' && {when}'}) {{ *{name} = {value}; }}" for name, value, when in said)


def looks(line: Line, params: tuple[Parameter, ...], types: Types, codes: list[str]) -> list[Look]:
    """The parameters that are looked at, in the order of the checks; `codes` are errors of the API."""
    names = [p.name for p in params]
    for name in [*line.roles, *(path.partition(".")[0].removesuffix("?") for path in line.gives or {})]:
        if name not in names:
            raise refuse(line.place, line.name, f"has no parameter {name!r}{meant(name, names)} (it has {names})")
    if line.kind != "refused":
        by_name = {p.name: p for p in params}
        said = (_look(line, by_name[name], types, codes) for name in line.roles)
        return [look for look in said if look]
    if line.unseen and line.roles:
        raise refuse(line.place, line.name, f"is unseen, so nobody looks at {next(iter(line.roles))}")
    found = (_look(line, p, types, codes) for p in params if not line.unseen)
    return [look for look in found if look]


def _look(line: Line, parameter: Parameter, types: Types, codes: list[str]) -> Look | None:
    kind = types.by_ctype.get(parameter.type)
    code = ""
    if parameter.name in line.roles:
        word, _, code = line.roles[parameter.name].partition(" ")
        if code.startswith("or "):
            word, code = f"{word} or", code.removeprefix("or ")
        if word in BOUNDS and code and line.kind != "refused":
            return Look(parameter.name, word, bound=code)
        roles = ROLES if line.kind == "refused" else OWN_ROLES
        of_kind = "handle" in word or word == "uncaptured"
        if word not in roles or of_kind > bool(kind) or (code and (word not in CODED or code not in codes)):
            said = line.roles[parameter.name]
            allowed = (
                ROLES if line.kind == "refused" else (*OWN_ROLES[:-1], "handle or E", *(f"{word} N" for word in BOUNDS))
            )
            whose = "a refused function" if line.kind == "refused" else "a function by hand"
            reason = f"{parameter.name} of {whose} is one of {', '.join(allowed)}, not {said!r}"
            raise refuse(line.place, line.name, reason)
    elif kind:
        word = "handle?" if parameter.type == "CUstream" else "handle"
    elif parameter.type.endswith("*"):
        word = "there"
    else:
        word = "device" if parameter.type == "CUdevice" else "value"
    if word == "value":
        return None
    how = word.removesuffix("?").removesuffix(" or")
    named = kind.name if kind and how in ("handle", "uncaptured") else ""
    return Look(parameter.name, how, named, word.endswith("?"), code)
