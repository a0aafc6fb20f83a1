"""Say in sentences what qualifies the verdict on an export: what it takes, what was not run, where it is right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from converter.parity.baseline import Baseline
from converter.parity.exports.asked import Asked
from converter.parity.exports.cases import feeds_every_token, untried
from converter.parity.exports.legs import Ran
from converter.parity.exports.quantized import multiplies_int8
from converter.parity.exports.suspects import Suspects
from converter.parity.legs.cases import Case, Level
from converter.parity.legs.identity import LegKind
from converter.parity.verdict.judge import MeasuredLeg
from converter.runtime.exports.files import others
from converter.runtime.integer import exact_kind

SHOWN = 3  # names in a sentence


def shortened(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def of_files(asked: Asked) -> Iterator[str]:
    """Yield which files were compared, if the folder holds others, what each takes, and what else it gives."""
    folder = asked.path
    left = [os.fspath(file.relative_to(folder)) for file in others(folder, asked.files)]
    if left:
        chosen = " and ".join(os.fspath(file.relative_to(folder)) for file in asked.files)
        yield f"compared is {chosen}; name another file to compare it: {shortened(left)}"
    for each in asked.interfaces:
        what = f"the interface of {each.file.name}" if len(asked.interfaces) > 1 else "its interface"
        yield f"{what} is {each.sentence}"
    for file, names in asked.unjudged.items():
        if names:
            yield f"{file.name} also returns {shortened(names)}, which {'were' if names[1:] else 'was'} not compared"


def of_graph(baseline: Baseline, found: Suspects) -> Iterator[str]:
    """Yield what a graph may do that no case need show: bound values, or treat a token in a way of its own."""
    if left := untried(found.numbers, baseline.ledger.config):
        yield (
            f"it compares something with {shortened(list(map(str, left)))}; not every batch, text and token of these "
            f"numbers was fed, and it may do something else there"
        )
    if found.bounds:
        yield f"it bounds values by {shortened(found.bounds)}; what lies beyond is compared where a case reaches it"
    if found.uses and baseline.level is not Level.FULL and not feeds_every_token(baseline.ledger.config):
        yield (
            f"token ids go into {shortened(found.uses)} besides to the embedding, so that some token may be treated in "
            f"a way of its own; check --level full feeds every token"
        )


def of_products(files: Sequence[Path]) -> Iterator[str]:
    """Yield what this processor does to products of whole numbers, if a file has some that suffer from it."""
    if exact_kind() != np.int8 and any(map(multiplies_int8, files)):
        yield (
            "on this processor ONNX Runtime adds products with int8 weights in 16 bits and cuts off what is larger; "
            "with uint8 weights, or on a processor with VNNI, it does not"
        )


def of_run(ran: Ran) -> Iterator[str]:
    """Yield which cases an interface cannot express, and how it counts."""
    yield from (f"{why}; not run: {shortened(cases)}" for why, cases in ran.skipped.items())
    if ran.by_column:
        yield (
            "it takes no position_ids and counts padding too, so that a row of a left-padded batch gets other tokens "
            "than alone; give it rows of one length"
        )


def where_right(baseline: Baseline, measured: Sequence[MeasuredLeg], failed: Sequence[str]) -> Iterator[str]:
    """Yield in which cases an export is wrong, if it is right in others.

    Args:
        failed: the cases that cannot be run.
    """
    for leg in measured:
        cases = [case for case in baseline.cases if case.name in leg.distances]
        wrong = [*(case.name for case in cases if beyond(baseline, leg, case)), *failed]
        right = [case.name for case in cases if case.name not in wrong]
        if wrong and right and leg.kind is not LegKind.LOSSY:
            few = len(right) < len(wrong)
            yield (
                f"it is right in {shortened(right)}, and wrong in the other cases"
                if few
                else f"it is wrong in {shortened(wrong)}, and right in the other cases"
            )
            return


def beyond(baseline: Baseline, leg: MeasuredLeg, case: Case) -> bool:
    """Tell whether a leg is beyond its limit in a case."""
    judge, distance = baseline.judge, leg.distances[case.name]
    allowed = leg.limit * judge.scale or judge.limits.maximum * judge.floor(leg.distances)[1]
    return not distance.total_maximum <= allowed
