"""api/ and the snapshots, checked and joined into operations with typed fields.

Nothing here knows a function by name. What cannot be inferred from a prototype has to be said in api/, and what api/
says has to fit the prototype; every disagreement is an error that names the line.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import choices, older
from .describe import Attribute, Choice, Line, Record, StructLine
from .fields import Field, check_lengths, field_of, own_field
from .layout import DescriptionError, Kind, Types, meant, refuse
from .refusals import looks
from .snapshot import Parameter, Prototype, Snapshot
from .structs import Struct, Structs

# Messages of the session are numbered below the operations of the client, so that one number names either.
FIRST_MESSAGE, FIRST_OPCODE, LAST_OPCODE = 1, 16, 0xFFFF
RESULTS = {"cuda": "CUresult", "nvml": "nvmlReturn_t"}
CALL = re.compile(r"\w+\(.*\)")  # C over the parameters of a function
NOT_SERVED = ("unsupported", "refused")
TOO_SMALL = {"nvml": "NVML_ERROR_INSUFFICIENT_SIZE"}  # for what there is; the number is told beside it


@dataclass
class Op:
    """One operation on the wire, or one message."""

    name: str
    number: int
    kind: str  # call post pure message
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
    """One API: its prototypes, its lines, what it exports; operations of the client and messages of the session."""

    name: str
    snapshot: Snapshot
    lines: dict[str, Line]
    exports: list[str]
    ops: list[Op] = field(default_factory=list)
    messages: list[Op] = field(default_factory=list)
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)  # name and text by code
    attributes: list[Attribute] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    beginnings: dict[str, dict[str, str]] = field(default_factory=dict)  # by function: outputs, what they hold at first

    def resolve(self, line: Line) -> Line:
        """The line that answers for an alias or a per-thread form; an older form answers itself."""
        while line.kind in ("alias", "per_thread"):
            line = self.lines[line.target]
        return line

    def prototype(self, name: str) -> Prototype | None:
        """The prototype, from the header or else from the line; None where neither declares it."""
        line = self.lines.get(name)
        if name not in self.snapshot.functions and line and line.params:
            return Prototype(name, RESULTS[self.name], tuple(Parameter(n, t) for n, t in line.params.items()))
        return self.snapshot.functions.get(name)

    def head(self, name: str) -> Prototype | None:
        """What a name is exported as: by its own prototype, or by that of the function that answers for it."""
        return self.prototype(name) or self.prototype(self.resolve(self.lines[name]).name)


@dataclass
class Model:
    """Everything that the emitters need."""

    apis: list[Api]
    types: Types
    kinds: list[Kind]
    structs: dict[str, Struct]
    procaddress: dict[str, dict[str, list[tuple[int, str]]]]
    records: list[Record]
    wire: list[Path]  # headers of what lies in bytes that are laid out by hand

    @property
    def ops(self) -> list[Op]:
        """All operations by number."""
        return _by_number(o for a in self.apis for o in a.ops)

    @property
    def ends_with(self) -> dict[str, set[str]]:
        """Kinds of handle, and the kinds of what the driver tells of such an object, which ends with it."""
        found: dict[str, set[str]] = {}
        for op in self.ops:
            kinds = {f.name: f.kind for f in op.fields if f.role == "handle"}
            for item in op.fields:
                if item.role == "fresh":
                    found.setdefault(kinds[item.owner], set()).add(item.kind)
        return found

    @property
    def kept_of(self) -> set[str]:
        """Kinds of handle as long as whose objects something that was told stays at its address."""
        kinds = [{f.name: f.kind for f in op.fields} for op in self.ops]
        return {at[f.owner] for op, at in zip(self.ops, kinds, strict=True) for f in op.fields if f.role == "outkept"}

    @property
    def schema(self) -> bytes:
        """What both sides compare first."""
        from .layouts import layouts, schema  # which reads models

        return schema(layouts(self))

    @property
    def frames(self) -> list[Op]:
        """All operations and messages by number."""
        return _by_number(o for a in self.apis for o in a.ops + a.messages)


def _by_number(ops: Iterable[Op]) -> list[Op]:
    return sorted(ops, key=lambda o: o.number)


def load(folder: Path, *, extend_lock: bool = False) -> Model:
    """Reads api/ at `folder`; with `extend_lock`, numbers what has no number yet and writes the two lock files."""
    kinds = [Kind(*row) for row in _run(folder / "handles.py")["KINDS"]]
    exports = json.loads((folder / "exports.json").read_text())
    apis = []
    for name in ("cuda", "nvml"):
        snapshot = Snapshot.load(folder / "snapshot" / f"{name}.json")
        apis.append(Api(name, snapshot, _lines(folder / name), list(exports[name])))
    types = Types([a.snapshot for a in apis], kinds)
    records = _records(folder, types)
    structs = Structs(_structs(folder), types)
    lock = _Lock(folder / "opcodes.lock", extend_lock, FIRST_OPCODE, LAST_OPCODE)
    told = _Lock(folder / "messages.lock", extend_lock, FIRST_MESSAGE, FIRST_OPCODE - 1)
    for api in apis:
        api.attributes = _attributes(folder / api.name, types)
        _check_total(api, types)
        api.beginnings = _beginnings(folder / api.name, api)
        found = [_run(path).get("CHOICES", []) for path in sorted((folder / api.name).glob("*.py"))]
        api.choices = [said for some in found for said in some]
        _join_older(api, types)
        for said in api.choices:
            choices.head(said, api, types)
        for line in api.lines.values():
            operation = _operation(api, line, types, told if line.kind == "message" else lock)
            if operation:
                (api.messages if operation.kind == "message" else api.ops).append(operation)
    lock.save()
    told.save()
    table = json.loads((folder / "procaddress.json").read_text())["names"]
    procaddress = {n: {f: [(int(v), s) for v, s in rows] for f, rows in flags.items()} for n, flags in table.items()}
    raw = json.loads((folder / "errors.json").read_text())
    for api in apis:
        api.errors = {int(code): (pair[0], pair[1]) for code, pair in raw[api.name].items()}
    wire = sorted((folder.parent / "native/wire").glob("*.h"))
    return Model(apis, types, kinds, structs.by_name, procaddress, records, wire)


def _run(path: Path) -> dict[str, Any]:
    """What a file of declarations defines."""
    return runpy.run_path(str(path))


def _lines(folder: Path) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for path in sorted(folder.glob("*.py")):
        flat: list[Line] = []
        for entry in _run(path).get("FUNCTIONS", []):
            flat += entry if isinstance(entry, list) else [entry]
        for line in flat:
            if line.name in lines:
                raise refuse(line.place, line.name, f"has a line already, at {_short(lines[line.name])}")
            lines[line.name] = line
    for line in [x for x in lines.values() if x.like]:
        if line.like not in lines or not lines[line.like].kind.startswith("op-"):
            raise refuse(line.place, line.name, f"no operation is called {line.like!r}{meant(line.like, lines)}")
        lines[line.name] = replace(lines[line.like], name=line.name, like=line.like, place=line.place)
    return lines


def _records(folder: Path, types: Types) -> list[Record]:
    """Structs of our own, whose sizes are known from here on."""
    found = [record for path in sorted(folder.glob("*/*.py")) for record in _run(path).get("RECORDS", [])]
    for record in found:
        size = 0
        for name, ctype in record.fields.items():
            if not types.size(ctype) or size % types.size(ctype):
                raise refuse(record.place, record.name, f"{name} is {ctype!r}, of no known size or in no good place")
            size += types.size(ctype)
        types.learn(f"struct tpg_{record.name}", size)
    return found


def _attributes(folder: Path, types: Types) -> list[Attribute]:
    """What the client answers for attributes of a device, each of which there is, and once."""
    found: dict[str, Attribute] = {}
    known = types.enumerators("CUdevice_attribute")
    for path in sorted(folder.glob("*.py")):
        for said in _run(path).get("ATTRIBUTES", []):
            if said.name not in known:
                raise refuse(said.place, said.name, f"is no attribute of a device{meant(said.name, known)}")
            if said.name in found:
                raise refuse(said.place, said.name, "has an answer already")
            found[said.name] = said
    return list(found.values())


def _beginnings(folder: Path, api: Api) -> dict[str, dict[str, str]]:
    """By exported name, each of which is there, and once; a per-thread form has its own or that of its target."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.py")):
        for said in _run(path).get("BEGINNINGS", []):
            for name in said.names:
                if name not in api.exports:
                    raise refuse(said.place, name, f"the driver exports no such name{meant(name, api.exports)}")
                if name in found:
                    raise refuse(said.place, name, "has a beginning already")
                prototype = api.prototype(name)
                types = {p.name: p.type for p in prototype.params} if prototype else {}
                for output in said.values:
                    if output not in types:
                        reason = f"has no parameter {output!r}{meant(output, list(types))} (it has {list(types)})"
                        raise refuse(said.place, name, reason)
                    if not types[output].removeprefix("const ").endswith("**" if "const " in types[output] else "*"):
                        raise refuse(said.place, name, f"{output} is {types[output]!r}, which is no output")
                found[name] = said.values
    targets = {name: line.target for name, line in api.lines.items() if line.kind in ("alias", "per_thread")}
    return {name: found[target] for name, target in targets.items() if target in found} | found


