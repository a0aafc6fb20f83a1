"""Tables in terminals of any width: what the verdict rests on is there, and no word is broken."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from converter import check, convert
from converter.cli import tables
from converter.cli.check_tables import leg_table, print_legs, print_proof
from converter.data import CHECKPOINT
from converter.parity.report.report import Report
from converter.parity.seeded.prove import Proof, Trial

WORD = st.text("abc÷.", min_size=1, max_size=9)
CELL = st.lists(WORD, max_size=4).map(" ".join)


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True, color_system=None)


def printed(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@given(st.data())
def test_every_word_is_whole_and_no_line_is_too_long(data: st.DataObject) -> None:
    headings = data.draw(st.lists(WORD.map(lambda word: word + " x"), min_size=1, max_size=6, unique=True))
    right = headings[1:3]  # numbers, which are never wrapped
    cells = data.draw(st.lists(st.tuples(*(WORD if name in right else CELL for name in headings)), max_size=3))
    rows = tables.table(*headings, right=right)
    for row in cells:
        rows.add_row(*row)
    longest = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    out = console(data.draw(st.integers(longest[0] + max(longest) + 5, 120)))  # room for two columns beside each other
    tables.show(out, rows)
    assert max(map(len, printed(out).splitlines())) <= out.width
    words = set(printed(out).split())
    for cell in (*headings, *(cell for row in cells for cell in row)):
        assert set(cell.split()) <= words


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("tables") / "out"
    convert(CHECKPOINT, out, precision="fp32,int4")
    return check(CHECKPOINT, out)


@pytest.fixture(params=[True, False], ids=["with a budget", "float32 alone"])
def shown(report: Report, request: pytest.FixtureRequest) -> Report:
    legs = tuple(leg for leg in report.legs if request.param or leg.allowed is None)
    return replace(report, legs=legs)


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 160])
def test_what_a_verdict_rests_on_is_shown_at_any_width_and_no_word_is_broken(shown: Report, width: int) -> None:
    out = console(width)
    print_legs(out, shown)
    found = printed(out)
    assert max(map(len, found.splitlines())) <= width
    words = set(found.split())
    for leg in shown.legs:
        assert {*leg.name.split(), *leg.status.split()} <= words
        needed = [f"{leg.maximum:.1e}"]
        needed += [f"{leg.rms_floors:.2f}", f"{leg.maximum_floors:.2f}"] if leg.has_floors else []
        needed += [f"{leg.kl_mean:.0e}", f"{leg.perplexity_ratio:.5f}"] if leg.allowed is not None else []
        assert set(needed) <= words


def test_a_wide_terminal_shows_every_column_in_a_line(shown: Report) -> None:
    out = console(220)
    print_legs(out, shown)
    [heading] = [line for line in printed(out).splitlines() if "verdict" in line]
    for column in leg_table(shown).columns:
        assert str(column.header) in heading
    assert "perplexity ÷ truth's" in heading  # which is no perplexity


def test_the_table_of_seeded_defects_wraps_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "h.2.attn.c_proj.weight is transposed: it lies [out, in] where the graph takes [in, out]"
    out = console(80)
    monkeypatch.setattr("converter.cli.terminal.console", lambda: out)
    defect = "h.1.attn.c_attn.weight[3, 7] changed by 1 %"
    print_proof(proof_of(defect, said))
    found = printed(out)
    assert max(map(len, found.splitlines()[:-2])) <= 80
    assert set(said.split()) | set(defect.split()) <= set(found.split())


def proof_of(defect: str, said: str) -> Proof:
    trial = Trial(defect, ("transposed",), True, True, True, True, said, "")
    return Proof("source", True, (trial,), (), "wte.weight", 1e-5, 3.0)
