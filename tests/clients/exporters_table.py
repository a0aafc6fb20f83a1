"""The generated part of docs/exporters.md: what the check said of each exporter's files."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import pytest

from converter.parity.report.report import Report
from tests.clients.exports import (
    BROKEN,
    DEFECTS,
    INTERFACES,
    SOUND,
    VARIANTS,
    WRONG_AS_RELEASED,
    WRONG_AT_TIMES,
    main_of,
)
from tests.clients.table import BEGIN, END, markdown, pins

OWN_PACKAGES = ("torch", "transformers", "onnxscript", "onnxruntime")  # of the tests' own environment
OWN = "the tests' own"


@dataclass(frozen=True)
class Judgement:
    """What the check said of one export.

    Attributes:
        interface, variant: rows of the tables in ``exports.py``.
        treatment: what was done to it, a row of ``treatments.py``; empty for nothing.
        verdict: in a word or two.
        weights: how many of the source's weights were found.
        why: the cause, or what fails; empty for a match.
    """

    interface: str
    variant: str
    verdict: str
    weights: str
    why: str
    treatment: str = ""

    @property
    def right(self) -> bool:
        """Whether it is known to be right."""
        known_wrong = (self.interface, self.variant) in WRONG_AS_RELEASED or self.interface in WRONG_AT_TIMES
        return not known_wrong and self.interface not in BROKEN and self.variant in SOUND

    @property
    def shown(self) -> bool:
        """Whether it has a row of its own."""
        return not self.treatment and (self.variant == "usual" or not self.right)


@dataclass(frozen=True)
class Seeded:
    """What the check said of one mistake, a row of ``edits.py``."""

    kind: str
    caught: bool
    named: bool


EDITED = pytest.StashKey[list[Seeded]]()
JUDGED = pytest.StashKey[list[Judgement]]()


def judgement(interface: str, variant: str, report: Report, treatment: str = "") -> Judgement:
    """Take from a report what has a place in the tables."""
    assert report.export is not None
    assert report.export.weights is not None
    found = report.export.weights
    cause = report.diagnosis.sentence if report.diagnosis is not None else ""
    why = "" if report.passed else cause or report.faults[0]
    where = next((note for note in report.notes if note.startswith("it is wrong in ")), "")
    why = "; ".join(filter(None, (why, where)))
    return Judgement(interface, variant, report.headline, f"{found.compared} of {found.total}", why, treatment)


def write_exporters(page: Path, judged: list[Judgement], edited: list[Seeded], environments: Path) -> None:
    """Put the tables between the page's marks."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n{tables(judged, edited, environments)}\n{END}{tail}", encoding="utf-8")


def tables(judged: list[Judgement], edited: list[Seeded], environments: Path) -> str:
    """How many right ones were called right, how many mistakes were caught, the exports one by one, the versions."""
    order = list(INTERFACES | BROKEN), list(VARIANTS)
    rows = sorted(set(judged), key=lambda row: (order[0].index(row.interface), order[1].index(row.variant)))
    released = [row for row in rows if row.variant not in DEFECTS and row.shown]
    wrong = [row for row in rows if row.variant in DEFECTS]
    titles = ("export", "source", "verdict", "weights found", "why")
    parts = ["## Right exports", markdown(alarms(rows))]
    parts += ["## Edited exports", markdown(catches(edited))] if edited else []
    parts += ["## As released", markdown([titles, *map(cells, released)])]
    parts += ["## Made wrong", markdown([titles, *map(cells, wrong)])] if wrong else []
    used = dict.fromkeys((INTERFACES | BROKEN)[row.interface].environment for row in rows)
    versions = [(name or OWN, pins(environments / name) if name else own_versions()) for name in used]
    return "\n\n".join([*parts, "## Versions", markdown([("environment", "holds"), *versions])])


def alarms(rows: list[Judgement]) -> list[tuple[str, ...]]:
    """How many right exports of each exporter were called right."""
    counted: dict[str, list[bool]] = {}
    for row in rows:
        if row.right:
            counted.setdefault(main_of(row.interface), []).append(row.verdict == "MATCH")
    counted["all"] = [match for each in counted.values() for match in each]
    lines = [(name, str(len(each)), str(sum(each)), str(len(each) - sum(each))) for name, each in counted.items()]
    return [("exporter", "right exports", "MATCH", "false alarms"), *lines]


def catches(edited: list[Seeded]) -> list[tuple[str, ...]]:
    """How many mistakes of each kind were caught, and how many were named rightly."""
    counted: dict[str, list[Seeded]] = {}
    for row in edited:
        counted.setdefault(row.kind, []).append(row)
    counted = dict(sorted(counted.items())) | {"all": edited}
    lines = [
        (kind, str(len(each)), str(sum(row.caught for row in each)), str(sum(row.named for row in each)))
        for kind, each in counted.items()
    ]
    return [("what is wrong", "exports", "caught", "named"), *lines]


def cells(row: Judgement) -> tuple[str, ...]:
    return row.interface, row.variant, row.verdict, row.weights, row.why.replace("|", r"\|")


def own_versions() -> str:
    return ", ".join(f"{name}=={importlib.metadata.version(name)}" for name in OWN_PACKAGES)
