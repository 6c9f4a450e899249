"""The workers of this machine and their clients, once or as a screen that is drawn anew.

Drawn with rich, which the package has anyway. What a worker says of its clients is made printable here once more: a
socket may be another user's when root looks.
"""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tensor_fusion.cli.progress import Waiting, after_patience, duration
from tensor_fusion.client.check import unseen
from tensor_fusion.config import UserError
from tensor_fusion.runtime import statuses
from tensor_fusion.terminal import columns, complain, plain

NOBODY = "No worker of yours runs on this machine; root sees those of all users."
WIDE = 110
COUNTED = ("calls", "round_trips", "received_bytes", "sent_bytes")
Status = Mapping[str, Any]


def on_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() and not Console().is_dumb_terminal


def _nobody(problems: Sequence[str]) -> str:
    return "No worker answers." if any("does not answer" in problem for problem in problems) else NOBODY


def once(environ: Mapping[str, str]) -> None:
    found, problems = statuses(environ, Waiting("top", in_pipes=True))
    for problem in problems:
        complain(f"NOTICE: {plain(problem)}")
    if not found:
        raise UserError(_nobody(problems), exit_code=1)
    console = Console(highlight=False, width=columns(sys.stdout) if sys.stdout.isatty() else 120)
    console.print(_screen(found, {}, console.width))


def watch(environ: Mapping[str, str], interval: float) -> None:
    """Until q or Ctrl-C, which is how such a program is left and no failure."""
    before: dict[tuple[int, int], Status] = {}
    try:
        console = Console(highlight=False)
        with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                found, problems = statuses(environ, unseen if before else partial(_first, live))
                parts = [_screen(found, before, console.width)] if found else [Text(_nobody(problems))]
                parts += [Text(plain(problem), style="dim") for problem in problems]
                live.update(Group(*parts, Text("q ends it", style="dim")), refresh=True)
                before = {_name(status, session): session | {"at": status["now"]} for status, session in _all(found)}
                if _ended(interval):
                    return
    except KeyboardInterrupt:
        return


@contextmanager
def _first(live: Live, what: str, seconds: float) -> Iterator[None]:
    """Later there is a screen to look at while a worker does not answer."""
    text = Text(plain(f"waiting for {what}, for up to {duration(seconds)}"))
    with after_patience(lambda: live.update(text, refresh=True)):
        yield


@contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and are not shown."""
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _ended(seconds: float) -> bool:
    """Whether q was pressed in this time, or the terminal has gone."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False


def _all(found: list[dict[str, Any]]) -> Iterator[tuple[Status, dict[str, Any]]]:
    for status in found:
        sessions = status["sessions"]
        for session in sessions if isinstance(sessions, list) else []:
            if isinstance(session, dict) and isinstance(session.get("pid"), int) and "now" in status:
                yield status, session


def _name(status: Status, session: Status) -> tuple[int, int]:
    return int(status["pid"]), int(session["pid"])


def _screen(found: list[dict[str, Any]], before: Mapping[tuple[int, int], Status], width: int) -> RenderableType:
    parts: list[RenderableType] = []
    for status in found:
        try:
            parts += [_worker(status), *map(_gpu, status["gpus"]), _clients(status, before, width), Text("")]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            version = plain(str(status.get("version")))[:20]
            parts += [
                Text(f"worker {status['pid']}  is of version {version}, whose status is not understood"),
                Text(""),
            ]
    return Group(*parts[:-1])


def _worker(status: Status) -> Text:
    count = len(status["sessions"])
    limit = status["memory_limit_bytes"]
    text = Text(f"worker {status['pid']}", style="bold")
    text.append(f"  {plain(str(status['place']))}", style="not bold")
    if status["simulated"]:
        text.append("  SIMULATED GPU")
    text.append(f"  {count} client{'' if count == 1 else 's'}", style="not bold")
    text.append(f"  up {_age(status['now'] - status['since'])}", style="not bold")
    if limit:
        held = max(_held(status).values(), default=0)
        text.append(f"  {size(held)} of {size(limit)}", style="not bold")
    return text


