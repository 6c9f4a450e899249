"""What transports.py measures, what each figure must reach, and every sample in the order of the turns."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import table

SIDES = ("native", "shmem", "tcp", "tcp-0.1", "tcp-0.5", "tcp-0.8")
# Named ones: TCP with a secret, shared memory in the full jail. They take part where the side behind them does.
GUARDED = {"tls": "tcp", "jail": "shmem"}
SHORT = ("native", "shmem", "tcp")
BEFORE = "before-"  # in front of a side: the same transport, served by the wheel that --before names
KEPT = 0.97  # of the speed before: what the interval of the paired ratio must reach


@dataclass(frozen=True)
class Bound:
    """What one figure of one remote side must reach: a ratio to native (`ratio`) or a value of its own."""

    part: str
    metric: str
    side: str
    rule: str  # ">= x", "<= x" (ratios), ">=", "<=" (values)
    bound: float
    aim: str = ""

    def reached(self, native: float | None, remote: float | None) -> bool:
        if remote is None:
            return False
        value = remote
        if self.rule.endswith("x"):
            if not native:
                return False
            value = remote / native
        return value >= self.bound if self.rule.startswith(">") else value <= self.bound

    def words(self) -> str:
        ratio = self.rule.endswith("x")
        return f"{self.rule[:2]} {self.bound:g}{' x native' if ratio else ''}" + (
            f", aim {self.aim}" if self.aim else ""
        )


BOUNDS = (
    Bound("generate", "tokens_per_s", "shmem", ">= x", 1.05, "1.2"),
    Bound("generate", "tokens_per_s", "tcp", ">= x", 1.0, "1.15"),
    Bound("generate", "tokens_per_s", "tcp-0.1", ">= x", 0.97, "1.1"),
    Bound("generate", "tokens_per_s", "tcp-0.5", ">= x", 0.95, "1.05"),
    Bound("generate", "tokens_per_s", "tcp-0.8", ">= x", 0.93, "1.0"),
    Bound("census", "round_trips_per_token", "shmem", "<=", 3, "2"),
    Bound("null_call", "null_p50_us", "shmem", "<=", 1.5, "0.7"),
    Bound("null_call", "null_p999_us", "shmem", "<=", 20, "5"),
    Bound("null_call", "null_p50_us", "tcp", "<=", 15, "7"),
    Bound("launch_cost", "launch_us", "shmem", "<=", 0.4, "0.2"),
    Bound("launch_cost", "launches_per_s", "shmem", ">= x", 0.95, "1.0"),
    Bound("small", "sum_item_us", "shmem", "<= x", 1.3, "1.0"),
    Bound("copies", "h2d_pinned_256m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "d2h_pinned_256m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "h2d_pinned_16m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "d2h_pinned_16m_gbps", "shmem", ">= x", 0.95, "0.99"),
    Bound("copies", "h2d_pageable_gbps", "shmem", ">= x", 1.5, "3"),
    Bound("copies", "d2h_pageable_gbps", "shmem", ">= x", 1.0, "2"),
    Bound("state", "load_state_dict_s", "shmem", "<= x", 1.0, "0.5"),
    Bound("first_use", "first_use_s", "shmem", "<= x", 0.5, "0.15"),
    Bound("resnet", "step_ms", "shmem", "<= x", 1.0, "0.85"),
    Bound("graph", "replay_us", "shmem", "<= x", 1 / 0.95, "1.0"),
    Bound("four", "tokens_per_s", "shmem", ">= x", 1.0, "1.3"),
)
# Part → the sides that take part, in the order of the run.
PARTS: dict[str, tuple[str, ...]] = {
    "launch_cost": SHORT,
    "null_call": SHORT,
    "first_use": SHORT,
    "first_generate": ("native", "shmem"),
    "generate": SIDES,
    "census": SIDES[1:],
    "small": SHORT,
    "copies": SHORT,
    "events": SHORT,
    "state": SHORT,
    "resnet": SHORT,
    "graph": SHORT,
    "four": ("native", "shmem"),
}
C_PARTS = ("launch_cost", "null_call")
FRESH = (*C_PARTS, "first_use", "first_generate", "four")
NEEDS_LOAD = ("generate", "census")
NEEDS_MODEL = (*NEEDS_LOAD, "first_generate", "four")
# The two lines of the table that were missed: small read-backs and pinned copies.
QUICK_PARTS = ("small", "copies")
QUICK_SIDES = ("native", "shmem")
QUICK_PAIRS = 7


class Budget:
    """The time that a run may take. It ends between turns, so that every side has the same number of samples."""

    def __init__(self, seconds: float) -> None:
        self.begun = time.monotonic()
        self.seconds = seconds
        self.notes: list[str] = []

    def spent(self) -> float:
        return time.monotonic() - self.begun

    def over(self, next_s: float = 0.0) -> bool:
        return self.spent() + next_s > self.seconds

    def turns(self, part: str, sides: Sequence[str], pairs: int) -> Iterator[tuple[int, str]]:
        """Each side once a turn, in an order that is turned round every time, so that none always follows another.

        A turn that would not be over in time, if it took as long as the one before, is not begun.
        """
        last = 0.0
        for turn in range(pairs):
            if self.over(last):
                self.notes.append(f"{part}: stopped after {turn} of {pairs} turns, the time was used up")
                return
            begun = time.monotonic()
            for side in sides if turn % 2 == 0 else tuple(reversed(sides)):
                yield turn, side
            last = time.monotonic() - begun


@dataclass
class Samples:
    """Every answer in the order in which it came; what is computed from them; errors as sentences."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(
        self, part: str, side: str, answer: dict[str, Any] | None, problem: str, turn: int = 0, at_s: float = 0.0
    ) -> None:
        if answer is None or problem or "error" in answer:
            self.errors.append(f"{part} {side} {turn}: {problem or (answer or {}).get('error', 'no answer')}")
            return
        kept: dict[str, Any] = {name: value for name, value in answer.items() if name in ("metrics", "digest", "raw")}
        self.answers.append({"part": part, "side": side, "turn": turn, "at_s": round(at_s, 3), **kept})

    def parts(self) -> list[str]:
        return list(dict.fromkeys(str(answer["part"]) for answer in self.answers))

    def metrics(self, part: str) -> list[str]:
        return list(dict.fromkeys(name for a in self.answers if a["part"] == part for name in a["metrics"]))

    def values(self, part: str, metric: str, side: str) -> list[float]:
        found = [a["metrics"] for a in self.answers if a["part"] == part and a["side"] == side]
        return [float(metrics[metric]) for metrics in found if metric in metrics]

    def median(self, part: str, metric: str, side: str) -> float | None:
        values = self.values(part, metric, side)
        return statistics.median(values) if values else None

    def equal(self, part: str) -> bool:
        return len({str(a["digest"]) for a in self.answers if a["part"] == part and a["metrics"]}) == 1


