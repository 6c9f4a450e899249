"""A failing program made small: lines left out as long as it still fails, and stays a program that CUDA allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from random_programs.model import Model
from random_programs.operations import Operation, Program
from random_programs.state import Illegal

# Where an operation's length and its offsets stand among its numbers.
LENGTHS = {"copy": (8,), "set": (6,), "fill": (4,), "iota": (3,), "mix": (6,), "host": (7,), "put": (2,), "check": (2,),
           "peek": (2,)}  # fmt: skip
OFFSETS = {"copy": (3, 6), "set": (3,), "fill": (2,), "iota": (2,), "mix": (2, 4), "host": (3, 5), "put": (1,),
           "check": (1,), "peek": (1,)}  # fmt: skip


def legal_part(operations: Iterable[Operation], features: frozenset[str]) -> Program:
    """The operations without those that cannot stand where they are, now that others are missing."""
    model, kept = Model(features), Program()
    for op in operations:
        try:
            model.apply(op)
        except Illegal:
            continue
        kept.append(op)
    return [] if model.capture else kept


def without_parts(program: Program, fails: Callable[[Program], bool], features: frozenset[str]) -> Program:
    """Delta debugging: ever smaller parts are left out, from the end to the beginning."""
    part = max(1, len(program) // 2)
    while True:
        smaller = False
        end = len(program)
        while end > 0:
            trial = legal_part([*program[: max(0, end - part)], *program[end:]], features)
            if trial and len(trial) < len(program) and fails(trial):
                program, smaller = trial, True
            end = min(end - part, len(program))
        if part > 1:
            part //= 2
        elif not smaller:
            return program


def simpler(op: Operation) -> Iterable[Operation]:
    if op.thread:
        yield replace(op, thread=0)
    if op.name in ("alloc", "pageable", "pinned", "registered", "vmm", "pool_alloc", "pool_from"):
        device = op.name in ("alloc", "vmm", "pool_alloc", "pool_from")
        yield Operation(op.thread, "alloc" if device else "pageable", op.args[:2])
    if op.name == "spin":
        yield replace(op, args=(op.args[0], 1))
    for place in LENGTHS.get(op.name, ()):
        for length in (1, 4, 16, op.args[place] // 2):
            if 0 < length < op.args[place]:
                yield replace(op, args=(*op.args[:place], length, *op.args[place + 1 :]))
    for place in OFFSETS.get(op.name, ()):
        if op.args[place]:
            yield replace(op, args=(*op.args[:place], 0, *op.args[place + 1 :]))


def with_simpler_lines(program: Program, fails: Callable[[Program], bool], features: frozenset[str]) -> Program:
    for index in range(len(program)):
        for op in simpler(program[index]):
            trial = [*program[:index], op, *program[index + 1 :]]
            if len(legal_part(trial, features)) == len(trial) and fails(trial):
                program = trial
                break
    return program


def shrink(program: Program, fails: Callable[[Program], bool], features: frozenset[str]) -> Program:
    """`fails` says whether a program still fails; it may be asked a few hundred times."""
    program = without_parts(program, fails, features)
    program = with_simpler_lines(program, fails, features)
    return without_parts(program, fails, features)
