"""The wire format as JSON, for what decodes frames without being generated: tensor-fusion dump."""

from __future__ import annotations

import json

from .fields import Field
from .layout import SCALARS
from .model import Api, Model


def schema(model: Model) -> str:
    """schema.json: hash, kinds of handle, errors, enums, and each operation and message by number with its fields."""
    enums: dict[str, dict[str, str]] = {}
    operations = {
        str(op.number): {
            "name": op.name,
            "api": op.api,
            "kind": op.kind,
            "in": [_field(model, item, enums) for item in op.inputs()],
            "out": [_field(model, item, enums) for item in op.outputs()],
        }
        for op in model.frames
    }
    whole = {
        "hash": model.schema.hex(),
        "handles": {str(kind.number): kind.name for kind in model.kinds},
        "errors": {str(code): pair[0] for code, pair in sorted(model.apis[0].errors.items())},
        "enums": enums,
        "operations": operations,
    }
    return json.dumps(whole, indent=1)


def _field(model: Model, item: Field, enums: dict[str, dict[str, str]]) -> list[str | int]:
    """Name, form, size (of the field, of an element of an array, 0 where the length says all), and the enum or ""."""
    if item.is_handle:
        return [item.name, "handle", 8, ""]
    if not item.variable:
        enum = _enum(model, item.ctype, enums) if item.size == 4 else ""
        raw = item.role in ("in", "outstruct")
        return [item.name, "raw" if raw else _form(item.ctype, item.size, enum), item.size, enum]
    if item.role == "string":
        return [item.name, "string", 0, ""]
    if item.is_bytes or item.role == "in":
        return [item.name, "bytes", 0, ""]
    if item.role in ("handles", "names"):
        return [item.name, "handles", 8, ""]
    element = SCALARS.get(item.ctype.removeprefix("const ").strip(), 0)
    return [item.name, "array" if element else "bytes", element, ""]


def _enum(model: Model, ctype: str, enums: dict[str, dict[str, str]]) -> str:
    """The type's name, and its values among `enums`; nothing for a type that is none."""
    plain = ctype.removeprefix("const ").strip()
    for api in model.apis:
        if values := _values(api, plain):
            names: dict[str, str] = {}
            for name, value in values:
                names.setdefault(str(value), name)
            enums[plain] = names
            return plain
    return ""


def _values(api: Api, ctype: str) -> list[tuple[str, int]]:
    known = {str(entry["name"]): entry for entry in api.snapshot.types}
    seen: set[str] = set()
    while (entry := known.get(ctype)) and ctype not in seen:
        if entry["kind"] == "enum":
            return [(str(name), int(value)) for name, value in entry["values"]]
        if entry["kind"] != "typedef":
            return []
        seen.add(ctype)
        ctype = str(entry["type"]).removesuffix(ctype).strip()
    return []


def _form(ctype: str, size: int, enum: str) -> str:
    if enum:
        return "signed"
    if ctype in ("float", "double"):
        return "real"
    if size not in (1, 2, 4, 8):
        return "raw"
    if "ptr" in ctype or ctype.endswith("*"):
        return "address"
    return "unsigned" if ctype.startswith(("unsigned", "uint", "size_t", "cuuint")) or size == 8 else "signed"
