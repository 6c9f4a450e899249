"""Roles: what a line says about a parameter, checked against its type, as a typed field of a message.

Every word has a row that says what may stand behind it and what type it fits. A word or a kind of handle that is none
and a type that the role cannot have are errors with the place of the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .describe import Line
from .layout import SCALARS, DescriptionError, Types, meant, refuse
from .snapshot import Parameter


@dataclass(frozen=True)
class Field:
    """One thing that an operation carries.

    `ctype` is the type of the element: of the scalar, of the struct behind the pointer, of the array's elements.
    `size` is the wire size of a fixed field, 0 for variable ones. `length` is an expression of other fields' names.
    """

    name: str
    role: str  # value handle name new fresh gone device dev in bytes array handles names string versioned wanted room
    #            | out outknown outfresh outbytes outarray outstring outversioned outwanted outboth outkept
    #            | outchanged
    #            | outroom outfilled outstatus
    ctype: str
    size: int = 0
    kind: str = ""
    length: str = ""
    optional: bool = False
    owner: str = ""  # of a new object: the parameter that names what it ends with
    by: str = ""  # the parameter that names who keeps what this points at
    refused: str = ""  # the error for a handle that is NULL, where it is not that of its kind
    travels: str = ""  # the number of a transfer that goes "up" or "down" beside the frame

    @property
    def is_out(self) -> bool:
        """Travels in the reply."""
        return self.role.startswith("out")

    @property
    def is_handle(self) -> bool:
        """Travels as the client's handle."""
        return self.role in ("handle", "name", "new", "gone", "context", "fresh", "outknown", "outfresh")

    @property
    def is_bytes(self) -> bool:
        """Travels as bytes with a length, whatever the memory is for."""
        told = self.role in ("outbytes", "outstring", "outversioned", "outkept")
        return told or self.role in ("bytes", "versioned", "struct", "structs")

    @property
    def variable(self) -> bool:
        """Has a length of its own on the wire."""
        return self.size == 0


@dataclass(frozen=True)
class _Word:
    """What may stand behind a role's word, and the type that it fits."""

    arg: str = ""  # "", "kind", "length", "kind length" or "kind owner"
    optional: bool = False
    fits: str = "pointer"  # scalar, pointer, result (a pointer that is written through), text, or a type's own name


WORDS = {
    "value": _Word(fits="any"),
    "skip": _Word(fits="any"),
    "in": _Word(optional=True),
    "out": _Word(optional=True, fits="result"),
    "wanted": _Word(fits="result"),
    "both": _Word(fits="result"),
    "changed": _Word("length", fits="result"),
    "room": _Word(optional=True, fits="unsigned int *"),
    "filled": _Word("length", fits="result"),
    "string": _Word(optional=True, fits="text"),
    "bytes": _Word("length", optional=True),
    "outbytes": _Word("length", optional=True, fits="result"),
    "array": _Word("length", optional=True),
    "outarray": _Word("length", optional=True, fits="result"),
    "outstring": _Word("length", optional=True, fits="result"),
    "versioned": _Word(fits="result"),
    "handle": _Word("kind", optional=True, fits="handle"),
    "name": _Word("kind", optional=True, fits="handle"),
    "gone": _Word("kind", optional=True, fits="handle"),
    "new": _Word("kind owner", fits="new"),
    "known": _Word("kind", fits="new"),
    "fresh": _Word("kind owner", fits="new"),
    "context": _Word(fits="CUcontext"),
    "struct": _Word(optional=True, fits="declared"),
    "structs": _Word("length", fits="declared"),
    "outstruct": _Word(optional=True, fits="declared"),
    "kept": _Word("length", fits="declared"),
    "handles": _Word("kind length", optional=True, fits="handles"),
    "dev": _Word("length", fits="CUdeviceptr"),
    "word": _Word("length", fits="CUdeviceptr"),
    "bits": _Word("length", fits="any"),
    "most": _Word("length", fits="any"),
    "device": _Word(fits="CUdevice"),
}
OWN_WORDS = {
    "value": _Word(fits="scalar"),
    "in": _Word(fits="struct"),
    "string": _Word(fits="char"),
    "bytes": _Word(fits="bytes"),
    "array": _Word(fits="scalar"),
    "names": _Word("kind", fits="uint64_t"),
    "handles": _Word("kind", fits="uint64_t"),
    "struct": _Word(fits="declared"),
    "structs": _Word(fits="declared"),
    "handle": _Word("kind", optional=True, fits="uint64_t"),
    "name": _Word("kind", optional=True, fits="uint64_t"),
    "gone": _Word("kind", fits="uint64_t"),
    "new": _Word("kind", optional=True, fits="uint64_t"),
    "device": _Word(fits="CUdevice"),
    "up": _Word(fits="uint64_t"),
    "down": _Word(fits="uint64_t"),
}
OWN_RESULTS = {"value": OWN_WORDS["value"], "bytes": OWN_WORDS["bytes"], "array": OWN_WORDS["array"]}


