"""Show the report of a check in a notebook: the verdict, a table of the legs, and the causes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from converter.parity.report.report import Report
from converter.parity.report.tables import ERRORS, files, inside, table

COLUMNS = ("RMS", "max", "RMS ÷ floor", "max ÷ floor")  # the verdict is based on these


def html(report: Report) -> str:
    """Return HTML without styles: a notebook has its own."""
    verdict = f"<b>{report.headline}</b>: {escape(report.verdict)}"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(report))
    return f"<p>{verdict}</p><table>{''.join(rows(report))}</table>{said}"


def rows(report: Report) -> Iterator[str]:
    """Yield the rows of the table."""
    legs = table(("", {name: ERRORS[name] for name in COLUMNS}), report)
    yield _row("th", ("leg", "proves", *legs.headings, "verdict"))
    for leg in (*files(report, ("",) * len(COLUMNS)), *legs.rows, *inside(report, COLUMNS)):
        yield _row("td", (leg.name, leg.proves, *leg.cells, leg.verdict))


def sentences(report: Report) -> Iterator[str]:
    """Yield the sentences that qualify or explain the verdict."""
    yield from report.notes
    yield from report.other_faults
    if report.localisation is not None and report.localisation.first:
        yield f"first divergence: {report.localisation.first}, in the case {report.localisation.case!r}"
    if report.diagnosis is not None:
        yield from (f"cause ({found.cause}): {found.sentence}" for found in report.diagnosis.findings)


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