def rows(samples: Samples, parts: Sequence[str], sides: Sequence[str]) -> tuple[list[list[str]], bool]:
    lines, good = [], not samples.errors
    for part in parts:
        if not samples.metrics(part):
            lines.append([part, "samples", "", "", "", "", "", "none", "NO"])
            good = False
            continue
        equal = samples.equal(part)
        good &= equal
        lines.append([part, "results", "", "", "", "", "", "equal" if equal else "DIFFER", "ok" if equal else "NO"])
        for metric in samples.metrics(part):
            native = samples.median(part, metric, "native")
            for side in (s for s in sides if s != "native"):
                remote = samples.median(part, metric, side)
                bound = next((b for b in BOUNDS if (b.part, b.metric, b.side) == (part, metric, side)), None)
                if remote is None and bound is None:
                    continue
                reached = bound is None or bound.reached(native, remote)
                good &= reached
                taken = f"{len(samples.values(part, metric, 'native'))}, {len(samples.values(part, metric, side))}"
                lines.append(
                    [
                        part, metric, side, taken, f"{native:.4g}" if native is not None else "-",
                        f"{remote:.4g}" if remote is not None else "-",
                        f"{remote / native:.3f}" if native and remote is not None else "-",
                        bound.words() if bound else "", "" if bound is None else "ok" if reached else "NO",
                    ]
                )  # fmt: skip
    return lines, good


def faster_is_more(metric: str) -> bool:
    return metric.endswith(("_gbps", "per_s", "_per_s"))


def paired_rows(samples: Samples, sides: Sequence[str]) -> tuple[list[list[str]], bool]:
    """Speed of each side beside its `before-` side: the median of the ratios of each turn, and their range.

    A ratio above 1 is faster now. The range of five or more turns holds the true median with 94 % and more; a line is
    bad if even its upper end is below KEPT.
    """
    lines, good = [], True
    for part in samples.parts():
        for metric in samples.metrics(part):
            for side in (side for side in sides if BEFORE + side in sides):
                now, before = (
                    {a["turn"]: float(a["metrics"][metric]) for a in samples.answers
                     if (a["part"], a["side"]) == (part, name) and metric in a["metrics"]}
                    for name in (side, BEFORE + side)
                )  # fmt: skip
                pairs = [(now[turn], before[turn]) for turn in now if before.get(turn) and now[turn]]
                ratios = sorted(n / b if faster_is_more(metric) else b / n for n, b in pairs)
                if not ratios:
                    continue
                kept = ratios[-1] >= KEPT
                good &= kept
                lines.append(
                    [
                        part, metric, side, str(len(ratios)), f"{statistics.median(before.values()):.4g}",
                        f"{statistics.median(now.values()):.4g}", f"{statistics.median(ratios):.3f}",
                        f"{ratios[0]:.3f} .. {ratios[-1]:.3f}", "ok" if kept else "NO",
                    ]
                )  # fmt: skip
    return lines, good


def write(out: Path, samples: Samples, parts: Sequence[str], sides: Sequence[str], facts: dict[str, Any]) -> bool:
    """summary.txt and results.json in `out`, each replaced as a whole; whether everything is as it must be."""
    lines, good = rows(samples, parts, sides)
    text = table(("part", "figure", "side", "turns", "native", "remote", "ratio", "required", "ok"), lines)
    paired, kept = paired_rows(samples, sides)
    good &= kept
    if paired:
        text += "\n\n" + table(("part", "figure", "side", "turns", "before", "now", "speed", "range", "ok"), paired)
    text += "".join(f"\nNOTE {note}" for note in facts["notes"])
    text += "".join(f"\nERROR {error}" for error in samples.errors)
    value = {**facts, "rows": lines, "paired": paired, "errors": samples.errors, "samples": samples.answers}
    # Compact: every sample is in it, and what comes back from a GPU machine is bounded.
    for name, content in (("results.json", json.dumps(value, separators=(",", ":"))), ("summary.txt", text)):
        partial = out / f"{name}.partial"
        partial.write_text(content + "\n")
        partial.replace(out / name)
    return good