def field_of(line: Line, parameter: Parameter, types: Types) -> Field | None:
    """Field of a parameter of a prototype, by what the line says or else by its type; None for one that is not sent."""
    name, kind = parameter.name, parameter.type
    plain = _pointee(kind).removeprefix("const ").strip()
    text = line.roles.get(name, "") or _default_role(line, parameter, types)
    text, _, by = text.partition(" by ")
    text, _, refused = text.partition(" or ")
    word, handle, length, optional = _split(line, name, text, WORDS, types)
    _check_fits(line, parameter, WORDS[word].fits, handle, types)
    if by and word not in ("handle", "context", "struct", "structs"):
        raise refuse(line.place, line.name, f"{name} is {word!r}, which points at nothing that {by} could keep")
    if refused and word != "handle":
        raise refuse(line.place, line.name, f"{name} is {word!r}, for which no error can be said")
    if word == "skip":
        return None
    if word == "wanted":
        _known(line, name, plain, types)
        return Field(name, word, "unsigned int", 4)
    if word == "room":
        return Field(name, word, plain, 4, optional=optional)
    if word == "filled":
        return Field(name, "outfilled", plain, 0, length=length)
    if word in ("value", "device", "dev", "word", "bits", "most"):
        return Field(name, word, kind, _known(line, name, kind, types), length=length)
    if word in ("handle", "name", "gone", "context"):
        return Field(name, word, kind, 8, handle, optional=optional, by=by, refused=refused)
    if word in ("new", "known", "fresh"):
        owner = length.removeprefix("of ")
        if word == "fresh" and not owner:
            raise refuse(line.place, line.name, f"{name} is fresh: say of what, as 'fresh {handle} of …'")
        return Field(name, "outknown" if word == "known" else word, plain, 8, handle, owner=owner)
    if word in ("struct", "structs"):
        return Field(name, word, plain, 0, length=length, optional=optional, by=by)
    if word == "kept":
        owner = length.removeprefix("of ")
        if owner == length:
            raise refuse(line.place, line.name, f"{name} is kept: say as long as what, as 'kept of …'")
        return Field(name, "outkept", plain, 0, owner=owner)
    if word == "handles":
        return Field(name, word, plain, 0, handle, length, optional)
    if word == "string":
        return Field(name, word, "char", optional=optional)
    if word in ("bytes", "outbytes", "outstring"):
        return Field(name, word, "void", length=length, optional=optional)
    size = _known(line, name, plain, types)
    if word == "changed":
        return Field(name, "array", plain, 0, length=length)
    if word == "both":
        return Field(name, "in", plain)
    return Field(name, word, plain, size if word in ("out", "outstruct") else 0, length=length, optional=optional)


def own_field(line: Line, name: str, text: str, types: Types) -> Field:
    """Field of an operation of our own: "ctype: role"."""
    ctype, _, role = (part.strip() for part in text.partition(":"))
    role, _, by = role.partition(" by ")
    out = name.startswith("out ")
    name = name.removeprefix("out ")
    word, kind, _, optional = _split(line, name, role or "value", OWN_RESULTS if out else OWN_WORDS, types)
    fits = OWN_WORDS[word].fits
    reason = _own_misfit(ctype, fits, types)
    if reason:
        raise refuse(line.place, line.name, f"{name} is {ctype!r}, {reason}")
    if word in ("bytes", "array"):
        return Field(name, "out" + word if out else word, ctype)
    if word in ("names", "handles"):
        return Field(name, word, ctype, 0, kind)
    if word == "string":
        return Field(name, word, "char", optional=True)
    if word in ("in", "struct", "structs"):
        return Field(name, word, ctype, by=by)
    if word in ("up", "down"):
        _check_transfer(line, name, word)
        return Field(name, "value", ctype, 8, travels=word)
    return Field(name, "out" if out else word, ctype, _known(line, name, ctype, types), kind, optional=optional)


def _check_transfer(line: Line, name: str, word: str) -> None:
    if line.kind not in ("op-post", "op-call") or (word == "up" and line.kind != "op-post"):
        fitting = "a post" if word == "up" else "a post or a call"
        raise refuse(line.place, line.name, f"{name} goes {word}: only {fitting} of the client can announce that")
    if sum(text.partition(":")[2].strip() in ("up", "down") for text in line.roles.values()) > 1:
        raise refuse(line.place, line.name, f"{name} is a second transfer: a frame announces one")


