"""What the hand-written C of the client sends, held against what the lines of api/ say in `ops`.

python -m tensor_fusion.apigen.senders --api api --client native/client

The C is read as text: the bodies of functions, and what each of them calls. A line is untrue when it names an operation
that nothing under its function sends, or leaves out one that its function sends in its own file. Operations that nobody
sends, and `local` functions that send some, are untrue as well.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from . import choices
from .describe import Line
from .layout import DescriptionError, refuse
from .model import Api, Model, load

PREFIX = {"cuda": "tpc", "nvml": "tpn"}
PARAMETERS = r"(?:[^;{}#()]|\([^()]*\))*"
BODY = r"(?: ([^\n]*) \}$|\n(.*?)^\})"
FUNCTION = re.compile(rf"^[A-Za-z_][^\n;{{}}#()]*?(\w+)\({PARAMETERS}\) \{{{BODY}", re.MULTILINE | re.DOTALL)
MACRO = re.compile(r"^#define (\w+)\(([^)]*)\)((?:[^\n]*\\\n)*[^\n]*)\n", re.MULTILINE)
SENDER = re.compile(r"\b(?:tpc|tpn)_(?:post|call|pure|sent)_(\w+)|\bTPG_OP_(\w+)|\bsend_(\w+)")


@dataclass
class _Function:
    """One function of the C, or of a line that is made by calls of C: where it is, and the names in it."""

    path: Path
    uses: set[str] = field(default_factory=set)
    sends: set[str] = field(default_factory=set)


def _without_comments(text: str) -> str:
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


def _expanded(text: str) -> str:
    """The text, with the functions that macros make at the top level written out behind it."""
    macros = {name: (params.split(","), body.replace("\\\n", "\n")) for name, params, body in MACRO.findall(text)}
    plain = MACRO.sub("", text)
    for name, arguments in re.findall(r"^(\w+)\(([^()]*)\)$", plain, re.MULTILINE):
        if name in macros:
            params, body = macros[name]
            for param, argument in zip(params, arguments.split(","), strict=False):
                body = re.sub(rf"(?:##)?\b{param.strip()}\b(?:##)?", argument.strip(), body)
            plain += "\n" + textwrap.dedent(re.sub(r" +$", "", body, flags=re.MULTILINE)) + "\n"
    return plain


def _functions(client: Path, ops: set[str]) -> dict[tuple[str, str], _Function]:
    """Every function by file and name; one that other files may call is also there with no file."""
    found: dict[tuple[str, str], _Function] = {}
    for path in sorted(client.rglob("*.[ch]")):
        text = _expanded(_without_comments(path.read_text()))
        for match in FUNCTION.finditer(text):
            body = match[2] or match[3]
            sends = {a or b or c for a, b, c in SENDER.findall(body)} & ops
            function = _Function(path, set(re.findall(r"\b([A-Za-z_]\w*)\(", body)), sends)
            found[path.name, match[1]] = function
            if not match[0].startswith("static"):
                found["", match[1]] = function
    return found


def _of_lines(api: Api, ops: set[str]) -> dict[tuple[str, str], _Function]:
    """The generated functions that call some of the C by `finds` and `by`."""
    made = {}
    for choice in api.choices:
        uses = {f"{PREFIX[api.name]}_{choices.called(choice, text)[0]}" for text in choice.cases.values()}
        made["", f"tpg_{choice.name}"] = _Function(Path(choice.name), uses)
    for line in api.lines.values():
        called = " ".join([line.by, *line.finds.values()])
        if called.strip():
            uses = set(re.findall(r"\b([A-Za-z_]\w*)\(", called))
            sends = {a or b or c for a, b, c in SENDER.findall(called)} & ops
            made["", f"{PREFIX[api.name]}_{line.name}"] = _Function(Path(line.name), uses, sends)
    return made


def _reached(functions: dict[tuple[str, str], _Function], start: str, ops: set[str], *, far: bool) -> set[str]:
    """Operations sent by `start` and what it calls: in its own file alone, or anywhere."""
    todo, seen, sent = [functions["", start]], set(), set()
    while todo:
        function = todo.pop()
        sent |= function.sends
        for name in function.uses:
            exported = name.partition("_")[2]
            if exported in ops and name.startswith(("tpc_", "tpn_")):
                sent.add(exported)
            for known in (name, name.replace("_", "_do_", 1)):
                target = functions.get((function.path.name, known)) or (functions.get(("", known)) if far else None)
                if target and id(target) not in seen:
                    seen.add(id(target))
                    todo.append(target)
    return sent


def check(model: Model, client: Path) -> None:
    """Raises for the first line that is untrue."""
    for api in model.apis:
        ops = {op.name for op in api.ops}
        written = _functions(client / api.name, ops)
        _check_api(api, {**written, **_of_lines(api, ops)}, _functions(client / "core", ops))


def _check_api(api: Api, functions: dict[tuple[str, str], _Function], shared: dict[tuple[str, str], _Function]) -> None:
    ops = {op.name for op in api.ops}
    used = set().union(*(function.sends for function in [*functions.values(), *shared.values()]))
    for line in api.lines.values():
        function = line.maker or f"{PREFIX[api.name]}_{'do_' if line.looked_at else ''}{line.name}"
        if line.kind.startswith("op-") and line.name not in used:
            raise refuse(line.place, line.name, "nothing in the client sends this operation")
        if (line.kind not in ("custom", "local") and not line.wrapped) or (line.gives is not None and not line.ops):
            continue
        if line.maker.partition("_")[2] in api.lines:
            continue  # another name makes it, whose own line says what is sent
        if line.gives is not None:
            function = f"{PREFIX[api.name]}_{line.name}"
        if ("", function) not in functions:
            raise refuse(line.place, line.name, f"the client has no function {function}")
        if line.wrapped and line.name not in _reached(functions, function, ops, far=True):
            raise refuse(line.place, line.name, f"{function} never makes the call, by {_sent(function)}")
        if line.wrapped:
            continue
        if line.kind == "custom" and not line.ops:
            raise refuse(line.place, line.name, "a custom function without ops sends nothing: say local")
        _check_line(line, function, functions, ops)


def _sent(function: str) -> str:
    """The generated function that one written by hand makes the call with."""
    return function.replace("_", "_sent_", 1)


def _check_line(line: Line, function: str, functions: dict[tuple[str, str], _Function], ops: set[str]) -> None:
    said = set(line.ops.split())
    never = sorted(said - _reached(functions, function, ops, far=True))
    if never:
        raise refuse(line.place, line.name, f"ops says {never[0]!r}, which {function} never sends")
    unsaid = sorted(_reached(functions, function, ops, far=False) - said)
    if unsaid and line.kind == "local":
        raise refuse(line.place, line.name, f"{function} sends {unsaid[0]!r}: say custom")
    if unsaid:
        raise refuse(line.place, line.name, f"ops leaves out {unsaid[0]!r}, which {function} sends")


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks ops= of api/ against the C of the client.")
    parser.add_argument("--api", type=Path, required=True)
    parser.add_argument("--client", type=Path, required=True)
    options = parser.parse_args()
    try:
        check(load(options.api.resolve()), options.client.resolve())
    except DescriptionError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
