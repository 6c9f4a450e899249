"""Where C files and headers of native/ lie, for tests that compile some of them: by room, in whichever family."""

from __future__ import annotations

from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "native"


def sources(room: str, *names: str) -> list[Path]:
    """The files of a room with those names, patterns among them; each name has at least one file."""
    found = [sorted((NATIVE / room).rglob(f"{name}.c")) for name in names]
    missing = [name for name, paths in zip(names, found, strict=True) if not paths]
    assert not missing, f"native/{room} has no {missing}"
    return [path for paths in found for path in paths]


def includes(*rooms: str) -> list[str]:
    """The options by which a compiler finds the headers of those rooms."""
    headers = [path for room in rooms for path in sorted((NATIVE / room).rglob("*.h"))]
    return [f"-I{folder}" for folder in dict.fromkeys(path.parent for path in headers)]