def _structs(folder: Path) -> dict[str, StructLine]:
    lines: dict[str, StructLine] = {}
    for path in sorted(folder.glob("*/*.py")):
        for line in _run(path).get("STRUCTS", []):
            if line.name in lines:
                raise refuse(line.place, line.name, "has a declaration already")
            lines[line.name] = line
    return lines


def _short(line: Line) -> str:
    return "/".join(Path(line.place).parts[-3:])


WORDS_OF_A_LINE = {
    "session": ("driver", "hand"),
    "after_loss": ("", "ok"),
}
SESSION_CALL = re.compile(r"\w+(?:->\w+\.\w+)?\(.*\)")  # C over what the frame carries


def _check_total(api: Api, types: Types) -> None:
    own = {n for n, line in api.lines.items() if line.kind != "message" and not line.kind.startswith("op-")}
    for line in api.lines.values():
        _check_line(api, line, types)
    missing = sorted(set(api.exports) - own)
    if missing:
        raise DescriptionError(f"api/{api.name}: {len(missing)} exported names have no line, for example {missing[:5]}")


def _check_line(api: Api, line: Line, types: Types) -> None:
    for word, allowed in WORDS_OF_A_LINE.items():
        said = getattr(line, word)
        if said not in allowed and not (word == "session" and SESSION_CALL.fullmatch(said)):
            more = ", and no call" if word == "session" else ""
            raise refuse(line.place, line.name, f"{word} is {said!r}, which is none of {list(allowed)}{more}")
    if line.kind == "message" and api.name != "cuda":
        raise refuse(line.place, line.name, f"only the client of the driver API takes messages, not that of {api.name}")
    if line.kind == "message" or line.kind.startswith("op-"):
        if line.kind not in ("message", "op-call", "op-post", "op-pure"):
            raise refuse(line.place, line.name, f"an operation is a call, a post or pure, not {line.kind[3:]!r}")
        if line.name in api.exports:
            raise refuse(line.place, line.name, "an operation of our own cannot have the name of an exported function")
        return
    if line.name not in api.exports:
        raise refuse(line.place, line.name, f"the driver exports no such name{meant(line.name, api.exports)}")
    if line.kind in ("alias", "per_thread"):
        target = api.lines.get(line.target)
        if target is None or target.kind == "per_thread":
            raise refuse(line.place, line.name, f"target {line.target!r} is not a line of its own or an alias")
        mine, other = api.prototype(line.name), api.prototype(line.target)
        if mine and other and [p.type for p in mine.params] != [p.type for p in other.params]:
            raise refuse(line.place, line.name, f"its arguments differ from those of {line.target}")
    elif line.kind == "older":
        target = api.lines.get(line.target)
        if target is None or target.kind in ("older", "per_thread", *NOT_SERVED):
            raise refuse(line.place, line.name, f"target {line.target!r} is not a line that answers itself or an alias")
    elif line.kind not in NOT_SERVED and not api.prototype(line.name):
        raise refuse(line.place, line.name, "no header declares it")
    if line.kind in ("local", "custom"):
        own = api.prototype(line.name)
        looks(line, own.params if own else (), types, types.enumerators(RESULTS[api.name]))
        _check_answer(line)
        names = [p.name for p in own.params] if own else []
        if line.lender and line.lender not in names:
            reason = f"lender is {line.lender!r}, which is no parameter{meant(line.lender, names)} (it has {names})"
            raise refuse(line.place, line.name, reason)
    if line.kind == "refused":
        codes = types.enumerators(RESULTS[api.name])
        if line.code not in codes:
            raise refuse(line.place, line.name, f"{line.code!r} is no error of {api.name}{meant(line.code, codes)}")
        looks(line, prototype.params if (prototype := api.prototype(line.name)) else (), types, codes)
    for word, hook in (("check", line.check), ("noted", line.noted)):
        if isinstance(hook, str) and not CALL.fullmatch(hook):
            raise refuse(line.place, line.name, f"{word} is {hook!r}, which is no call")
    for name in line.ops.split():
        sent = api.lines.get(name)
        if sent is None or sent.kind.removeprefix("op-") not in ("call", "post", "pure"):
            raise refuse(line.place, line.name, f"no operation is called {name!r}{meant(name, api.lines)}")


