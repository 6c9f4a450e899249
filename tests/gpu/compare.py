"""What two runs of one program must have in common, and the rows of the report.

Bit equality of digests; equality of text but for named expectations; and the proof that a remote run really used the
client library and a native run really did not, without which an equal digest would prove nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Program, Sample, figure, last_json_line, median


@dataclass
class Row:
    program: str
    figure: str
    equal: str
    native: float | None
    remote: float | None
    required: str
    ok: bool
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        ratio = self.remote / self.native if self.native and self.remote is not None else None
        return (
            self.program,
            self.figure,
            self.equal,
            figure(self.native),
            figure(self.remote),
            figure(ratio),
            self.required,
            "ok" if self.ok else "NO",
            self.note,
        )


HEADER = ("program", "figure", "equal", "native", "remote", "ratio", "required", "ok", "note")


@dataclass
class Verdict:
    rows: list[Row]
    details: list[str] = field(default_factory=list)


def wrong_library(sample_side: str, libraries: Any, client_folder: Path) -> str:
    """Why this process did not use the driver library that its side says, or an empty string."""
    if not isinstance(libraries, list):
        return "the program did not say which driver library it used"
    cuda = [str(path) for path in libraries if Path(str(path)).name.startswith(("libcuda.so", "libnvidia-ml.so"))]
    ours = [path for path in cuda if Path(path).resolve().parent == client_folder.resolve()]
    if not cuda:
        return "no driver library was mapped at the end"
    if sample_side == "remote" and len(ours) != len(cuda):
        return f"a remote run mapped {', '.join(path for path in cuda if path not in ours)}"
    if sample_side == "native" and ours:
        return f"a native run mapped {', '.join(ours)}"
    return ""


TRANSPORTS = ("tcp", "shmem")


def read_expectations(path: Path | None, transport: str = "tcp") -> dict[str, str]:
    """`section/question # reason` lines, keyed by the question; a line without a reason is refused.

    A line that begins with `tcp: ` or `shmem: ` is for that transport alone."""
    if path is None:
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, separator, reason = line.partition(" # ")
        if not separator or not reason.strip():
            raise ValueError(f"{path.name}:{number}: an expected difference needs ' # ' and a reason: {line!r}")
        only, separator, rest = key.partition(": ")
        if separator and only in TRANSPORTS:
            if only != transport:
                continue
            key = rest
        found[key.strip()] = reason.strip()
    return found


def answers(text: str) -> dict[str, str]:
    """`question = answer` lines; a question asked twice gets a number. The JSON line at the end is left out."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        question, separator, answer = line.partition(" = ")
        if line.startswith("{") or not separator:
            continue
        key, turn = question, 2
        while key in found:
            key, turn = f"{question} ({turn})", turn + 1
        found[key] = answer
    return found


def compare_text(program: Program, native: Sample, remote: Sample, transport: str) -> Verdict:
    expected = read_expectations(program.expectations, transport)
    here, there = answers(native.stdout), answers(remote.stdout)
    surprises: list[str] = []
    foreseen = 0
    for question in [*here, *(q for q in there if q not in here)]:
        if here.get(question) == there.get(question):
            continue
        if question in expected:
            foreseen += 1
        else:
            surprises.append(f"{question}: native {here.get(question, '-')}, remote {there.get(question, '-')}")
    details = [f"{len(surprises)} answers differ, {foreseen} foreseen differences, {len(here)} questions", *surprises]
    unneeded = [key for key in expected if key in here and here.get(key) == there.get(key)]
    details += [f"no longer differs, take it out of {program.expectations}: {key}" for key in unneeded]
    ok = bool(here) and not surprises
    same = float(len(here) - len(surprises) - foreseen)
    note = f"{foreseen} expected to differ"
    equal = "yes" if ok else "NO"
    row = Row(program.name, "answers equal", equal, float(len(here)), same, "all but the expected", ok, note)
    return Verdict([row], details if surprises or unneeded else [])


def compare_checks(program: Program, sample: Sample) -> Verdict:
    result = sample.result or last_json_line(sample.stdout) or {}
    checks = result.get("checks", [])
    rows = []
    details = []
    for check in checks:
        value = check.get("value")
        rows.append(
            Row(
                program.name,
                str(check["name"]),
                "",
                None,
                float(value) if value is not None else None,
                str(check.get("required", "")),
                bool(check["ok"]),
                "" if check["ok"] else str(check.get("detail", ""))[:100],
            )
        )
        if not check["ok"]:
            details.append(f"{check['name']}: {check.get('detail', '')}")
    if not rows or sample.problem:
        rows.append(Row(program.name, "ran to its end", "", None, None, "", False, sample.problem or "gave no checks"))
    return Verdict(rows, details)


def differing_parts(samples: list[Sample]) -> list[str]:
    """Names of the results that are not the same in all samples, where the program named its parts."""
    maps = [s.result.get("parts", {}) for s in samples if s.result is not None]
    names = {name for parts in maps for name in parts}
    return sorted(name for name in names if len({parts.get(name) for parts in maps}) > 1)


def values_of(name: str, samples: list[Sample]) -> list[float]:
    """One figure of every sample that has it."""
    metrics = [s.result["metrics"] for s in samples if s.result is not None]
    return [float(found[name]) for found in metrics if name in found]


def judge(program: Program, samples: list[Sample], transport: str = "tcp") -> Verdict:
    """The rows of one program from all its samples."""
    bad = [sample for sample in samples if sample.problem]
    details = []
    for sample in bad:
        details.append(f"{sample.side} run {sample.index}: {sample.problem}")
        details += [f"    {line}" for line in sample.stderr_tail]
    if program.kind == "checks":
        verdict = (
            compare_checks(program, samples[0])
            if samples
            else Verdict([Row(program.name, "ran", "", None, None, "", False, "did not run")])
        )
        return Verdict(verdict.rows, details + verdict.details)
    native = [s for s in samples if s.side == "native" and s.result is not None]
    remote = [s for s in samples if s.side == "remote" and s.result is not None]
    if program.kind == "text":
        if not native or not remote:
            row = Row(program.name, "answers equal", "NO", None, None, "all", False, "a side failed")
            return Verdict([row], details)
        verdict = compare_text(program, native[0], remote[0], transport)
        for row in verdict.rows:
            row.ok = row.ok and not bad
        return Verdict(verdict.rows, details + verdict.details)

    digests = {str((s.result or {}).get("digest")) for s in [*native, *remote]}
    equal = bool(native) and bool(remote) and len(digests) == 1
    note = ""
    if bad:
        note = f"{len(bad)} of {len(samples)} runs failed"
    elif not equal:
        parts = differing_parts([*native, *remote])
        note = "differs: " + (", ".join(parts[:4]) or "the digest")
        if len({str((s.result or {}).get("digest")) for s in native}) > 1:
            note = "native runs differ among themselves: " + ", ".join(parts[:4])
        details.append(f"parts that differ: {', '.join(parts) or 'not named by the program'}")
    rows = [Row(program.name, "results", "yes" if equal else "NO", None, None, "bit for bit", equal and not bad, note)]
    for metric in program.metrics:
        here, there = median(values_of(metric.name, native)), median(values_of(metric.name, remote))
        required = metric.required() + (f", aim {metric.aim}" if metric.aim else "")
        label = f"{metric.name}" + (f" [{metric.unit}]" if metric.unit and metric.unit not in metric.name else "")
        rows.append(Row(program.name, label, "", here, there, required, metric.reached(here, there)))
    return Verdict(rows, details)
