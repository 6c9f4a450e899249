"""What bounds a small read-back and a pinned copy: driver calls natively, then a program's calls natively and remotely.

    python tests/gpu/bounds.py [--wheel PATH] [--out DIR] [--seconds 240] [--quick] [--parts readback,copies]

Builds programs/bounds.c on this machine and runs each of its parts in a process of its own. `stack` is run natively and
over shared memory in turns and needs the wheel. Writes summary.txt (all tables) and results.json (every sample, in
nanoseconds) to --out after every part; prints the tables that the two missed figures hang on. Exit status 1 if a part
failed or a value that came was not the one that was sent. `--gpu sim` tries all of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run as runner
import suite
import transports
from compare import wrong_library
from harness import Program, alternating, run_process, say, table, tail

# The share of the time that each part gets, and how many samples of a row are enough.
PARTS = {"readback": (0.2, 3000), "copies": (0.35, 100), "calls": (0.05, 4000), "stack": (0.4, 300)}
KERNEL_FILES = (
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    "/sys/kernel/mm/transparent_hugepage/defrag",
    "/proc/sys/vm/nr_hugepages",
    "/proc/loadavg",
)


@dataclass
class Found:
    """Everything that the parts printed: rows with their samples, what is not there, what went wrong."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, text: str, side: str, turn: int) -> dict[str, Any] | None:
        """Take the lines of one process; returns the one that ends it, None when it did not get there."""
        end = None
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue  # a line that was cut short: its process is reported by its missing end
            if "row" in value:
                self.rows.append({"side": side, "turn": turn, **value["row"]})
            elif "absent" in value:
                sentence = f"{value['absent']}: not there on this machine ({value['why']})"
                self.absent += [sentence] if sentence not in self.absent else []
            elif "info" in value:
                self.infos.append(str(value["info"]))
            elif "end" in value:
                end = value
        return end if isinstance(end, dict) else None

    def wrong(self) -> list[str]:
        return [
            f"{row['part']} {row['side']} {row['variant']}: {row['wrong']} values were not the ones sent"
            for row in self.rows
            if row["wrong"]
        ]


def machine_facts() -> dict[str, str]:
    facts = {}
    for name in KERNEL_FILES:
        path = Path(name)
        facts[name] = path.read_text().strip() if path.is_file() else "not there"
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if " /dev/shm " in line]
    facts["/dev/shm"] = "; ".join(mounts) or "not mounted"
    nodes = sorted(path.name for path in Path("/sys/devices/system/node").glob("node[0-9]*"))
    facts["memory nodes"] = " ".join(nodes) or "not there"
    devices = Path("/sys/bus/pci/devices").glob("*")
    gpus = [path for path in devices if _text(path / "vendor") == "0x10de" and _text(path / "class").startswith("0x03")]
    facts["node of the GPU"] = " ".join(_text(path / "numa_node") for path in gpus) or "not visible"
    return facts


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e3:.2f}"


def middle(row: dict[str, Any], column: str) -> float | None:
    values = row["ns"].get(column)
    return statistics.median(values) if values else None


def waits(row: dict[str, Any]) -> float:
    """What is left of the total after the calls that submitted the work: median of the differences."""
    ns = row["ns"]
    calls = [ns[name] for name in ("launch", "copy", "word", "mark") if name in ns]
    return float(statistics.median(total - sum(call[i] for call in calls) for i, total in enumerate(ns["total"])))


def readback_tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    texts = []
    groups = dict.fromkeys((row["stream"], row["mode"], row["bytes"]) for row in rows)
    for stream, mode, size in groups:
        group = [row for row in rows if (row["stream"], row["mode"], row["bytes"]) == (stream, mode, size)]
        base = next((middle(row, "total") for row in group if row["variant"] == "copy, sync"), None)
        lines = []
        for row in group:
            if not row["ns"].get("total"):
                lines.append([row["variant"], "0", *[""] * 9])
                continue
            low, half, high = quartiles(row["ns"]["total"])
            lines.append(
                [
                    row["variant"], str(len(row["ns"]["total"])), *(microseconds(middle(row, c)) for c in
                    ("launch", "copy", "word")), microseconds(waits(row)), microseconds(low), microseconds(half),
                    microseconds(high), f"{half / base:.3f}" if base else "-", str(row["wrong"]),
                ]
            )  # fmt: skip
        head = ("variant", "n", "launch", "copy", "word", "wait", "25 %", "total us", "75 %", "x native", "wrong")
        texts.append(f"readback of {size} B, {stream} stream, {mode}\n" + table(head, lines))
    return texts


