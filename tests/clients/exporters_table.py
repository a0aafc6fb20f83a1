"""The generated part of docs/exporters.md: what the check said of each exporter's files."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.parity.report.report import Report
from tests.clients.exports import BROKEN, DEFECTS, INTERFACES
from tests.clients.table import BEGIN, END, markdown, pins

OWN_PACKAGES = ("torch", "transformers", "onnxscript", "onnxruntime")  # of the tests' own environment
OWN = "the tests' own"


@dataclass(frozen=True)
class Judgement:
    """What the check said of one export.

    Attributes:
        interface, variant: rows of the tables in ``exports.py``.
        verdict: in a word or two.
        weights: how many of the source's weights were found.
        why: the cause, or what fails; empty for a match.
    """

    interface: str
    variant: str
    verdict: str
    weights: str
    why: str


JUDGED = pytest.StashKey[list[Judgement]]()


def judgement(interface: str, variant: str, report: Report) -> Judgement:
    """Take from a report what has a place in the tables."""
    assert report.export is not None
    assert report.export.weights is not None
    found = report.export.weights
    cause = report.diagnosis.sentence if report.diagnosis is not None else ""
    why = "" if report.passed else cause or report.faults[0]
    where = next((note for note in report.notes if note.startswith("it is wrong in ")), "")
    return Judgement(
        interface, variant, report.headline, f"{found.compared} of {found.total}", "; ".join(filter(None, (why, where)))
    )


def write_exporters(page: Path, judged: list[Judgement], environments: Path) -> None:
    """Put the tables between the page's marks."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n{tables(judged, environments)}\n{END}{tail}", encoding="utf-8")


def tables(judged: list[Judgement], environments: Path) -> str:
    """The exports as they are released, then those that were made wrong, then the versions."""
    rows = sorted(set(judged), key=lambda row: (list(INTERFACES | BROKEN).index(row.interface), row.variant != "usual"))
    released = [row for row in rows if row.variant not in DEFECTS]
    wrong = [row for row in rows if row.variant in DEFECTS]
    titles = ("export", "source", "verdict", "weights found", "why")
    parts = ["## As released", markdown([titles, *map(cells, released)])]
    parts += ["## Made wrong", markdown([titles, *map(cells, wrong)])] if wrong else []
    used = dict.fromkeys((INTERFACES | BROKEN)[row.interface].environment for row in rows)
    versions = [(name or OWN, pins(environments / name) if name else own_versions()) for name in used]
    return "\n\n".join([*parts, "## Versions", markdown([("environment", "holds"), *versions])])


def cells(row: Judgement) -> tuple[str, ...]:
    return row.interface, row.variant, row.verdict, row.weights, row.why.replace("|", r"\|")


def own_versions() -> str:
    return ", ".join(f"{name}=={importlib.metadata.version(name)}" for name in OWN_PACKAGES)