def _check_answer(line: Line) -> None:
    """What is given, or whose call gives it: one of them, and nothing that is found in vain."""
    if line.by and not CALL.fullmatch(line.by):
        raise refuse(line.place, line.name, f"by is {line.by!r}, which is no call")
    if line.by and line.gives is not None:
        raise refuse(line.place, line.name, f"gives what {line.maker} is to give: say one of them")
    if line.finds and not line.by and line.gives is None:
        raise refuse(line.place, line.name, f"finds {next(iter(line.finds))!r} for nobody: say by, or what it gives")


class _Lock:
    """A file of one `number name` a line, append-only, with numbers from `first` to `last`."""

    def __init__(self, path: Path, extend: bool, first: int, last: int) -> None:
        self.path, self.extend, self.first, self.last, self.changed = path, extend, first, last, False
        self.numbers: dict[str, int] = {}
        if path.exists():
            for text in path.read_text().splitlines():
                number, name = text.split()
                self.numbers[name] = int(number)

    def number(self, line: Line) -> int:
        name = line.name
        if name not in self.numbers:
            if not self.extend:
                reason = f"no number in {self.path.name}; run the generator with --lock and commit it"
                raise refuse(line.place, name, reason)
            self.numbers[name] = max(self.numbers.values(), default=self.first - 1) + 1
            self.changed = True
            if self.numbers[name] > self.last:
                raise refuse(line.place, name, f"{self.path.name} is full, {self.last} is its last number")
        return self.numbers[name]

    def save(self) -> None:
        if self.changed:
            rows = sorted((n, name) for name, n in self.numbers.items())
            self.path.write_text("".join(f"{n} {name}\n" for n, name in rows))


