"""Print the arrows between the families of the client and of the session that go back, and the circles that they close.

    python tools/rooms.py [client/cuda|session]

An arrow leads from a file to another that it needs: it includes that header, or it names a function, a variable or a
macro that is defined there. The families of a side are in the order of ORDER; an arrow should lead to a family that
comes before. Generated code (tpg_) is in no family: it sees all of them, as the table of calls has to.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "native"
# What a family may need comes before it. Files beside the folders come last: they start everything.
START = "start"
ORDER = {
    "client/cuda": ("process", "stream", "memory", "copy", "code", "graph", "runtime", START),
    "session": ("link", "process", "stream", "memory", "copy", "code", "graph", "nvml", START),
}
INCLUDE = r'^\s*#\s*include\s*[<"]([^>"]+)[>"]'
TAG = r"\b(?:struct|union|enum)\s+\w+"
COMMENT = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
# What begins in column 0: a function with its body, a variable that is not only declared, a macro.
FUNCTION = r"^[A-Za-z_][^;{}()#=]*?\b(\w+)\((?:[^;{}]*)\)\s*\{"
NO_VARIABLE = r"(?!extern\b|static\b|typedef\b|(?:struct|union|enum) \w+;)"
VARIABLE = rf"^{NO_VARIABLE}[A-Za-z_][^;{{}}()\n=]*?\b(\w+)(?:\[[^;=\n]*\])*\s*(?:=|;)"
MACRO = r"^#\s*define\s+(\w+)"
OURS = r"tp[cw]_|TP[CW]_(?!\w*_H$)"


@dataclass(frozen=True)
class Arrow:
    """From one file to another, both by family and name, with what it goes by."""

    source: tuple[str, str]
    target: tuple[str, str]
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'/'.join(self.source)} -> {'/'.join(self.target)}: {' '.join(self.names)}"


class Side:
    """The families of one side, in their order, and the arrows between files of different ones."""

    def __init__(self, root: Path, order: tuple[str, ...]) -> None:
        self.order = order
        texts = {path: plain(path.read_text()) for path in sorted(root.rglob("*.[ch]"))}
        place = {path: (family(root, path), path.name) for path in texts}
        homes = {path.name: path for path in texts if path.suffix == ".h"}
        for path, text in texts.items():
            homes |= dict.fromkeys(defined(path, text), path)
        self.families = {name for name, _ in place.values()}
        found: dict[tuple[Path, Path], set[str]] = {}
        for path, text in texts.items():
            included = set(re.findall(INCLUDE, text, flags=re.MULTILINE))
            words = set(re.findall(r"\w+", re.sub(f"{INCLUDE}|{TAG}", "", text, flags=re.MULTILINE)))
            for name in (included | words) & homes.keys():
                if place[homes[name]][0] != place[path][0]:
                    found.setdefault((path, homes[name]), set()).add(name)
        self.arrows = [Arrow(place[a], place[b], tuple(sorted(names))) for (a, b), names in sorted(found.items())]

    def back(self) -> list[Arrow]:
        height = {name: number for number, name in enumerate(self.order)}
        return [arrow for arrow in self.arrows if height[arrow.target[0]] > height[arrow.source[0]]]

    def circles(self) -> list[tuple[str, ...]]:
        """Families that reach each other, each group in the order of the side."""
        reach = {name: {name} for name in self.order}
        for arrow in self.arrows:
            reach[arrow.source[0]].add(arrow.target[0])
        for middle in reach:
            for seen in reach.values():
                if middle in seen:
                    seen |= reach[middle]
        groups = {tuple(other for other in reach if other in reach[name] and name in reach[other]) for name in reach}
        return sorted(group for group in groups if len(group) > 1)


def family(root: Path, path: Path) -> str:
    inside = path.relative_to(root).parts
    return inside[0] if len(inside) > 1 else START


def plain(text: str) -> str:
    """C without comments and strings; the names of included files remain."""
    return re.sub(COMMENT, lambda found: found[0] if found[0].endswith('.h"') else " ", text, flags=re.DOTALL)


def defined(path: Path, text: str) -> set[str]:
    """Names of ours that a file defines for others."""
    found = set(re.findall(MACRO, text, flags=re.MULTILINE))
    functions = re.finditer(FUNCTION, text, flags=re.MULTILINE)
    found |= {one[1] for one in functions if path.suffix == ".h" or not one[0].startswith("static ")}
    found |= set(re.findall(VARIABLE, text, flags=re.MULTILINE))
    return {name for name in found if re.match(OURS, name)}


def side(name: str) -> Side:
    return Side(NATIVE / name, ORDER[name])


def main() -> None:
    for name in sys.argv[1:] or ORDER:
        found = side(name)
        wrong = found.back()
        print(f"{name}: {len(wrong)} of {len(found.arrows)} arrows go back")
        for arrow in wrong:
            print(f"  {arrow}")
        for group in found.circles():
            print(f"  circle: {' '.join(group)}")


if __name__ == "__main__":
    main()
