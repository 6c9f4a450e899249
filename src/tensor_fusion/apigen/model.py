"""api/ and the snapshots, checked and joined into operations with typed fields.

Nothing here knows a function by name. What cannot be inferred from a prototype has to be said in api/, and what api/
says has to fit the prototype; every disagreement is an error that names the line.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .describe import Line
from .snapshot import Parameter, Prototype, Snapshot

SCALARS = {
    "char": 1, "signed char": 1, "unsigned char": 1, "uint8_t": 1,
    "short": 2, "unsigned short": 2, "uint16_t": 2,
    "int": 4, "unsigned int": 4, "uint32_t": 4, "int32_t": 4, "float": 4,
    "long long": 8, "unsigned long long": 8, "size_t": 8, "uint64_t": 8, "int64_t": 8, "long": 8, "unsigned long": 8,
    "double": 8,
}  # fmt: skip
FIRST_OPCODE = 16
RESULTS = {"cuda": "CUresult", "nvml": "nvmlReturn_t"}


class DescriptionError(Exception):
    """A line of api/ that cannot be: names the function and what is wrong with it."""


@dataclass(frozen=True)
class Kind:
    """A kind of handle."""

    name: str
    number: int
    ctype: str
    also: tuple[str, ...]
    refused: str  # the error for a handle that is none


@dataclass(frozen=True)
class Field:
    """One thing that an operation carries.

    `ctype` is the type of the element: of the scalar, of the struct behind the pointer, of the array's elements.
    `size` is the wire size of a fixed field, 0 for variable ones. `arg` is the handle kind or the length expression.
    """

    name: str
    role: str  # value handle new gone device dev in bytes array handles string versioned
    #            | out outbytes outarray outstring outversioned
    ctype: str
    size: int = 0
    arg: str = ""
    optional: bool = False

    @property
    def is_out(self) -> bool:
        """Travels in the reply."""
        return self.role.startswith("out")

    @property
    def is_bytes(self) -> bool:
        """Travels as bytes with a length, whatever the memory is for."""
        return self.role in ("bytes", "outbytes", "outstring", "versioned", "outversioned")

    @property
    def variable(self) -> bool:
        """Has a length of its own on the wire."""
        return self.size == 0


@dataclass
class Op:
    """One operation on the wire."""

    name: str
    number: int
    kind: str  # call post pure
    line: Line
    fields: list[Field]
    prototype: Prototype | None  # None for operations of our own
    api: str

    def inputs(self) -> list[Field]:
        """Request fields in wire order: fixed ones by falling size, then the variable ones, so that data is aligned."""
        return _wire_order([f for f in self.fields if not f.is_out])

    def outputs(self) -> list[Field]:
        """Reply fields in wire order."""
        return _wire_order([f for f in self.fields if f.is_out])


def _wire_order(fields: list[Field]) -> list[Field]:
    fixed = [f for f in fields if not f.variable]
    aligned = [f for f in fixed if f.size % 8 == 0]
    rest = sorted((f for f in fixed if f.size % 8), key=lambda f: -(f.size & -f.size))
    return aligned + rest + [f for f in fields if f.variable]


def padding(fields: list[Field]) -> int:
    """Bytes between the fixed and the variable fields."""
    return -sum(f.size for f in fields) % 8


@dataclass
class Api:
    """One API: its prototypes, its lines, what it exports."""

    name: str
    snapshot: Snapshot
    lines: dict[str, Line]
    exports: list[str]
    ops: list[Op] = field(default_factory=list)

    def resolve(self, line: Line) -> Line:
        """The line that answers for an alias or twin."""
        while line.target:
            line = self.lines[line.target]
        return line

    def prototype(self, name: str) -> Prototype | None:
        """The prototype, from the header or else from the line; None where neither declares it."""
        line = self.lines.get(name)
        if name not in self.snapshot.functions and line and line.params:
            return Prototype(name, RESULTS[self.name], tuple(Parameter(n, t) for n, t in line.params.items()))
        return self.snapshot.functions.get(name)


class Types:
    """Sizes of C types and kinds of handles."""

    def __init__(self, snapshots: list[Snapshot], kinds: list[Kind]) -> None:
        self.kinds = {k.name: k for k in kinds}
        self.by_ctype = {k.ctype: k for k in kinds}
        self._sizes = dict(SCALARS)
        for snapshot in snapshots:
            for entry in snapshot.types:
                self._learn(entry)

    def _learn(self, entry: dict[str, object]) -> None:
        name = str(entry["name"])
        if entry["kind"] in ("struct", "union"):
            self._sizes[name] = int(str(entry["size"]))
        elif entry["kind"] == "enum":
            self._sizes[name] = 4
        elif entry["kind"] == "typedef":
            text = str(entry["type"])
            base = text[: -len(name)].strip() if text.endswith(name) else ""
            if "*" in base:
                self._sizes[name] = 8
            elif base in self._sizes:
                self._sizes[name] = self._sizes[base]
            elif "(*" in text:
                self._sizes[name] = 8

    def size(self, ctype: str) -> int:
        """Size in bytes, 0 when unknown."""
        ctype = ctype.removeprefix("const ").strip()
        return 8 if ctype.endswith("*") else self._sizes.get(ctype, 0)


@dataclass
class Model:
    """Everything that the emitters need."""

    apis: list[Api]
    types: Types
    kinds: list[Kind]
    procaddress: dict[str, dict[str, list[tuple[int, str]]]]
    errors: dict[int, tuple[str, str]]
    schema: bytes

    @property
    def ops(self) -> list[Op]:
        """All operations by number."""
        return sorted((o for a in self.apis for o in a.ops), key=lambda o: o.number)


def load(folder: Path, *, extend_lock: bool = False) -> Model:
    """Reads api/ at `folder`; with `extend_lock`, numbers operations that have none and writes opcodes.lock."""
    sys.path.insert(0, str(folder.parent))
    kinds = [Kind(*row) for row in importlib.import_module("api.handles").KINDS]
    exports = json.loads((folder / "exports.json").read_text())
    apis = []
    for name in ("cuda", "nvml"):
        snapshot = Snapshot.load(folder / "snapshot" / f"{name}.json")
        apis.append(Api(name, snapshot, _lines(name), list(exports[name])))
    types = Types([a.snapshot for a in apis], kinds)
    lock = _Lock(folder / "opcodes.lock", extend_lock)
    for api in apis:
        _check_total(api)
        for line in api.lines.values():
            operation = _operation(api, line, types, lock)
            if operation:
                api.ops.append(operation)
    lock.save()
    table = json.loads((folder / "procaddress.json").read_text())["names"]
    procaddress = {n: {f: [(int(v), s) for v, s in rows] for f, rows in flags.items()} for n, flags in table.items()}
    raw = json.loads((folder / "errors.json").read_text())["cuda"]
    errors = {int(code): (pair[0], pair[1]) for code, pair in raw.items()}
    return Model(apis, types, kinds, procaddress, errors, _schema(apis, kinds))


def _lines(api: str) -> dict[str, Line]:
    package = importlib.import_module(f"api.{api}")
    lines: dict[str, Line] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"api.{api}.{info.name}")
        flat: list[Line] = []
        for entry in module.FUNCTIONS:
            flat += entry if isinstance(entry, list) else [entry]
        for line in flat:
            if line.name in lines:
                raise DescriptionError(f"{line.name}: a second line, in api/{api}/{info.name}.py")
            lines[line.name] = line
    return lines


def _check_total(api: Api) -> None:
    own = {n for n, line in api.lines.items() if not line.kind.startswith("op-")}
    missing = sorted(set(api.exports) - own)
    if missing:
        raise DescriptionError(f"{api.name}: {len(missing)} exported names have no line, for example {missing[:5]}")
    extra = sorted(own - set(api.exports))
    if extra:
        raise DescriptionError(f"{api.name}: lines for names that the driver does not export: {extra[:5]}")
    for line in api.lines.values():
        if line.kind in ("alias", "twin"):
            target = api.lines.get(line.target)
            if target is None or target.kind == "twin":
                raise DescriptionError(f"{line.name}: target {line.target} is not a line of its own or an alias")
            mine, other = api.prototype(line.name), api.prototype(line.target)
            if mine and other and [p.type for p in mine.params] != [p.type for p in other.params]:
                raise DescriptionError(f"{line.name}: its arguments differ from those of {line.target}")
        elif line.kind not in ("unsupported",) and not line.kind.startswith("op-") and not api.prototype(line.name):
            raise DescriptionError(f"{line.name}: no header declares it")
        for name in line.ops.split():
            if api.lines.get(name, line).kind[:3] != "op-" and name not in api.lines:
                raise DescriptionError(f"{line.name}: no operation {name}")


class _Lock:
    """opcodes.lock: one `number name` a line, append-only."""

    def __init__(self, path: Path, extend: bool) -> None:
        self.path, self.extend, self.changed = path, extend, False
        self.numbers: dict[str, int] = {}
        if path.exists():
            for text in path.read_text().splitlines():
                number, name = text.split()
                self.numbers[name] = int(number)

    def number(self, name: str) -> int:
        if name not in self.numbers:
            if not self.extend:
                raise DescriptionError(
                    f"{name}: no number in {self.path.name}; run the generator with --lock and commit it"
                )
            self.numbers[name] = max(self.numbers.values(), default=FIRST_OPCODE - 1) + 1
            self.changed = True
        return self.numbers[name]

    def save(self) -> None:
        if self.changed:
            rows = sorted((n, name) for name, n in self.numbers.items())
            self.path.write_text("".join(f"{n} {name}\n" for n, name in rows))


def _operation(api: Api, line: Line, types: Types, lock: _Lock) -> Op | None:
    if line.kind in ("call", "post", "pure"):
        prototype = api.prototype(line.name)
        assert prototype is not None
        names = {p.name for p in prototype.params}
        for key in line.roles:
            if key not in names:
                raise DescriptionError(f"{line.name}: has no parameter {key}; it has {sorted(names)}")
        fields = [f for p in prototype.params if (f := _field(line, p, types)) is not None]
        _check_lengths(line, fields)
        fields += [Field(f.name, "outversioned", f.ctype) for f in fields if f.role == "versioned"]
        return Op(line.name, lock.number(line.name), line.kind, line, fields, prototype, api.name)
    if line.kind.startswith("op-"):
        fields = [_own_field(line, name, text, types) for name, text in line.roles.items()]
        return Op(line.name, lock.number(line.name), line.kind[3:], line, fields, None, api.name)
    return None


def _check_lengths(line: Line, fields: list[Field]) -> None:
    values = {f.name for f in fields if f.role == "value" or f.role == "out"}
    for item in fields:
        if item.role in ("bytes", "array", "handles", "outbytes", "outarray", "outstring", "dev") and item.arg:
            names = re.findall(r"[A-Za-z_]\w*", item.arg)
            if not all(name in values for name in names):
                raise DescriptionError(f"{line.name}: the length {item.arg} of {item.name} is not made of sent values")


def _field(line: Line, parameter: Parameter, types: Types) -> Field | None:
    """Field of a parameter, by what the line says or else by its type."""
    role = line.roles.get(parameter.name, "")
    kind = parameter.type
    pointee = kind.removesuffix("*").strip() if kind.endswith("*") else ""
    if not role:
        role = _default_role(line, parameter, types)
    word, _, arg = role.partition(" ")
    optional = word.endswith("?")
    word = word.rstrip("?")
    plain = pointee.removeprefix("const ").strip()
    if word == "skip":
        return None
    if word in ("value", "device", "dev"):
        return Field(parameter.name, word, kind, _known(line, parameter, types.size(kind)), arg)
    if word in ("handle", "gone"):
        _known_kind(line, arg, types)
        return Field(parameter.name, word, kind, 8, arg, optional)
    if word == "new":
        _known_kind(line, arg, types)
        return Field(parameter.name, word, plain, 8, arg)
    if word == "in":
        _known(line, parameter, types.size(plain))
        return Field(parameter.name, word, plain, 0, "", optional)
    if word == "out":
        return Field(parameter.name, word, plain, _known(line, parameter, types.size(plain)), "", optional)
    if word == "string":
        return Field(parameter.name, word, "char", 0, "", optional)
    if word in ("bytes", "outbytes", "outstring"):
        return Field(parameter.name, word, "void", 0, arg, optional)
    if word == "versioned":
        _known(line, parameter, types.size(plain))
        return Field(parameter.name, word, plain)
    if word in ("array", "outarray"):
        _known(line, parameter, types.size(plain))
        return Field(parameter.name, word, plain, 0, arg, optional)
    if word == "handles":
        kind_name, _, count = arg.partition(" ")
        _known_kind(line, kind_name, types)
        return Field(parameter.name, word, plain, 0, count, optional)
    raise DescriptionError(f"{line.name}: unknown role {role!r} for {parameter.name}")


def _default_role(line: Line, parameter: Parameter, types: Types) -> str:
    kind = parameter.type
    if kind in types.by_ctype:
        return f"handle {types.by_ctype[kind].name}"
    if kind == "CUdevice":
        return "device"
    if not kind.endswith("*"):
        return "value"
    plain = kind.removesuffix("*").strip()
    if kind == "const char *":
        return "string"
    if plain.startswith("const ") and types.size(plain):
        return "in"
    if plain in types.by_ctype:
        return f"new {types.by_ctype[plain].name}"
    if plain not in ("void", "char") and not plain.endswith("*") and types.size(plain):
        return "out"
    raise DescriptionError(f"{line.name}: say what {kind} {parameter.name} is")


def _own_field(line: Line, name: str, text: str, types: Types) -> Field:
    """Field of an operation of our own: "ctype: role"."""
    ctype, _, role = (part.strip() for part in text.partition(":"))
    out = name.startswith("out ")
    name = name.removeprefix("out ")
    word, _, arg = (role or "value").partition(" ")
    if word in ("bytes", "array"):
        return Field(name, "out" + word if out else word, ctype, 0, "")
    if word == "string":
        return Field(name, word, "char", 0, "", True)
    size = types.size(ctype)
    if not size:
        raise DescriptionError(f"{line.name}: size of {ctype} for {name} is not known")
    if out:
        return Field(name, "out", ctype, size)
    if word == "in":
        return Field(name, word, ctype, 0)
    return Field(name, word, ctype, 8 if word in ("handle", "new", "gone") else size, arg)


def _known(line: Line, parameter: Parameter, size: int) -> int:
    if not size:
        raise DescriptionError(f"{line.name}: size of {parameter.type} for {parameter.name} is not known")
    return size


def _known_kind(line: Line, name: str, types: Types) -> None:
    if name not in types.kinds:
        raise DescriptionError(f"{line.name}: no kind of handle is called {name!r}")


def _schema(apis: list[Api], kinds: list[Kind]) -> bytes:
    """First 16 bytes of a SHA-256 over everything that both sides must agree on."""
    digest = hashlib.sha256()
    for kind in kinds:
        digest.update(f"{kind.name} {kind.number}\n".encode())
    for operation in sorted((o for a in apis for o in a.ops), key=lambda o: o.number):
        digest.update(f"{operation.number} {operation.name}\n".encode())
        for item in operation.inputs() + operation.outputs():
            digest.update(f" {item.name} {item.role} {item.ctype} {item.size} {item.arg}\n".encode())
    return digest.digest()[:16]
