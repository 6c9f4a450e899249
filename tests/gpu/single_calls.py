"""Single calls with good and bad arguments (tests/calls) on this machine's driver and through the stack, compared.

    python tests/gpu/single_calls.py [--sides native,tcp,shmem] [--seconds 240] [--jobs 12] [--only NAME] [--out DIR]

Each side has a file of answers in --out, a line for each call, written as it comes. The seconds are shared by the
sides; the same command again goes on where it ended. A call that hangs says so after --case-seconds. What differs is
asked once more natively, each call in a process that nothing crashed in before. The last thing printed is a table;
differences.txt has every way in which answers differ. Exit status 1 if calls have no answer yet or answers differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import run as runner
import suite
from calls.fuzz import (
    NO_ANSWER,
    STATES,
    all_cases,
    answers_of,
    ask,
    ask_beside,
    compile_calls,
    differences,
    read_answers,
)
from harness import say, table
from transports import Place

AGAIN_SECONDS = 30.0  # beside --seconds: what differs is asked natively once more
SHOWN = 40


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--wheel", type=Path, help="wheel, or folder with the product (default: the newest in .gpu/)")
    parser.add_argument("--out", type=Path, default=suite.REPOSITORY / ".gpu" / "out" / "calls")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tensor-fusion-gpu")
    parser.add_argument("--sides", default="native,tcp,shmem", help="in this order; the first is the judge")
    parser.add_argument("--jobs", type=int, default=12, help="processes beside each other")
    parser.add_argument("--seconds", type=float, default=240.0, help="for all sides together")
    parser.add_argument("--case-seconds", type=int, default=5, help="after which a call hangs")
    parser.add_argument("--only", default="", help="part of a function's name")
    parser.add_argument("--gpu", choices=("real", "sim"), default="real", help="sim: to try the run itself")
    return parser.parse_args(arguments)


def state_rows(cases: Sequence[str], answers: dict[str, dict[str, str]]) -> list[list[str]]:
    """For each state and for all: calls; native answers, crashes, hangs; on each other side answers, differences."""
    judge, *others = answers.values()
    rows = []
    for state in (*STATES, ""):
        mine = [case for case in cases if case.startswith(state)]
        native = {case: judge[case] for case in mine if case in judge}
        ends = Counter(next((word for word in NO_ANSWER if answer.startswith(word)), "") for answer in native.values())
        row = [state or "all", len(mine), len(native), ends["crashes"], ends["hangs"] + ends["not reached"]]
        for other in others:
            known = {case: answer for case, answer in native.items() if case in other}
            row += [sum(case in other for case in mine), sum(map(len, differences(known, other).values()))]
        rows.append([str(cell) for cell in row])
    return rows


def ways(judge: dict[str, str], other: dict[str, str]) -> dict[str, list[str]]:
    """How answers differ, where both have one."""
    return differences({case: answer for case, answer in judge.items() if case in other}, other)


def ask_apart(
    binary: Path, cases: Sequence[str], out: Path, env: dict[str, str], given: argparse.Namespace
) -> dict[str, str]:
    """The answers of calls that have a process each, for as long as AGAIN_SECONDS; they are added to `out`."""
    end = time.monotonic() + AGAIN_SECONDS

    def one(case: str) -> str:
        late = time.monotonic() > end
        return "" if late else ask(binary, "libcuda.so.1", [case], env, given.case_seconds)[0]

    with ThreadPoolExecutor(max_workers=given.jobs) as pool:
        lines = [line for line in pool.map(one, cases) if line]
    with out.open("a") as file:
        file.writelines(line + "\n" for line in lines)
    if len(lines) < len(cases):
        say(f"{len(cases) - len(lines)} of the calls that differ were not asked once more: no time")
    return answers_of(lines)


def main(arguments: Sequence[str]) -> int:
    given = parse(arguments)
    sides = [side.strip() for side in given.sides.split(",")]
    if not sides or any(side not in ("native", "tcp", "shmem") for side in sides) or len(set(sides)) < len(sides):
        say(f"--sides: native, tcp and shmem, each once; not {given.sides}")
        return 2
    options = runner.parse(["--gpu", given.gpu, "--out", str(given.out), "--work", str(given.work),
                            *(["--wheel", str(given.wheel)] if given.wheel else [])])  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    began, cases = time.monotonic(), all_cases(given.only)
    files = {side: given.out / f"{side}.txt" for side in sides}
    again = given.out / f"{sides[0]}-again.txt"
    place = Place(options, sides, given.gpu == "sim")
    try:
        binary = compile_calls(given.work / "calls", "gcc")
        for turn, side in enumerate(sides):
            share = (given.seconds - (time.monotonic() - began)) / (len(sides) - turn)
            wrong = ask_beside(binary, "libcuda.so.1", cases, files[side], place.environment(side), given.jobs, share,
                               given.case_seconds)  # fmt: skip
            for sentence in wrong[:10]:
                say(f"{side}: {sentence}")
            say(f"[{time.monotonic() - began:6.1f} s] {side}: {len(read_answers(files[side]))} answers")
        asked = set(cases)
        answers = {side: {c: a for c, a in read_answers(files[side]).items() if c in asked} for side in sides}
        judge = answers[sides[0]]
        judge.update({case: answer for case, answer in read_answers(again).items() if case in judge})
        doubtful = {c for s in sides[1:] for calls in ways(judge, answers[s]).values() for c in calls}
        doubtful -= set(read_answers(again))
        judge.update(ask_apart(binary, sorted(doubtful), again, place.environment(sides[0]), given))
    finally:
        place.close()
    found = {side: ways(judge, answers[side]) for side in sides[1:]}
    lines = [f"{side} {key}  {len(calls)} calls, the first: {calls[0]}" for side in sides[1:]
             for key, calls in found[side].items()]  # fmt: skip
    (given.out / "differences.txt").write_text("".join(line + "\n" for line in lines))
    for line in lines[:SHOWN]:
        say(line)
    header = ["state", "calls", sides[0], "crash", "hang", *(w for side in sides[1:] for w in (side, "differ"))]
    text = table(header, state_rows(cases, answers))
    (given.out / "summary.txt").write_text(text + "\n")
    say(f"\n{text}")
    whole = all(len(known) == len(cases) for known in answers.values())
    return 0 if whole and not any(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