def check_lengths(line: Line, fields: list[Field]) -> None:
    """Lengths are made of what is sent, so that the session can check them."""
    values = {f.name for f in fields if f.role in ("value", "most", "out")}
    rooms = [f.name for f in fields if f.role == "room"]
    for item in fields:
        if item.role in ("bits", "most"):
            continue
        if item.role == "outfilled":
            if item.length not in rooms:
                reason = f"{item.name} is filled by {item.length!r}, which is no room{meant(item.length, rooms)}"
                raise refuse(line.place, line.name, reason)
            continue
        # What begins with tp_ is a function of native/wire/tp_extent.h.
        names = [name for name in re.findall(r"[A-Za-z_]\w*", item.length) if not name.startswith("tp_")]
        if not all(name in values for name in names):
            reason = f"the length {item.length!r} of {item.name} is not made of sent values; those are {sorted(values)}"
            raise refuse(line.place, line.name, reason)


def _split(line: Line, name: str, text: str, words: dict[str, _Word], types: Types) -> tuple[str, str, str, bool]:
    """Word, kind of handle, length and whether NULL is allowed, of a role that there is."""
    word, _, arg = text.partition(" ")
    optional = word.endswith("?")
    word, arg = word.removesuffix("?"), arg.strip()
    row = words.get(word)
    if row is None:
        if word in WORDS or word in OWN_WORDS:
            raise refuse(line.place, line.name, f"{name} cannot be {word!r}; it can be {', '.join(words)}")
        raise refuse(line.place, line.name, f"no role is called {word!r}, as {name} has it{meant(word, words)}")
    if optional and not row.optional:
        raise refuse(line.place, line.name, f"{name} cannot be {word!r} and optional")
    kind, _, length = arg.partition(" ") if "kind" in row.arg else ("", "", arg)
    if kind and kind not in types.kinds:
        reason = f"no kind of handle is called {kind!r}, as {name} has it{meant(kind, types.kinds)}"
        raise refuse(line.place, line.name, reason)
    owned = row.arg == "kind owner" and (not length or length.startswith("of "))
    if bool(kind) != ("kind" in row.arg) or (bool(length) != ("length" in row.arg) and not owned):
        need = f"a {row.arg.removesuffix(' owner').replace(' ', ' and a ')}" if row.arg else "nothing"
        raise refuse(line.place, line.name, f"{name} needs {need} behind {word!r}, not {arg!r}")
    return word, kind, length, optional


def _pointee(kind: str) -> str:
    return kind.removesuffix("*").strip() if kind.endswith("*") else ""


def _check_fits(line: Line, parameter: Parameter, fits: str, handle: str, types: Types) -> None:
    kind, pointee = parameter.type, _pointee(parameter.type)
    ctype = types.kinds[handle].ctype if handle else ""
    right, reason = {
        "any": (True, ""),
        "pointer": (bool(pointee), "it is no pointer"),
        "result": (bool(pointee) and not pointee.startswith("const "), "it cannot be written through"),
        "text": (pointee in ("const char", "char"), "it is no text"),
        "handle": (kind == ctype, f"it is no {ctype}"),
        "declared": (pointee.removeprefix("const ") in types.declared, "that struct has no declaration"),
        "new": (pointee == ctype, f"it has no place for a {ctype}"),
        "handles": (pointee.removeprefix("const ") == ctype, f"it is no list of {ctype}"),
    }.get(fits, (kind == fits, f"it is no {fits}"))
    if not right:
        role = line.roles.get(parameter.name, "the default role")
        raise refuse(line.place, line.name, f"{role!r} does not fit {kind} {parameter.name}: {reason}")


def _own_misfit(ctype: str, fits: str, types: Types) -> str:
    """Why a role of an operation of our own cannot have that type, or nothing."""
    if fits == "scalar":
        if ctype.endswith("*") or ctype in types.by_ctype:
            return "which means nothing to the other side; a handle is 'uint64_t: handle …'"
        return "" if types.size(ctype) else "whose size is not known"
    if fits == "declared":
        return "" if ctype in types.declared else "which has no declaration"
    if fits == "struct":
        return "" if ctype in types.structs else "no struct of the snapshot"
    if fits == "bytes":
        return "" if ctype in ("void", "char") else "and bytes are void or char"
    return "" if ctype == fits else f"and has to be {fits!r} in that role"


def _default_role(line: Line, parameter: Parameter, types: Types) -> str:
    kind = parameter.type
    if kind in types.by_ctype:
        return f"handle {types.by_ctype[kind].name}"
    if kind == "CUdevice":
        return "device"
    if not kind.endswith("*"):
        return "value"
    plain = _pointee(kind)
    if kind == "const char *":
        return "string"
    if plain.startswith("const ") and types.size(plain):
        return "in"
    if plain in types.by_ctype:
        return f"new {types.by_ctype[plain].name}"
    if plain not in ("void", "char") and not plain.endswith("*") and types.size(plain):
        return "out"
    raise refuse(line.place, line.name, f"say what {kind} {parameter.name} is")


def _known(line: Line, name: str, ctype: str, types: Types) -> int:
    size = types.size(ctype)
    if not size:
        raise refuse(line.place, line.name, f"the size of {ctype!r}, which {name} is, is not known")
    return size


__all__ = ["SCALARS", "DescriptionError", "Field", "check_lengths", "field_of", "own_field"]
