"""Alternating runs of both sides, and what follows: medians, spread, ratios, and whether the results agree."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from tensor_fusion.bench.machine import machine
from tensor_fusion.bench.program import Effort, Side, run_group
from tensor_fusion.config import UserError

FORMAT = 1
MOST_PAIRS = 1000
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Plan:
    groups: Sequence[str]
    pairs: int
    effort: Effort


def chosen_groups(only: str | None, known: Mapping[str, str]) -> list[str]:
    """The groups named by --only, in the program's order. Raises UserError for a name it does not know."""
    if only is None:
        return list(known)
    named = [name.strip() for name in only.split(",") if name.strip()]
    for name in named:
        if name not in known:
            raise UserError(f"There is no group {name!r}; the groups are {', '.join(known)}.")
    if not named:
        raise UserError(f"--only names no group; the groups are {', '.join(known)}.")
    return [name for name in known if name in named]


def check_pairs(pairs: int) -> None:
    if not 1 <= pairs <= MOST_PAIRS:
        raise UserError(
            f"--pairs is {pairs}; use 1 to {MOST_PAIRS}, and 5 or more for figures that are to be believed."
        )


# What is measured now, and how many seconds it all still takes, as far as that is known.
Progress = Callable[[str, float | None], None]


class Remaining:
    """How long the rest takes, by what each group took so far; before one was measured, as long as the others."""

    def __init__(self, groups: Sequence[str], sides: Sequence[str], pairs: int) -> None:
        self._to_come = {(group, side): pairs for group in groups for side in sides}
        self._took: dict[tuple[str, str], list[float]] = defaultdict(list)

    def took(self, group: str, side: str, seconds: float) -> None:
        self._to_come[group, side] -= 1
        self._took[group, side].append(seconds)

    def seconds(self) -> float | None:
        """None before anything was measured."""
        everything = [seconds for found in self._took.values() for seconds in found]
        if not everything:
            return None
        total = 0.0
        for (group, side), count in self._to_come.items():
            known = self._took.get((group, side)) or [
                seconds for (other, _), found in self._took.items() if other == group for seconds in found
            ]
            total += count * fmean(known or everything)
        return total


def measure(sides: Sequence[Side], plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run everything.

    Native and remote change places in every pair (N R R N …), so that a drift of the machine meets both.
    """
    check_pairs(plan.pairs)
    facts, started = machine(), time.time()
    runs: dict[Key, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    digests: dict[str, dict[str, set[str]]] = {group: {side.name: set() for side in sides} for group in plan.groups}
    skipped: dict[tuple[str, str], str] = {}
    traffic: dict[str, dict[str, int]] = {}
    about: dict[str, dict[str, Any]] = {}
    remaining = Remaining(plan.groups, [side.name for side in sides], plan.pairs)
    for pair in range(plan.pairs):
        for group in plan.groups:
            for side in sides if pair % 2 == 0 else tuple(reversed(sides)):
                progress(f"pair {pair + 1} of {plan.pairs}: {group}, {side.name}", remaining.seconds())
                begun = time.monotonic()
                about[side.name], measured = run_group(side, group, plan.effort)
                remaining.took(group, side.name, time.monotonic() - begun)
                _check_same_gpu(about)
                if "traffic" in measured:
                    traffic[group] = measured["traffic"]
                if "skipped" in measured:
                    skipped[group, side.name] = measured["skipped"]
                    continue
                digests[group][side.name].add(measured["digest"])
                for series in measured["series"]:
                    runs[group, series["name"], series["bytes"]][side.name].append(series)
    results = [_result(key, by_side) for key, by_side in runs.items()]
    agree = {group: _agrees(by_side) for group, by_side in digests.items()}
    return {
        "format": FORMAT,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "machine": facts,
        "sides": about,
        "settings": {"pairs": plan.pairs, "groups": list(plan.groups), **asdict(plan.effort)},
        "results": results,
        "skipped": [{"group": group, "side": side, "reason": why} for (group, side), why in skipped.items()],
        "digests": {group: {side: sorted(found) for side, found in by.items()} for group, by in digests.items()},
        "identical": all(agree.values()),
        "different": [group for group, same in agree.items() if not same],
        "traffic": traffic,
    }


def _check_same_gpu(about: Mapping[str, Mapping[str, Any]]) -> None:
    """Ratios between two GPUs would be ratios of the GPUs."""
    found = {(facts["device"], facts["uuid"]) for facts in about.values()}
    if len(found) > 1:
        raise UserError(
            f"Native and remote are not the same GPU ({about['native']['device']} and {about['remote']['device']}); "
            "run the benchmark on the worker's host, or with --no-native for the remote figures alone.",
            exit_code=1,
        )


def _agrees(by_side: Mapping[str, set[str]]) -> bool:
    """One digest in every run of every side that ran the group."""
    return len({digest for found in by_side.values() for digest in found}) <= 1


def _side(series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [run["value"] for run in series]
    summary: dict[str, Any] = {"median": median(values), "lowest": min(values), "highest": max(values), "runs": values}
    for name in ("p99", "p99.9", "round_trips"):
        found = [run[name] for run in series if name in run]
        if found:
            summary[name] = median(found)
    summary["samples"] = sum(run["samples"] for run in series)
    return summary


def _result(key: Key, by_side: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    group, name, size = key
    unit = next(iter(by_side.values()))[0]["unit"]
    result: dict[str, Any] = {"group": group, "name": name, "bytes": size, "unit": unit}
    # Durations are better short; a rate is better high.
    result["better"] = "higher" if unit == "1/s" else "lower"
    for side, series in by_side.items():
        result[side] = _side(series)
    if "native" in by_side and "remote" in by_side:
        # Of each pair, because the two runs of a pair met the same state of the machine.
        ratios = [
            remote["value"] / native["value"]
            for native, remote in zip(by_side["native"], by_side["remote"], strict=True)
            if native["value"]
        ]
        if ratios:
            result["ratio"] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return result


def gigabytes_per_second(size: int, microseconds: float) -> float:
    return size / microseconds / 1e3 if microseconds else 0.0