def _operation(api: Api, line: Line, types: Types, lock: _Lock) -> Op | None:
    if line.kind in ("call", "post", "pure"):
        prototype = api.prototype(line.name)
        assert prototype is not None
        names = [p.name for p in prototype.params]
        for key in line.roles:
            if key not in names:
                raise refuse(line.place, line.name, f"has no parameter {key!r}{meant(key, names)} (it has {names})")
        fields = [f for p in prototype.params if (f := field_of(line, p, types)) is not None]
        check_lengths(line, fields)
        for item in fields:
            if item.owner and item.owner not in names:
                raise refuse(line.place, line.name, f"{item.name} is to end with {item.owner!r}, which is no parameter")
            handles = [f.name for f in fields if f.role == "handle"]
            if item.role == "fresh" and item.owner not in handles:
                raise refuse(line.place, line.name, f"{item.name} is to end with {item.owner!r}, which is no handle")
            if item.by and item.by not in names:
                raise refuse(line.place, line.name, f"{item.name} is to be kept by {item.by!r}, which is no parameter")
        told = {"versioned": ("outversioned", 0), "fresh": ("outfresh", 8)}
        fields += [Field(f.name, told[f.role][0], f.ctype, told[f.role][1], f.kind) for f in fields if f.role in told]
        pointees = {p.name: p.type.removesuffix("*").strip() for p in prototype.params}
        wanted = [(f.name, pointees[f.name]) for f in fields if f.role == "wanted"]
        fields += [Field(name, "outwanted", ctype, types.size(ctype)) for name, ctype in wanted]
        rooms = [f.name for f in fields if f.role == "room"]
        if rooms and (api.name not in TOO_SMALL or len(rooms) > 1 or line.kind != "call"):
            reason = f"{rooms[0]} is room: that is for a call of {' or '.join(TOO_SMALL)}, and once"
            raise refuse(line.place, line.name, reason)
        fields += [Field(name, "outroom", "unsigned int", 4) for name in rooms]
        fields += [Field("status", "outstatus", "int", 4) for _ in rooms]
        both = [name for name, role in line.roles.items() if role == "both"]
        fields += [Field(name, "outboth", pointees[name], types.size(pointees[name])) for name in both]
        changed = [f for f in fields if line.roles.get(f.name, "").startswith("changed ")]
        fields += [replace(item, role="outchanged") for item in changed]
        op = Op(line.name, lock.number(line), line.kind, line, fields, prototype, api.name)
    elif line.kind == "message" or line.kind.startswith("op-"):
        fields = [own_field(line, name, text, types) for name, text in line.roles.items()]
        op = Op(line.name, lock.number(line), line.kind.removeprefix("op-"), line, fields, None, api.name)
    else:
        return None
    written = [f.name for f in op.fields if f.is_out]
    if op.kind == "post" and written:
        raise refuse(line.place, line.name, f"a post has no reply that could bring {written[0]}")
    named = [f.name for f in op.fields if f.role not in ("value", "bytes", "array", "string")]
    if op.kind == "message" and named:
        raise refuse(line.place, line.name, f"a message carries values and bytes; nothing would translate {named[0]}")
    if op.kind in ("post", "pure") and line.completes:
        raise refuse(line.place, line.name, f"completes=True, but a {op.kind} has no answer that could say so")
    if line.says_why and line.kind != "op-call":
        raise refuse(line.place, line.name, "says_why=True of what gets no answer of its own; only a call does")
    if line.asks.split(" ")[0] not in ("", "share", "import"):
        raise refuse(line.place, line.name, f'asks={line.asks!r}; it is "share", "import" or "import K"')
    if line.asks and (line.session != "hand" or op.kind != "call" or not op.outputs()):
        raise refuse(line.place, line.name, "asks= of what is no call with results, by hand in the session")
    if line.turns and (op.kind != "call" or api.name != "cuda"):
        raise refuse(
            line.place,
            line.name,
            f"turns=True of a {op.kind} of {api.name}; only who waits for the driver API takes turns",
        )
    if line.reports and not line.completes:
        raise refuse(line.place, line.name, "reports=True without completes=True; what reports a late error has waited")
    if line.unsafe not in (True, False, *(["last"] if line.kind != "refused" else [])):
        raise refuse(line.place, line.name, f'unsafe={line.unsafe!r}; it is True or "last"')
    carried = {f.name for f in op.fields if not f.is_out}
    said = set(re.findall(r"[A-Za-z_]\w*", line.waits)) if isinstance(line.waits, str) else set()
    if line.waits not in (True, False, "asked") and not said & carried:
        raise refuse(line.place, line.name, f'waits={line.waits!r}; it is True, "asked", or C over what it carries')
    ended = [f.name for f in op.fields if f.role in ("new", "fresh", "gone")]
    if op.kind == "pure" and ended:
        raise refuse(line.place, line.name, f"an answer that is remembered cannot make or end {ended[0]}")
    return op


def _join_older(api: Api, types: Types) -> None:
    """Older forms are as their targets in when they may be called, and hand them what they want."""
    for line in [x for x in api.lines.values() if x.kind == "older"]:
        target = api.resolve(api.lines[line.target])
        older.joined(line, api.prototype(line.name), target, api.prototype(line.target), types)
        api.lines[line.name] = replace(line, anytime=target.anytime, implicit=target.implicit, shows=target.shows)