def copies_tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    texts = []
    for direction, size in dict.fromkeys((row["direction"], row["bytes"]) for row in rows):
        group = [row for row in rows if (row["direction"], row["bytes"]) == (direction, size) and row["ns"]]
        base = next(
            (middle(r, "total") for r in group if (r["source"], r["variant"]) == ("hostalloc", "context sync")), None
        )
        lines = []
        for row in group:
            low, half, high = quartiles(row["ns"]["total"])
            lines.append(
                [
                    row["source"], row["variant"], str(len(row["ns"]["total"])), microseconds(middle(row, "copy")),
                    microseconds(middle(row, "mark")), microseconds(low), microseconds(half), microseconds(high),
                    f"{size / half:.2f}", f"{base / half:.3f}" if base else "-", str(row["wrong"]),
                ]
            )  # fmt: skip
        head = ("memory", "waited for", "n", "copy", "mark", "25 %", "total us", "75 %", "GB/s", "x native", "wrong")
        texts.append(f"copies of {size >> 20} MiB {direction}\n" + table(head, lines))
    return texts


def calls_tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if row["ns"].get("call"):
            figures = [microseconds(value) for value in quartiles(row["ns"]["call"])]
            lines.append([row["variant"], str(len(row["ns"]["call"])), *figures, str(row["wrong"])])
    return ["single calls\n" + table(("call", "n", "25 %", "us", "75 %", "wrong"), lines)] if lines else []


def stack_tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Medians of the runs' medians, each call apart; a ratio below 1 is shorter than native."""
    lines = []
    for name, size in dict.fromkeys((row["variant"], row["bytes"]) for row in rows):
        half: dict[tuple[str, str], float] = {}
        for side in ("native", "shmem"):
            for column in ("launch", "copy", "wait", "total"):
                runs = [middle(r, column) for r in rows if (r["variant"], r["bytes"], r["side"]) == (name, size, side)]
                known = [value for value in runs if value is not None]
                if known:
                    half[side, column] = statistics.median(known)
        native, remote = half.get(("native", "total")), half.get(("shmem", "total"))
        figures = [
            f"{microseconds(half.get(('native', column)))} > {microseconds(half.get(('shmem', column)))}"
            for column in ("launch", "copy", "wait", "total")
        ]
        lines.append([name, str(size), *figures, f"{remote / native:.3f}" if native and remote else "-"])
    head = ("a program's step", "bytes", "launch", "copy", "wait", "total us", "shmem / native")
    return ["native > shmem, call by call\n" + table(head, lines)] if lines else []


TABLES = {"readback": readback_tables, "copies": copies_tables, "calls": calls_tables, "stack": stack_tables}


def all_tables(found: Found) -> list[str]:
    texts = []
    for part, make in TABLES.items():
        texts += make([row for row in found.rows if row["part"] == part])
    return texts


def run_part(
    place: transports.Place, found: Found, part: str, side: str, turn: int, seconds: float, turns: int, most: int
) -> None:
    command = [str(place.options.work / "bin" / "bounds"), part, f"{seconds:.1f}", str(turns), str(most)]
    log = place.logs / f"bounds-{part}-{turn}-{side}"
    # Beside the timed turns: starting, pinning memory, a few turns at the least of every group.
    done = run_process(command, place.environment(side), seconds + 60, log)
    end = found.add(done.stdout, side, turn)
    what = f"{part} {side} {turn}"
    if end is None or done.returncode != 0:
        state = "no end in time" if done.timed_out else f"ended with {done.returncode}"
        found.errors.append(f"{what}: {state}: " + " | ".join(tail(done.stderr, 4)))
        return
    wrong = wrong_library("native" if side == "native" else "remote", end["libraries"], place.client_folder)
    if wrong:
        found.errors.append(f"{what}: {wrong}")
        found.rows = [row for row in found.rows if (row["part"], row["side"], row["turn"]) != (part, side, turn)]


