"""Try the branches of an export that no case takes.

A graph may go another way for inputs that nobody thought of. Each branch that never ran is taken for all cases: it must
give the same logits, as a model is the same whatever it is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from converter.parity.baseline import Baseline
from converter.parity.exports.branches import Side, is_constant, read_model, sides_of
from converter.parity.exports.legs import Decided, Ran
from converter.parity.exports.runs import REFUSED
from converter.runtime.exports.interface import Interface


def untaken(interfaces: Sequence[Interface], ran: Ran) -> Iterator[tuple[Path, Side, bool]]:
    """Yield each side of an If that no case took, its file, and whether some input may take it."""
    for each in interfaces:
        graph = read_model(each.file).graph
        for side in sides_of(graph):
            if side.taken not in ran.conditions.get((each.file, side.condition), set()):
                yield each.file, side, not is_constant(graph, side.condition)


def try_untaken(
    baseline: Baseline, interfaces: Sequence[Interface], ran: Ran, run: Callable[[Decided], Ran]
) -> tuple[list[str], list[str]]:
    """Run each branch that no case took; returns sentences about wrong ones, and about those that cannot be tried.

    Args:
        run: runs the cases with branches that are taken whatever their conditions are.
    """
    faults, notes = list[str](), list[str]()
    for file, side, possible in untaken(interfaces, ran):
        fault = _fault(baseline, run, {file: side.decided}) if possible else None
        if fault is None:
            notes.append(f"{side} was never taken")
        elif fault:
            faults.append(f"{side} is taken in none of the cases; where it is, a leg {fault}")
    return faults, notes


def _fault(baseline: Baseline, run: Callable[[Decided], Ran], decided: Decided) -> str | None:
    """Return what is wrong when branches are taken that never were: empty if nothing is, None if they cannot be run."""
    try:
        ran = run(decided)
    except REFUSED:
        return None
    if ran.failed or not ran.leg.distances:
        return None
    return baseline.judge.fault(ran.leg)
