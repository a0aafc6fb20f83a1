"""The tables of ``gpt2onnx check``: legs, layers, causes, and the matrix of seeded defects."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from converter.cli import tables, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from converter.parity.diagnosis.taps import Localisation, TapReport
    from converter.parity.report.report import Report
    from converter.parity.seeded.prove import Proof
    from converter.parity.verdict.judge import LegReport

# Columns of the table of legs: its heading, and what stands there for a leg.
LEG_COLUMNS: dict[str, Callable[[LegReport], str]] = {
    "RMS error": lambda leg: f"{leg.rms:.1e}",
    "max error": lambda leg: f"{leg.maximum:.1e}",
    "RMS ÷ floor": lambda leg: f"{leg.rms_floors:.2f}" if leg.has_floors else "",
    "max ÷ floor": lambda leg: f"{leg.maximum_floors:.2f}" if leg.has_floors else "",
    "other top-1": lambda leg: str(leg.flips),
    "near ties": lambda leg: str(leg.near_ties),
    "top-5": lambda leg: f"{leg.top_k:.1%}",
    "KL mean": lambda leg: f"{leg.kl_mean:.0e}",
    "perplexity ÷ truth's": lambda leg: f"{leg.perplexity_ratio:.5f}" if leg.scored else "–",
}

# What a narrow terminal has no room for, the first to go first. A verdict rests on the others: on the largest error in
# float64, on multiples of the floor in float32, and where a leg has a budget on its BUDGETED.
DISPENSABLE = ("top-5", "near ties", "other top-1", "perplexity ÷ truth's", "KL mean", "proves", "RMS error")
BUDGETED = ("perplexity ÷ truth's", "KL mean")


FINDINGS_SHOWN = 5


FLOAT32_STEP = 2.0**-23


def print_report(report: Report, layers: bool = False) -> None:
    """Print the verdict on a model folder with its table of legs and, on a mismatch, the cause."""
    out = terminal.console()
    print_legs(out, report)
    out.print(
        f"Errors are shares of the logits' scale, {report.scale:.3g}; noise floor {report.floor_rms:.1e} RMS, "
        f"{report.floor_maximum:.1e} max. {max(leg.positions for leg in report.legs)} positions of {report.text}; "
        f"{report.settings['provider']}; {report.seconds:.1f} s."
    )
    if report.localisation is not None and layers:
        print_layers(out, report.localisation, report.passed)
    for note in report.notes:
        out.print(f"note: {note}", markup=False)
    print_diagnosis(out, report)
    for fault in report.other_faults:
        out.print(f"note: {fault}", markup=False)
    out.print(f"[{'green' if report.passed else 'red'} bold]{report.headline}[/]: ", end="")
    out.print(report.verdict, markup=False)


def print_legs(out: Console, report: Report) -> None:
    """Print the table of legs, with as many columns as there is room for."""
    needed = BUDGETED if any(leg.allowed is not None for leg in report.legs) else ()
    tables.show_dense(out, leg_table(report), *(name for name in DISPENSABLE if name not in needed))


def leg_table(report: Report) -> Table:
    """Return the table of legs with all its columns."""
    from converter.parity.outputs import summaries

    legs = tables.table("leg", "proves", *LEG_COLUMNS, "verdict", right=tuple(LEG_COLUMNS))
    blank = [""] * len(LEG_COLUMNS)
    for row in report.comparisons:
        legs.add_row(row.name, row.proves, *blank, mark(row.status))
    for leg in report.legs:
        legs.add_row(leg.name, leg.kind, *(text(leg) for text in LEG_COLUMNS.values()), mark(leg.status))
    for found in summaries(report.outputs):
        floors = "" if math.isnan(found.floors) else f"{found.floors:.2f}"
        known = {"RMS error": f"{found.rms:.1e}", "RMS ÷ floor": floors}
        cells = (known.get(name, "") for name in LEG_COLUMNS)
        legs.add_row(found.name, found.proves, *cells, mark("FAIL" if found.faults else "pass"))
    return legs


def mark(status: str) -> str:
    """Return a status in its colour."""
    colour = COLOURS.get(status)
    return f"[{colour}]{status}[/]" if colour else status


COLOURS = {"pass": "green", "FAIL": "red", "over budget": "yellow"}


def print_diagnosis(out: Console, report: Report) -> None:
    """Print where the error arises and what explains it."""
    located, diagnosis = report.localisation, report.diagnosis
    if located is not None and located.first:
        out.print(f"first divergence: {located.first}, in the case {located.case!r}", markup=False)
    for finding in diagnosis.findings[:FINDINGS_SHOWN] if diagnosis is not None else ():
        out.print(f"cause ({finding.cause}): {finding.sentence} [{finding.evidence}]", markup=False)
    if diagnosis is not None and len(diagnosis.findings) > FINDINGS_SHOWN:
        out.print(f"and {len(diagnosis.findings) - FINDINGS_SHOWN} more; --json lists them all")


def print_layers(out: Console, located: Localisation, passed: bool) -> None:
    """Print the error of every operation, a layer in each line: ONNX Runtime's ÷ Hugging Face's, or on a mismatch in
    float64.
    """
    from converter.parity.legs.half import FLOAT16_MAXIMUM

    operations = list(dict.fromkeys(tap.name.split(".", 2)[2] for tap in located.taps if tap.layer is not None))
    in_float64 = not any(math.isnan(tap.onnx_float64) for tap in located.taps)
    rows = tables.table("layer", *operations, "largest value", right=(*operations, "largest value"))

    def cell(tap: TapReport) -> str:
        if not passed:
            return f"{tap.onnx_float64 if in_float64 else tap.onnx:.0e}"
        return f"{tap.onnx / max(tap.huggingface, FLOAT32_STEP):.1f}"

    layers: dict[int, list[TapReport]] = {}
    for tap in located.taps:
        if tap.layer is not None:
            layers.setdefault(tap.layer, []).append(tap)
    for layer, taps in layers.items():
        cells = {tap.name.split(".", 2)[2]: cell(tap) for tap in taps}  # exporters join some operations
        row = [cells.get(name, "") for name in operations]
        rows.add_row(f"h.{layer}", *row, f"{max(tap.largest for tap in taps):.4g}")
    if layers:
        tables.show(out, rows)
    others = ", ".join(f"{tap.name} {cell(tap)}" for tap in located.taps if tap.layer is None)
    wrong = f"error in float{64 if in_float64 else 32}"
    what = "ONNX Runtime's error as a multiple of Hugging Face's" if passed else wrong
    out.print(f"{what}, on {located.case!r}; {others}. float16 holds values up to {FLOAT16_MAXIMUM:.0f}.", markup=False)


SEEN = {True: "[green]caught[/]", False: "[red]MISSED[/]", None: "–"}  # None: no logits can show it


def print_proof(proof: Proof) -> None:
    """Print the table of seeded defects."""
    out = terminal.console()
    rows = tables.table("seeded defect", "with files", "logits alone", "named", "what was said")
    for trial in proof.trials:
        rows.add_row(
            trial.defect,
            SEEN[trial.caught],
            SEEN[trial.caught_by_logits],
            "[green]yes[/]" if trial.named and trial.named_by_logits is not False else "[red]NO[/]",
            trial.said.replace("[", "\\["),
        )
    tables.show(out, rows)
    for name in proof.skipped:
        out.print(f"note: {name}: not possible in this model", markup=False)
    out.print(
        f"{proof.matrix} times 1 + {proof.smallest:.1e} is still noticed by the logits alone; {proof.seconds:.0f} s.",
        markup=False,
    )
    missed = sum(not trial.passed for trial in proof.trials)
    if not proof.sound:
        out.print("[red bold]MISSED[/]: the sound conversion did not pass")
    elif missed:
        out.print(f"[red bold]MISSED[/]: {missed} of {len(proof.trials)} defects were not caught or not named")
    else:
        out.print(f"[green bold]PROVEN[/]: all {len(proof.trials)} defects were caught and named")