def alternating_sides(pairs: int) -> list[str]:
    return ["shmem" if side == "remote" else side for side in alternating(pairs)]


def save(out: Path, found: Found, facts: dict[str, Any]) -> str:
    errors = [f"ERROR {error}" for error in found.errors + found.wrong()]
    notes = [f"{name}: {value}" for name, value in facts["kernel"].items()]
    text = "\n\n".join([*all_tables(found), "\n".join([*notes, *found.infos, *found.absent, *errors])])
    (out / "summary.txt").write_text(text + "\n")
    value = {**facts, "rows": found.rows, "absent": found.absent, "infos": found.infos, "errors": errors}
    # Compact: every sample is in it, and what comes back from a GPU machine is bounded.
    partial = out / "results.json.partial"
    partial.write_text(json.dumps(value, separators=(",", ":")) + "\n")
    partial.replace(out / "results.json")
    return text


def spoken(text: str) -> str:
    """The tables that the missed figures hang on; the others are in summary.txt."""
    wanted = ("readback of 4 B, default", "copies of 16 MiB", "single calls", "native > shmem")
    parts = text.split("\n\n")
    return "\n\n".join([part for part in parts[:-1] if part.startswith(wanted)] + parts[-1:])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wheel", type=Path, help="wheel to install, or a folder with the product")
    parser.add_argument("--out", type=Path, default=suite.REPOSITORY / ".gpu" / "bounds")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor-fusion-gpu")
    parser.add_argument("--seconds", type=float, default=240.0, help="of measuring, all parts together")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--pairs", type=int, default=5, help="runs of each side of the part `stack`")
    parser.add_argument("--most-mib", type=int, default=256, help="the largest copy")
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, two pairs: to see that all works")
    parser.add_argument("--gpu", choices=("real", "sim"), default="real")
    given = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in given.parts.split(",")]
    unknown = set(given.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    wheel = given.wheel or max(
        (suite.REPOSITORY / ".gpu").glob("tensor_fusion-*.whl"), key=lambda path: path.stat().st_mtime, default=None
    )
    if wheel is None or not wheel.exists():
        parser.error("no wheel: pass --wheel, or put tensor_fusion-*.whl into .gpu/")
    seconds = given.seconds / 10 if given.quick else given.seconds
    pairs = 2 if given.quick else given.pairs
    options = runner.Options(wheel.resolve(), given.out.resolve(), given.work.resolve(), (), pairs, 1, 1e9)
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    found = Found()
    facts = {"machine": runner.machine(), "kernel": machine_facts(), "wheel": wheel.name, "cores": os.cpu_count()}
    state = runner.Run(options, Path(), Path(), None, begun)  # type: ignore[arg-type]
    runner.build(state, [Program("bounds", ("{bin}/bounds",))])
    found.errors += state.notes
    text = save(options.out, found, facts)
    if found.errors:
        say(text)
        return 1
    # No worker and no session of ours is there while the driver is measured by itself.
    place = transports.Place(options, ("native",), given.gpu == "sim")
    whole = sum(PARTS[part][0] for part in parts)
    try:
        for part in parts:
            share, turns = PARTS[part]
            time_s = seconds * share / whole
            sides = ["native"]
            if part == "stack":
                try:
                    place = transports.Place(options, ("native", "shmem"), given.gpu == "sim")
                except RuntimeError as error:
                    found.errors.append(f"stack: no worker: {error}")
                    sides = []
                else:
                    sides = alternating_sides(pairs)
            for turn, side in enumerate(sides):
                run_part(place, found, part, side, turn, time_s / len(sides), turns, given.most_mib)
            text = save(options.out, found, facts)
            say(f"[{time.monotonic() - begun:6.1f} s] {part} done, {len(found.errors)} errors")
    finally:
        place.close()
    say(spoken(text))
    return 1 if found.errors or found.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
