"""Build the tables of the HTML report in which every leg has a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from converter.parity.outputs import summaries
from converter.parity.report.report import Report
from converter.parity.report.words import error, ratio, share, times, with_error
from converter.parity.verdict.judge import LegReport
from converter.parity.verdict.metrics import TOP_K

Columns = Mapping[str, Callable[[LegReport], str]]


@dataclass(frozen=True)
class TableOfLegs:
    """A table in which every leg has a row.

    Attributes:
        caption: what its numbers are.
        judged: whether it tells what a leg is for, and the verdict.
        headings: the headings of its columns.
        rows: its rows.
    """

    caption: str
    judged: bool
    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class TableRow:
    """A leg, or a comparison of files.

    Attributes:
        name, proves: the leg, and what it is for.
        cells: the texts under the headings.
        verdict: ``pass``, ``FAIL``, or the status of a leg that is not judged.
    """

    name: str
    proves: str
    cells: tuple[str, ...]
    verdict: str


def _floors(text: Callable[[LegReport], str]) -> Callable[[LegReport], str]:
    """Return a column that is empty where multiples of the noise floor mean nothing."""
    return lambda leg: text(leg) if leg.has_floors else ""


def _budget(leg: LegReport) -> str:
    """Return the budget in force and whether the leg keeps it; empty if there is none."""
    if leg.allowed is None:
        return ""
    kept = "kept" if leg.within_budget else "EXCEEDED"
    return f"{leg.budget}: KL ≤ {leg.allowed.kl_mean:.0e}, ratio ≤ {leg.allowed.perplexity_ratio:g}: {kept}"


ERRORS: Columns = {
    "RMS": lambda leg: error(leg.rms),
    "max": lambda leg: error(leg.maximum),
    "RMS ÷ floor": _floors(lambda leg: times(leg.rms_floors)),
    "max ÷ floor": _floors(lambda leg: times(leg.maximum_floors)),
    "50 %": lambda leg: error(leg.p50),
    "99 %": lambda leg: error(leg.p99),
    "99.9 %": lambda leg: error(leg.p999),
    "worst in": lambda leg: leg.worst_case,
}
DECISIONS: Columns = {
    "other top-1": lambda leg: f"{leg.flips:,}",
    "near ties": lambda leg: f"{leg.near_ties:,}",
    f"top-{TOP_K} shared": lambda leg: share(leg.top_k),
    "KL mean": lambda leg: error(leg.kl_mean),
    "KL 99 %": lambda leg: error(leg.kl_99),
    "KL 99.9 %": lambda leg: error(leg.kl_999),
    "KL max": lambda leg: error(leg.kl_maximum),
    "Δp RMS": lambda leg: error(leg.dp_rms),
    "Δp 99 %": lambda leg: error(leg.dp_99),
    "Δp max": lambda leg: error(leg.dp_maximum),
}
TEXT: Columns = {
    "perplexity": lambda leg: with_error(leg.perplexity, leg.perplexity_error),
    "ratio to the truth's": lambda leg: ratio(leg.perplexity_ratio, leg.perplexity_ratio_error),
    "tokens scored": lambda leg: f"{leg.scored:,}",
    "positions": lambda leg: f"{leg.positions:,}",
    "budget": _budget,
    "seconds": lambda leg: f"{leg.seconds:.2f}",
}
WORDS = ("worst in", "budget")  # columns of words; the others have numbers
TABLES: tuple[tuple[str, Columns], ...] = (
    ("Errors of the logits, as shares of their scale", ERRORS),
    ("Decisions and distributions", DECISIONS),
    ("Perplexity, budgets, time", TEXT),
)

KEYS = (
    (
        "RMS, max",
        "distance of a leg's logits from the float64 truth; 50 %, 99 %, 99.9 %: what so many of them do not exceed",
    ),
    ("÷ floor", "the same as multiples of the noise floor, which is Hugging Face's own float32"),
    (
        "other top-1",
        "positions whose likeliest token is not the truth's; near ties, which an allowed error could swap, count apart",
    ),
    ("KL", "divergence of the leg's distribution from the truth's at each position, in nats"),
    ("Δp", "error in the probability of the token that follows in the text"),
    ("±", "standard error; for a ratio, that of the paired difference"),
)


def table(titled: tuple[str, Columns], report: Report) -> TableOfLegs:
    """Return a table with a row for each leg. The table of errors also has rows for files and outputs."""
    caption, columns = titled
    rows = []
    for leg in report.legs:
        cells = tuple(text(leg) for text in columns.values())
        rows.append(TableRow(leg.name, leg.kind, cells, leg.status))
    if columns is ERRORS:
        rows = [*files(report, ("",) * len(columns)), *rows, *inside(report, columns)]
    return TableOfLegs(caption, columns is ERRORS, tuple(columns), tuple(rows))


def files(report: Report, blank: tuple[str, ...]) -> list[TableRow]:
    """Return a row for each comparison of files."""
    rows = [TableRow(row.name, row.proves, blank, row.status) for row in report.comparisons]
    if not report.exactness:
        rows.insert(0, TableRow("weights, config, tokenizer", "the files", blank, "not compared"))
    return rows


def inside(report: Report, columns: Iterable[str]) -> list[TableRow]:
    """Return a row for what each graph returns beside its answer."""
    rows = []
    for found in summaries(report.outputs):
        known = {"RMS": error(found.rms), "RMS ÷ floor": "" if math.isnan(found.floors) else times(found.floors)}
        cells = tuple(known.get(name, "") for name in columns)
        rows.append(TableRow(found.name, found.proves, cells, "FAIL" if found.faults else "pass"))
    return rows
