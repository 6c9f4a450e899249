"""The pages for users, read: their fenced blocks with the marks before them, the commands in them, their links.

A mark is a comment on the line before a fence. What it says of the block:

    <!-- start -->       it is started and left running; its first line begins with "ready"
    <!-- run -->         it is run, and ends with 0
    <!-- run fails -->   it is run, and ends with 1
    <!-- prints -->      the block before printed these lines, in this order; … stands for anything
    <!-- vm: NAME -->    it has what `tensor-fusion vm` gives under that name
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensor_fusion import config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CHINESE = DOCS / "zh"
NAMES = ("install", "virtual-machines", "containers", "troubleshooting", "operations")
_FENCE = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^( *)```(\w*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    section: int  # how many headings stand before it
    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    starts = [match.start() for match in _HEADING.finditer(without_fences(text))]
    found = []
    for match in _FENCE.finditer(text):
        mark, indent, language, inside = match.groups()
        lines = [line.removeprefix(indent) for line in inside.splitlines()]
        found.append(Block(sum(at < match.start() for at in starts), mark or "", language, "\n".join(lines)))
    return found


def without_fences(text: str) -> str:
    """The text with its blocks blank, and as long as before."""
    return _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in _HEADING.findall(without_fences(page.read_text()))]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: small letters, no punctuation, a hyphen for each space."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


def links(page: Path) -> list[tuple[str, str]]:
    """File and anchor of each link to a file of ours; an empty file is the page itself."""
    return re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", without_fences(page.read_text()))


def commands(text: str) -> Iterator[list[str]]:
    """Each call of one of our two commands in a shell text: its name and its words."""
    text = re.sub(r"\s#\s.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    text = re.sub(r"\$\(([^()]*)\)", r"X\n\1\n", text)  # what is run inside another command is one of its own
    for part in re.split(r"&&|[;|\n]", text):
        try:
            words = shlex.split(part)
        except ValueError:  # one side of a quotation that was divided
            words = part.replace('"', " ").replace("'", " ").split()
        while words and (words[0] == "sudo" or re.match(r"\w+=", words[0])):
            words = words[1:]
        if words and (name := words[0].rpartition("/")[2].removeprefix("eval ")) in (
            "tensor-fusion",
            "tensor-fusion-worker",
        ):
            yield [name, *words[1:]]


def sections(page: Path) -> list[tuple[int, int, int, list[str]]]:
    """Of each section how many paragraphs, rows of tables and points it has, and what stands in it as code."""
    parts = re.split(r"^(?=#+ )", without_fences(page.read_text()), flags=re.MULTILINE)
    return [
        (
            len(re.split(r"\n\s*\n", part.strip())),
            len(re.findall(r"^\|", part, re.MULTILINE)),
            len(re.findall(r"^\s*(?:-|\d+\.) ", part, re.MULTILINE)),
            sorted(re.findall(r"`([^`\n]+)`", part)),
        )
        for part in parts
    ]


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_fences(page.read_text()))


def rows(page: Path) -> list[list[str]]:
    """The rows of all tables that begin with a sentence in quotation, without their headings."""
    found = []
    for line in page.read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)][1:-1]
        if cells and re.fullmatch(r"`[^`]+`", cells[0]) and " " in cells[0]:
            found.append(
                [
                    cells[0].strip("`"),
                    *(cell.strip("`") if index == 2 else cell for index, cell in enumerate(cells[1:])),
                ]
            )
    return found


# Every string that our code holds, with a gap where it puts in a value

GAP = "\0"
_LITERAL = r'"((?:[^"\\\n]|\\.)*)"'
# Literals side by side are one, and macros between them are what they stand for.
_JOINED = re.compile(rf"(?:\b[A-Z_]{{4,}}\s+)?{_LITERAL}(?:\s*(?:[A-Z_]{{4,}}\s*)?{_LITERAL})*")
_MACRO = re.compile(rf"^#define ([A-Z_]+) {_LITERAL}", re.MULTILINE)
_FORMAT = re.compile(r"%[-.0-9]*(?:ll|z|h)?[a-z]")


def source_strings() -> str:
    texts: list[str] = []
    for path in sorted((ROOT / "src/tensor_fusion").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_text(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for path in sorted(path for folder in ("client", "transport") for path in (ROOT / "native" / folder).rglob("*.c")):
        macros = dict(_MACRO.findall(path.read_text()))
        for joined in _JOINED.finditer(path.read_text()):
            one = joined[0]
            for name in re.findall(r"\b[A-Z_]{4,}\b", re.sub(_LITERAL, "", one)):
                one = re.sub(rf'"?\s*\b{name}\s*"', macros.get(name, GAP), one, count=1)
            one = re.sub(r'(?<!\\)"\s*"', "", one).strip('"').replace('\\"', '"')
            texts.append(_FORMAT.sub(GAP, one))
    return "\n".join(texts)


def _text(part: ast.expr) -> str:
    if isinstance(part, ast.Constant) and isinstance(part.value, str):
        return part.value
    name = part.value.id if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) else ""
    value = getattr(config, name, None)
    return value if name.isupper() and isinstance(value, str) else GAP


def stands_in(part: str, source: str) -> bool:
    """Whether the words are in a string, or begin in one and go on in another that is put in there.

    The shorter of two has 12 characters at least: a word or two stand somewhere by chance.
    """
    words = part.strip(" ,:;").split(" ")
    divided = ((" ".join(words[:at]).strip(" ,:;"), " ".join(words[at:])) for at in range(1, len(words)))
    long = ((first, second) for first, second in divided if min(len(first), len(second)) >= 12)
    return " ".join(words) in source or any(first in source and second in source for first, second in long)
