"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tensor_fusion.abi import native_file
from tensor_fusion.client.check import Check
from tensor_fusion.client.vm import RULE_FILE, Instructions
from tensor_fusion.config import CONNECTION_INFO, VARIABLES, UserError, without_secret
from tensor_fusion.terminal import counted, folded
from tensor_fusion.worker.service import worker_command

KINDS = ("remote", "local", "custom", "alias", "refused", "unsupported")
# Figures cut short say nothing: a narrow terminal wraps the rows instead.
COVERAGE_WIDTH = 80
TITLES = {"cuda": "CUDA driver API", "nvml": "NVML"}


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def read_coverage() -> dict[str, dict[str, Any]]:
    """Per API the number of names of each kind, and the names that are not served with reasons."""
    path = native_file("coverage.json")
    try:
        described = json.loads(path.read_text())
        return {api: _count(entry["functions"]) for api, entry in described.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be understood ({error!r}); install the package again.", exit_code=1) from error


def _count(functions: Mapping[str, Mapping[str, str | None]]) -> dict[str, Any]:
    counts = Counter(function["kind"] for function in functions.values())
    unknown = set(counts) - set(KINDS)
    if unknown:
        raise ValueError(f"unknown kinds {sorted(map(str, unknown))}")
    return {
        "total": len(functions),
        **{kind: counts[kind] for kind in KINDS},
        **{
            f"{kind}_functions": {
                name: function["reason"] for name, function in functions.items() if function["kind"] == kind
            }
            for kind in ("refused", "unsupported")
        },
    }


def coverage(table: Mapping[str, Mapping[str, Any]], *, reasons: bool = False) -> None:
    shown = Table("API", "names", *KINDS, box=None, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for api, counts in table.items():
        shown.add_row(TITLES.get(api, api), str(counts["total"]), *(str(counts[kind]) for kind in KINDS))
    console = _console()
    console.width = max(console.width, COVERAGE_WIDTH)
    console.print(shown)
    if reasons:
        for api, counts in table.items():
            title = TITLES.get(api, api)
            _reasons(f"{title}, refused as a driver does", counts["refused_functions"])
            _reasons(f"{title}, not supported", counts["unsupported_functions"])
    else:
        print(folded("What is refused or unsupported, with the reasons: tensor-fusion coverage --reasons"))


def _reasons(title: str, functions: Mapping[str, str]) -> None:
    """The names under each reason, in the order of the names."""
    for reason in dict.fromkeys(functions.values()):
        print("\n" + folded(f"{title}: {reason}"))
        for name in (name for name, why in functions.items() if why == reason):
            print(f"  {name}")


def demo(result: Mapping[str, Any]) -> None:
    statistics, launch, bandwidth = result["statistics"], result["launch"], result["bandwidth"]
    right = [name for name, passed in result["results"].items() if passed]
    wrong = [name for name, passed in result["results"].items() if not passed]
    rows = {
        "device": f"{result['devices'][0]}, {result['memory_bytes'] / 2**30:.1f} GiB, CUDA {result['cuda_version']}"
        + (" — SIMULATED" if result["simulated"] else ""),
        "transport": result["transport"],
        "first use": f"{result['start_seconds']:.3f} s from cuInit to a loaded module",
        "results": f"{len(right)} of {len(result['results'])} right: {', '.join(right)}"
        + (f"; WRONG: {', '.join(wrong)}" if wrong else ""),
        "calls": f"{statistics['calls']:,} in {counted(statistics['frames'], 'frame')}",
        "round trips": f"{statistics['round_trips']:,} in all, "
        f"{launch['round_trips']:,} for {counted(launch['launches'], 'launch', 'launches')}",
        "launches": f"{launch['launches_per_s']:,.0f} per second",
        "bandwidth": f"{bandwidth['h2d_gb_per_s']:.2f} GB/s to the device, {bandwidth['d2h_gb_per_s']:.2f} GB/s back",
    }
    _pairs(rows)
    print(f"Next, a worker for others to use:\n  {start_command(result['simulated'])}")


def start_command(simulated: bool) -> str:
    """What to type in this shell: in a virtual environment that it has not activated, it does not find our commands."""
    command = "tensor-fusion-worker -n native -p 12345" + (" --gpu sim" if simulated else "")
    if shutil.which("tensor-fusion-worker"):
        return command
    try:
        found = worker_command()
    except UserError:  # in a checkout there are no commands
        return command.replace("tensor-fusion-worker", f"{shlex.quote(sys.executable)} -m tensor_fusion.worker")
    activate = found.with_name("activate")
    below = activate.parent.is_relative_to(Path.cwd()) and activate.parent != Path.cwd()
    place = activate.relative_to(Path.cwd()) if below else activate
    if activate.is_file():
        return f". {shlex.quote(str(place))} && {command}"
    return command.replace("tensor-fusion-worker", shlex.quote(str(found)))


def checks(results: Iterable[Check], as_json: bool) -> bool:
    """Print each check as it ends; True when all passed."""
    console = _console()
    done = []
    for check in results:
        done.append(check)
        if not as_json:
            note = Text("note", style="yellow") if check.cause else Text("pass", style="green")
            mark = note if check.passed else Text("FAIL", style="bold red")
            console.print(Text.assemble(mark, folded(f"  {check.name}: {check.text}", "      ", taken=4)))
            if check.command:
                # A command stays whole, for copying.
                fits = not sys.stdout.isatty() or len(check.cause + check.command) + 14 <= console.width
                console.print(f"      {check.cause}; next:{' ' if fits else chr(10) + '      '}{check.command}")
    passed = all(check.passed for check in done)
    if as_json:
        print(json.dumps({"passed": passed, "checks": [asdict(check) for check in done]}, indent=1))
    return passed


def instructions(texts: Instructions, as_json: bool) -> None:
    """Plain text, so that each part can be copied as it is."""
    if as_json:
        print(json.dumps(asdict(texts), indent=1))
        return
    titles = {
        "on the host, the worker": texts.worker,
        "on the host, QEMU": texts.qemu,
        "or libvirt, inside <devices>": texts.libvirt,
        f"guest, for users that are not root: {RULE_FILE}": texts.udev,
        "in the guest, the client's environment": texts.client,
        "in the guest, to see whether it works": "tensor-fusion vm --check",
    }
    print("\n\n".join(f"# {title}\n{text}" for title, text in titles.items()))


def variables(environ: Mapping[str, str], as_json: bool) -> None:
    def value(name: str) -> str:
        text = environ.get(name, "")
        if name == CONNECTION_INFO:
            return without_secret(text)
        return re.sub(r"//[^@/]*@", "//…@", text) if name.endswith("_proxy") else text

    if as_json:
        print(json.dumps([{**asdict(variable), "value": value(variable.name)} for variable in VARIABLES], indent=1))
        return
    for variable in VARIABLES:
        print(f"{variable.name}={value(variable.name)}")
        readers = "worker and client" if variable.reader == "both" else variable.reader
        about = f"{variable.meaning} Read by: {readers}. Default: {variable.default or '(empty)'}."
        print(folded(f"    {about}", "    "))


def _pairs(rows: Mapping[str, str]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))
    _console().print(table)
