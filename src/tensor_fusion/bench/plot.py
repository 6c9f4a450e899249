"""Figures of a report: bandwidth by size and kind, and the ratios. Needs matplotlib, the optional extra `bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensor_fusion.bench.compare import gigabytes_per_second
from tensor_fusion.config import UserError

FORMATS = ("png", "svg")
COLORS = {"native": "#7f7f7f", "remote": "#1f77b4"}


def check_plotting(prefix: Path) -> None:
    """Say what is missing before an hour of measuring. Raises UserError."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "--plot needs matplotlib, which is not installed; run: pip install 'matplotlib>=3.8,<4'", exit_code=1
        ) from None
    if not prefix.parent.is_dir():
        raise UserError(f"The folder {prefix.parent} of --plot {prefix} does not exist.")


def plot(report: Mapping[str, Any], prefix: Path) -> list[Path]:
    """Write PREFIX-bandwidth and PREFIX-ratios, each as PNG and SVG; the files written."""
    from matplotlib.figure import Figure

    written = []
    for name, draw in (("bandwidth", _bandwidth), ("ratios", _ratios)):
        figure = Figure(layout="constrained")
        if not draw(report, figure):
            continue
        sides = report["sides"]
        device = next(iter(sides.values()))["device"]
        device += " (SIMULATED: says nothing about a GPU)" if report["simulated"] else ""
        figure.suptitle(f"{device}, {report['transport']}, {report['settings']['pairs']} pairs", fontsize=10)
        for kind in FORMATS:
            path = prefix.with_name(f"{prefix.name}-{name}.{kind}")
            figure.savefig(path, dpi=150)
            written.append(path)
    return written


def _bandwidth(report: Mapping[str, Any], figure: Any) -> bool:
    copies = [result for result in report["results"] if result["group"] == "copy"]
    kinds = list(dict.fromkeys(result["name"] for result in copies))
    if not kinds:
        return False
    figure.set_size_inches(14, 6.5)
    panels = figure.subplots(2, (len(kinds) + 1) // 2, sharex=True, sharey=True, squeeze=False).flat
    for panel, kind in zip(panels, kinds, strict=False):
        for side, color in COLORS.items():
            points = [
                (result["bytes"], gigabytes_per_second(result["bytes"], result[side]["median"]))
                for result in copies
                if result["name"] == kind and side in result
            ]
            if points:
                panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, color=color, label=side)
        panel.set_xscale("log", base=2)
        panel.set_title(kind, fontsize=9)
        panel.grid(visible=True, which="major", alpha=0.3)
        panel.set_xlabel("bytes")
        panel.set_ylabel("GB/s")
        panel.legend(fontsize=8)
    return True


def _ratios(report: Mapping[str, Any], figure: Any) -> bool:
    compared = [result for result in report["results"] if "ratio" in result]
    # Of the copies only the largest: their other sizes are what the first figure is for.
    largest = max((result["bytes"] for result in compared if result["group"] == "copy"), default=0)
    shown = [result for result in compared if result["group"] != "copy" or result["bytes"] == largest]
    if not shown:
        return False
    figure.set_size_inches(10, 1.5 + 0.26 * len(shown))
    panel = figure.subplots()
    # As speed, so that longer is better in every line: a duration's ratio is turned over.
    speeds = [_speed(result) for result in shown]
    labels = [f"{result['name']}{_size(result['bytes'])}" for result in shown]
    widths = [speed - 1 for speed in speeds]
    panel.barh(labels, widths, left=1, color=["#2ca02c" if speed >= 1 else "#d62728" for speed in speeds])
    panel.axvline(1, color="black", linewidth=1)
    panel.set_xscale("log")
    panel.invert_yaxis()
    panel.tick_params(axis="y", labelsize=7)
    panel.set_xlabel("speed of remote as a multiple of native (right of the line: remote is faster)")
    return True


def _speed(result: Mapping[str, Any]) -> float:
    ratio: float = result["ratio"]["median"]
    return ratio if result["better"] == "higher" else 1 / ratio if ratio else 1.0


def _size(size: int) -> str:
    if not size:
        return ""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f", {size // scale} {unit}"
    return f", {size} B"
