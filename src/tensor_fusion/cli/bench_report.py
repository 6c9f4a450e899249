"""The benchmark's tables. Progress and the census go to standard error: standard output is the counted program's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensor_fusion.bench.compare import gigabytes_per_second
from tensor_fusion.terminal import counted, folded

SIDES = ("native", "remote")
# A pipe gets whole rows. On a terminal what is too wide is left out, in this order: --json has everything.
LEAST_WIDTH = 200
DETAILS = ("p99.9", "spread", "p99", "trips")
BANDWIDTH_FROM = 1 << 20
TRAFFIC_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def _console(stderr: bool = False) -> Console:
    console = Console(highlight=False, soft_wrap=True, stderr=stderr)
    console.width = max(console.width, LEAST_WIDTH)
    return console


def say_folded(text: str) -> None:
    print(folded(text, ""))


def comparison(report: Mapping[str, Any]) -> None:
    console = _console()
    settings, facts = report["settings"], report["machine"]
    sides = [side for side in SIDES if side in report["sides"]]
    about = report["sides"][sides[0]]
    console.print(
        f"{about['device']}, CUDA {about['cuda'] // 1000}.{about['cuda'] % 1000 // 10}, {report['transport']}"
    )
    console.print(
        f"{facts['processor']}, {facts['cores']} cores, Linux {facts['kernel']}, load {facts['load_average']}"
    )
    if report["simulated"]:
        console.print(Text("SIMULATED GPU: these figures say nothing about a GPU.", style="bold red"))
    if report["relay"]:
        relay = report["relay"]
        console.print(
            f"Relay: {relay['added_us']:.0f} µs per round trip, measured ({relay['asked_us']:.0f} µs asked for)"
        )
    results = report["results"]
    _print_fitting(console, [result for result in results if result["group"] != "copy"], sides)
    copies = [result for result in results if result["group"] == "copy"]
    for table in _fitting_copies(console, copies, sides):
        console.print(table)
    for entry in report["skipped"]:
        console.print(f"Skipped on the {entry['side']} side: {entry['group']}: {entry['reason']}.")
    overhead = ", ".join(f"{report['sides'][side]['timer_overhead_ns']} ns ({side})" for side in sides)
    runs = f"{settings['pairs']} alternating run{'s' if settings['pairs'] != 1 else ''}"
    say_folded(
        f"Medians of {runs} of each side, spread is lowest and highest; each call is "
        f"timed by itself, and reading the clock, in every figure, takes {overhead}."
    )
    say_folded(
        "Ratio: median over the pairs, remote ÷ native; below 1 a duration is shorter, above 1 a rate is higher."
    )
    agreed = (
        "equal bit for bit in every run" if report["identical"] else f"DIFFERENT in {', '.join(report['different'])}"
    )
    console.print(f"Results: {agreed}.")


def _print_fitting(console: Console, results: list[Mapping[str, Any]], sides: list[str]) -> None:
    left_out: list[str] = []
    table = _calls(results, sides, left_out)
    width = Console().width
    while sys.stdout.isatty() and console.measure(table).maximum > width and len(left_out) < len(DETAILS):
        left_out.append(DETAILS[len(left_out)])
        table = _calls(results, sides, left_out)
    console.print(table)
    if left_out:
        console.print(f"(Left out, for {width} columns: {', '.join(left_out)}.)")


def _calls(results: list[Mapping[str, Any]], sides: list[str], left_out: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=bool(left_out))
    details = [name for name in ("spread", "p99", "p99.9") if name not in left_out]
    table.add_column("group")
    table.add_column("what")
    for side in sides:
        table.add_column(side, justify="right")
        for name in details:
            table.add_column(name, justify="left" if name == "spread" else "right")
    if len(sides) == len(SIDES):
        table.add_column("ratio", justify="right")
    if "trips" not in left_out:
        table.add_column("trips", justify="right")
    group = ""
    for result in results:
        row: list[str | Text] = [result["group"] if result["group"] != group else "", result["name"] + _size(result)]
        group = result["group"]
        for side in sides:
            row += _figures(result, side, details)
        if len(sides) == len(SIDES):
            row.append(_ratio(result))
        trips = result.get("remote", {}).get("round_trips")
        if "trips" not in left_out:
            row.append("" if trips is None else f"{trips:.3g}")
        table.add_row(*row)
    return table


def _figures(result: Mapping[str, Any], side: str, details: Sequence[str]) -> list[str | Text]:
    found = result.get(side)
    if found is None:
        return ["–", *("" for _ in details)]
    one = _rate if result["unit"] == "1/s" else _duration
    spread = f"{one(found['lowest'])} – {one(found['highest'])}" if len(found["runs"]) > 1 else ""
    told = [spread if name == "spread" else one(found[name]) if name in found else "" for name in details]
    return [one(found["median"]), *told]


def _fitting_copies(console: Console, results: list[Mapping[str, Any]], sides: list[str]) -> list[Table]:
    """One table, or on a terminal as many of some kinds each as fit."""
    kinds = list(dict.fromkeys(result["name"] for result in results))
    width = Console().width
    tables: list[Table] = []
    for each in range(len(kinds), 0, -1):
        tables = [_copies(results, sides, kinds[first : first + each]) for first in range(0, len(kinds), each)]
        if not sys.stdout.isatty() or all(console.measure(table).maximum <= width for table in tables):
            break
    return tables


def _copies(results: list[Mapping[str, Any]], sides: list[str], kinds: list[str]) -> Table:
    """By size and kind: durations of small copies, whose bandwidth says nothing, and bandwidth of large ones."""
    table = Table(box=None, pad_edge=False, title=f"Copies: {' / '.join(sides)}", title_justify="left")
    table.add_column("size", justify="right")
    table.add_column("unit")
    for kind in kinds:
        table.add_column(kind, justify="right")
    by_size: dict[int, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        by_size.setdefault(result["bytes"], {})[result["name"]] = result
    for size, by_kind in sorted(by_size.items()):
        row: list[str | Text] = [_size({"bytes": size}).removeprefix(", "), "GB/s" if size >= BANDWIDTH_FROM else "µs"]
        for kind in kinds:
            found = by_kind.get(kind)
            if found is None:
                row.append("–")
                continue
            cell = Text(" / ".join(_copy(found, side) for side in sides))
            if "ratio" in found:
                cell.append("  ")
                cell.append_text(_ratio(found))
            row.append(cell)
        table.add_row(*row)
    return table


def _copy(result: Mapping[str, Any], side: str) -> str:
    if side not in result:
        return "–"
    value = result[side]["median"]
    if result["bytes"] >= BANDWIDTH_FROM:
        value = gigabytes_per_second(result["bytes"], value)
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratio(result: Mapping[str, Any]) -> Text:
    if "ratio" not in result:
        return Text("–")
    ratio = result["ratio"]["median"]
    faster = ratio >= 1 if result["better"] == "higher" else ratio <= 1
    return Text(f"{ratio:.3g}", style="green" if faster else "red")


def _duration(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    if microseconds >= 1e3:
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds:.3g} µs"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s"


def _size(result: Mapping[str, Any]) -> str:
    size = result["bytes"]
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f", {size // scale} {unit}"
    return f", {size} B" if size else ""


def census(report: Mapping[str, Any]) -> None:
    console = _console(stderr=True)
    processes = report["processes"]
    if not processes:
        console.print(
            "bench: No process of the program wrote statistics: it made no CUDA or NVML call that reached the worker, "
            "or it ended by a signal or _exit."
        )
        return
    for process in processes:
        _census_table(console, f"{process['program']}, process {process['pid']}", process, process["by_function"])
    if len(processes) > 1:
        _census_table(console, f"all {len(processes)} processes", report["total"], report["by_function"])
    for function, calls in sorted(report["unsupported"].items()):
        console.print(f"bench: {function} is not supported and was refused {counted(calls, 'time')}.")
    if report["damaged"]:
        console.print(
            f"bench: Not counted, as not whole: the statistics of {counted(report['damaged'], 'process', 'processes')}."
        )
    console.print(
        f"bench: {report['transport']}; exit code {report['exit_code']}. "
        "A process that ends by a signal or _exit is not here."
    )


def _census_table(
    console: Console, title: str, counters: Mapping[str, Any], functions: Mapping[str, Mapping[str, int]]
) -> None:
    blocked = counters["blocked_ns"]
    console.print(
        f"{title}: {counted(counters['round_trips'], 'round trip')} in {counted(counters['frames'], 'call')} sent, "
        f"{_duration(blocked / 1e3)} blocked, {_bytes(counters['bytes_sent'])} to the worker, "
        f"{_bytes(counters['bytes_received'])} back"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("  function")
    for column in ("round trips", "blocked", "each", "share"):
        table.add_column(column, justify="right")
    for name, of in sorted(functions.items(), key=lambda item: -item[1]["blocked_ns"]):
        each = of["blocked_ns"] / of["round_trips"] / 1e3 if of["round_trips"] else 0.0
        share = f"{of['blocked_ns'] / blocked:.1%}" if blocked else ""
        table.add_row(f"  {name}", f"{of['round_trips']:,}", _duration(of["blocked_ns"] / 1e3), _duration(each), share)
    console.print(table)


def _bytes(size: int) -> str:
    for unit, scale in TRAFFIC_UNITS:
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
