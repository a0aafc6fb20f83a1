"""Tables in a terminal: they leave out what matters least, wrap between words, and break no word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from converter.cli.terminal import PIPED_WIDTH
from converter.texts import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

BETWEEN, AROUND = 3, 2  # blanks between two columns, and at the edges of a table


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table; ``right`` names the columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", no_wrap=column in right, overflow="fold"
        )
    return made


def named(text: str) -> Text:
    """Return a cell with a name that others chose: one line, in which brackets are no markup."""
    from rich.text import Text

    return Text(one_line(text))


def show(out: Console, rows: Table, *dispensable: str) -> None:
    """Print a table. Where it is too wide the first of ``dispensable`` is left out, then the second, …; then cells are
    wrapped between words, and what is too wide even so is printed in parts below each other.
    """
    for name in dispensable:
        if _fits(out, rows):
            break
        rows = _part([column for column in rows.columns if str(column.header).replace("\n", " ") != name])
    for part in [rows] if _wrap(out, rows) else _in_parts(out, rows):
        out.print(part)


def show_dense(out: Console, rows: Table, *dispensable: str) -> None:
    """Print a table; where it is too wide, its headings are on two lines before anything is left out."""
    if not _fits(out, rows):
        for column in rows.columns:
            column.header = str(column.header).replace(" ", "\n", 1)
    show(out, rows, *dispensable)


def _fits(out: Console, rows: Table) -> bool:
    return _width(out, rows.columns) <= out.width


def _in_parts(out: Console, rows: Table) -> Iterator[Table]:
    """Yield parts of a table, each as wide as there is room; the first column begins every part."""
    first, *others = rows.columns
    cuts = [0]
    for at in range(1, len(others)):
        if _width(out, [first, *others[cuts[-1] : at + 1]]) > out.width:
            cuts.append(at)
    for begin, end in pairwise((*cuts, len(others))):
        yield _part([first, *others[begin:end]])


def _part(columns: Sequence[Column]) -> Table:
    """Return a table of some columns of another."""
    made = table(
        *(str(column.header) for column in columns),
        right=[str(column.header) for column in columns if column.justify == "right"],
    )
    for cells in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*cells)
    return made


def _wrap(out: Console, rows: Table) -> bool:
    """Give columns such widths that no word is broken, the first as much as they need; tell whether there is room."""
    if _fits(out, rows):
        return True
    least = [_longest(out, column, words=True) for column in rows.columns]
    spare = out.width - AROUND - BETWEEN * (len(least) - 1) - sum(least)
    if spare < 0:
        return False
    for column, width in zip(rows.columns, least, strict=True):
        more = min(spare, _longest(out, column) - width)
        column.width, spare = width + more, spare - more
    return True


def _width(out: Console, columns: Iterable[Column]) -> int:
    """Return the width of a table of these columns, if nothing is wrapped."""
    widths = [_longest(out, column) for column in columns]
    return sum(widths) + BETWEEN * (len(widths) - 1) + AROUND


def _longest(out: Console, column: Column, words: bool = False) -> int:
    """Return the width of a column's longest cell, or of its longest word."""
    options = out.options.update_width(PIPED_WIDTH)
    found = [out.measure(cell, options=options) for cell in (column.header, *column.cells)]
    return max(one.minimum if words and not column.no_wrap else one.maximum for one in found)