def _gpu(gpu: Status) -> Text:
    """What is not known of it is left out."""
    words = [f"GPU {gpu['index']}", plain(gpu.get("name", gpu["uuid"]))]
    if "gpu_percent" in gpu:
        words.append(f"{gpu['gpu_percent']} %")
    if "memory_used_bytes" in gpu:
        words.append(f"{size(gpu['memory_used_bytes'])} of {size(gpu['memory_total_bytes'])}")
    if "temperature_celsius" in gpu:
        words.append(f"{gpu['temperature_celsius']} C")
    if "power_watts" in gpu:
        words.append(f"{gpu['power_watts']:.0f} W")
    return Text(plain("  ".join(words)))


def _held(status: Status) -> dict[str, int]:
    """Bytes that all clients hold, by device."""
    sums: dict[str, int] = {}
    for session in status["sessions"]:
        for device, count in session["memory_bytes"].items():
            sums[device] = sums.get(device, 0) + count
    return sums


def _clients(status: Status, before: Mapping[tuple[int, int], Status], width: int) -> RenderableType:
    if not status["sessions"]:
        return Text("  no client", style="dim")
    rates = any(_name(status, session) in before for session in status["sessions"])
    per = "/s" if rates else ""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    wide = width >= WIDE
    texts = {"PROGRAM": "program", "USER": "user", "FROM": "address"}
    if any(session.get("tenant") for session in status["sessions"]):
        texts = {"TENANT": "tenant", **texts}
    cut: OverflowMethod = "ellipsis" if Console().encoding.startswith("utf") else "crop"
    room = (width - (81 if wide else 59)) // len(texts)  # what the figures leave
    table.add_column("PID", justify="right", no_wrap=True)
    for heading in texts:
        table.add_column(heading, no_wrap=True, overflow=cut, max_width=max(room, len(heading)))
    table.add_column("ITS PID", justify="right", no_wrap=True)
    ways = (f"IN{per}", f"OUT{per}", "UP") if wide else (f"BYTES{per}",)
    for heading in ("MEMORY", "GPU", f"CALLS{per}", f"TRIPS{per}", *ways):
        table.add_column(heading, justify="right", no_wrap=True)
    for session in status["sessions"]:
        was = before.get(_name(status, session), {})
        calls, trips, came, went = (_rate(session, was, name, status["now"], rates) for name in COUNTED)
        row = [str(session["pid"]), *(plain(session.get(name, "")) or "?" for name in texts.values())]
        row += [str(session["client_pid"]), size(_memory(session)), _share(session), count(calls), count(trips)]
        row += [size(came), size(went), _age(status["now"] - session["since"])] if wide else [size(came + went)]
        # Figures are a socket's word, too. In a plain string rich would look for its markup, and for names of emoji.
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def _memory(session: Status) -> int:
    """As the driver counts it, with the context, where it does."""
    return sum((session["memory_bytes"] | session["gpu_memory_bytes"]).values())


def _share(session: Status) -> str:
    """Of the device of which it has most."""
    return f"{max(session['gpu_percent'].values())}%" if session["gpu_percent"] else "-"


def _rate(session: Status, was: Status, name: str, now: float, rates: bool) -> int:
    """Since the last look; of one that was not there then, since it came."""
    if not rates:
        return int(session[name])
    return int((session[name] - was.get(name, 0)) / max(now - was.get("at", session["since"]), 0.05))


def _short(number: float, step: int, units: str) -> str:
    unit = 0
    while number >= step * 0.9995 and unit < len(units) - 1:
        number /= step
        unit += 1
    digits = 0 if unit == 0 or number >= 99.5 else 1
    return f"{number:.{digits}f}{units[unit].strip()}"


def count(number: int) -> str:
    return _short(number, 1000, " kMGTP")


def size(number: int) -> str:
    return _short(number, 1024, "BKMGTP")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(int(seconds), 0)}s"
