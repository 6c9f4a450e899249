"""Run programs that others wrote, natively and over both transports, and count what is lost.

    python tests/gpu/suites.py FOLDER [FOLDER ...] [--wheel PATH] [--sides native,native,tcp,shmem] [--jobs 8]
                               [--out DIR] [--seconds N] [--only TEXT]

A FOLDER holds built programs and `suite.json`, a list of entries:

    {"name": "adam", "command": "./main 10000 200", "cwd": "adam", "timeout": 60}
    {"name": "cuda_tests", "command": "python -m pytest -q --junitxml={junit} cuda_tests", "timeout": 120, "jobs": 8}

`command` is a shell line, run in `cwd` (relative to FOLDER); `{python}` is this interpreter. `jobs` says how many of
the --jobs places the entry takes. `{junit}` is a file that the command writes in JUnit's format: its tests are then
counted one by one. Every other entry is one case. It passes natively if it exits with 0 in both native runs, and
remotely if it exits with 0 and its words are those of the native runs. Words that differ between the two native runs
(times, rates, addresses) are not compared. With one native run nobody knows which figures are times: those that differ
are then listed beside the losses, and are none.

results.json (every case on every side, the last words of what was lost) and the table, also in summary.txt, are written
to --out after every side. Exit status 1 if a case that passes natively is lost.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import shlex
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run as runner
import suite
from harness import run_process, say, table, write_json
from transports import Place

LAST_WORDS = 240  # characters of a lost case's last line that are kept
KEPT_OUTPUT = 200_000  # bytes of a program's output that are compared: what is longer is compared so far


@dataclass(frozen=True)
class Entry:
    suite: str
    folder: Path
    name: str
    command: str
    cwd: str = "."
    timeout: float = 60.0
    jobs: int = 1
    env: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.suite}/{self.name}"


@dataclass
class Outcome:
    """One case on one side: `passed` by its own exit status or report, and the words to compare."""

    passed: bool
    words: list[str] = field(default_factory=list)
    last: str = ""
    seconds: float = 0.0


def read_suite(folder: Path) -> list[Entry]:
    """The entries of FOLDER/suite.json; ValueError names what is wrong in it."""
    path = folder / "suite.json"
    entries = json.loads(path.read_text())
    found: list[Entry] = []
    for number, value in enumerate(entries):
        try:
            found.append(Entry(suite=folder.name, folder=folder.resolve(), **value))
        except TypeError as error:
            raise ValueError(f"{path}, entry {number}: {error}") from error
    if len({entry.name for entry in found}) != len(found):
        raise ValueError(f"{path}: two entries have the same name")
    return found


class Places:
    """How many jobs run beside each other; an entry may take several places."""

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self.changed = threading.Condition()

    def take(self, wanted: int) -> int:
        wanted = min(max(wanted, 1), self.count)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted)
            self.free -= wanted
        return wanted

    def give(self, taken: int) -> None:
        with self.changed:
            self.free += taken
            self.changed.notify_all()


def last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LAST_WORDS] if lines else ""


def junit_cases(path: Path) -> dict[str, Outcome]:
    """Every test of a JUnit report by name; skipped tests are left out."""
    cases: dict[str, Outcome] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        children = {child.tag: child for child in case}
        if "skipped" in children:
            continue
        bad = children.get("failure", children.get("error"))
        message = "" if bad is None else (bad.get("message") or bad.text or "no message").splitlines()[0][:LAST_WORDS]
        cases[name] = Outcome(bad is None, [], message, float(case.get("time") or 0))
    return cases


def run_entry(place: Place, entry: Entry, side: str, turn: int, timeout: float) -> dict[str, Outcome]:
    """The cases of one entry on one side, by key."""
    # No dot: what follows one would be taken for a suffix, and two entries would share a log.
    log = place.logs / f"{side}-{turn}" / re.sub(r"[^A-Za-z0-9_-]", "_", entry.key)
    junit = log.with_suffix(".xml")
    line = entry.command.replace("{junit}", shlex.quote(str(junit))).replace("{python}", shlex.quote(sys.executable))
    env = {**place.environment(side), **entry.env}
    done = run_process(["bash", "-c", line], env, timeout, log, entry.folder / entry.cwd)
    if "{junit}" in entry.command:
        if junit.exists():
            return {f"{entry.key}/{name}": outcome for name, outcome in junit_cases(junit).items()}
        why = f"no report; ended with {done.returncode}: {last_words(done.stdout + done.stderr)}"
        return {entry.key: Outcome(False, [], why, done.seconds)}
    last = last_words(done.stderr) or last_words(done.stdout)
    if done.timed_out:
        last = f"no end within {timeout:.0f} s; {last}"
    elif done.returncode != 0:
        last = f"ended with {done.returncode}; {last}"
    words = done.stdout[:KEPT_OUTPUT].split()
    return {entry.key: Outcome(done.returncode == 0, words, last, done.seconds)}


def run_side(
    place: Place, entries: list[Entry], side: str, turn: int, jobs: int, deadline: float
) -> tuple[dict[str, Outcome], list[str]]:
    """All entries on one side; what could not begin before the deadline is named in the second value."""
    places, found, late = Places(jobs), {}, []
    lock = threading.Lock()

    def one(entry: Entry) -> None:
        taken = places.take(entry.jobs)
        try:
            left = deadline - time.monotonic()
            if left < 5:
                with lock:
                    late.append(entry.key)
                return
            outcomes = run_entry(place, entry, side, turn, min(entry.timeout, left))
            with lock:
                found.update(outcomes)
        finally:
            places.give(taken)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for future in [pool.submit(one, entry) for entry in entries]:
            future.result()
    return found, late


def without_figures(words: list[str]) -> list[str]:
    return [re.sub(r"0x[0-9a-fA-F]+|[0-9][0-9.,]*(e[-+]?[0-9]+)?", "#", word) for word in words]


def words_differ(native: list[list[str]], remote: list[str]) -> str:
    """The first word that all native runs print alike and the remote one does not, or an empty string."""
    if len({len(words) for words in native}) > 1:
        return ""  # natively not even the number of words is stable
    if len(remote) != len(native[0]):
        return f"{len(remote)} words, natively {len(native[0])}"
    for position, word in enumerate(remote):
        if word != native[0][position] and all(words[position] == native[0][position] for words in native):
            return f"word {position} is {word[:60]!r}, natively {native[0][position][:60]!r}"
    return ""


def losses(
    native: list[dict[str, Outcome]], remote: dict[str, Outcome]
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """The cases that pass in every native run, why some of them are lost remotely, and where only figures differ from
    those of a single native run."""
    passing = [key for key in native[0] if all(key in run and run[key].passed for run in native)]
    lost: dict[str, str] = {}
    figures: dict[str, str] = {}
    for key in passing:
        outcome = remote.get(key)
        if outcome is None:
            lost[key] = "not run"
        elif not outcome.passed:
            lost[key] = outcome.last or "no word"
        else:
            words = [run[key].words for run in native]
            different = words_differ(words, outcome.words)
            if len(native) == 1 and different:
                more = words_differ([without_figures(words[0])], without_figures(outcome.words))
                (lost if more else figures)[key] = more or different
            elif different:
                lost[key] = different
    return passing, lost, figures


def cause(text: str) -> str:
    """A reason without the figures, addresses and paths that make it unlike its neighbours."""
    return re.sub(r"0x[0-9a-f]+|/\S+|\d+", "#", text)[:110]


def report(
    native: list[dict[str, Outcome]], remotes: dict[str, dict[str, Outcome]]
) -> tuple[str, dict[str, Any], bool]:
    suites = sorted({key.split("/")[0] for key in native[0]})
    rows: list[list[str]] = []
    data: dict[str, Any] = {}
    whole = True
    details: list[str] = []
    lost_by_side = {side: losses(native, outcomes) for side, outcomes in remotes.items()}
    for name in suites:
        cells = [name, str(len([key for key in native[0] if key.split("/")[0] == name]))]
        for side, (passing, lost, _) in lost_by_side.items():
            own = [key for key in passing if key.split("/")[0] == name]
            gone = [key for key in own if key in lost]
            if len(cells) == 2:
                cells.append(str(len(own)))
            cells.append(str(len(own) - len(gone)))
            whole = whole and not gone
            data[f"{name}/{side}"] = {"passes natively": len(own), "passes": len(own) - len(gone)}
        rows.append(cells)
    for side, (_, lost, figures) in lost_by_side.items():
        details += [f"{side:6} only figures differ: {key}: {why}" for key, why in figures.items()]
        causes = collections.Counter(cause(why) for why in lost.values())
        for why, count in causes.most_common(40):
            members = [key for key, text in lost.items() if cause(text) == why]
            details.append(f"{side:6} {count:5}  {why}   e.g. {', '.join(members[:3])}")
    text = table(["suite", "cases", "native", *remotes], rows) if remotes else "only natively"
    return text + "\n\n" + "\n".join(details), data, whole


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--wheel", type=Path, help="wheel, or folder with the product (default: the newest in .gpu/)")
    parser.add_argument("--out", type=Path, default=suite.REPOSITORY / ".gpu" / "out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor-fusion-gpu")
    parser.add_argument(
        "--sides", default="native,native,tcp,shmem", help="in this order; native twice tells what is stable"
    )
    parser.add_argument("--jobs", type=int, default=8, help="programs beside each other")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all sides together, divided evenly")
    parser.add_argument("--only", default="", help="entries whose suite/name contains this")
    parser.add_argument("--gpu", choices=("real", "sim"), default="real", help="sim: to try the run itself")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    sides = [side.strip() for side in given.sides.split(",")]
    wrong = [side for side in sides if side not in ("native", "tcp", "shmem", "tls", "jail")]
    if wrong or sides[0] != "native":
        say(f"--sides: native first, then tcp, shmem, tls and jail; not {given.sides}")
        return 2
    try:
        entries = [entry for folder in given.folders for entry in read_suite(folder) if given.only in entry.key]
    except (OSError, ValueError) as error:
        say(f"cannot read a suite: {error}")
        return 2
    options = runner.parse(["--gpu", given.gpu, "--out", str(given.out), "--work", str(given.work),
                            *(["--wheel", str(given.wheel)] if given.wheel else [])])  # fmt: skip
    place = Place(options, sides, given.gpu == "sim")
    began = time.monotonic()
    native: list[dict[str, Outcome]] = []
    remotes: dict[str, dict[str, Outcome]] = {}
    notes: list[str] = []
    text, whole = "", True
    try:
        for turn, side in enumerate(sides):
            share = (given.seconds - (time.monotonic() - began)) / (len(sides) - turn)
            outcomes, late = run_side(place, entries, side, turn, given.jobs, time.monotonic() + share)
            notes += [f"{side}: no time for {key}" for key in late]
            passed = sum(outcome.passed for outcome in outcomes.values())
            say(f"[{time.monotonic() - began:6.1f} s] {side}: {passed} of {len(outcomes)} pass")
            if side == "native":
                native.append(outcomes)
            else:
                remotes[side] = outcomes
            text, data, whole = report(native, remotes)
            cases = {key: {side: (o.passed, o.last, round(o.seconds, 2)) for side, run in
                           [*((f"native{i}", run) for i, run in enumerate(native)), *remotes.items()]
                           if (o := run.get(key)) is not None} for key in native[0]}  # fmt: skip
            found = {side: losses(native, run) for side, run in remotes.items()}
            write_json(
                given.out / "results.json",
                {"suites": data, "lost": {side: lost for side, (_, lost, _) in found.items()},
                 "figures": {side: figures for side, (_, _, figures) in found.items()}, "notes": notes, "cases": cases},
            )  # fmt: skip
            (given.out / "summary.txt").write_text(text + "\n" + "\n".join(notes) + "\n")
    finally:
        place.close()
    say(text)
    for note in notes[:20]:
        say(note)
    return 0 if whole and remotes else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
