"""Terminal, page, JSON and JUnit are views of one report, and say the same of it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from converter import check, convert
from converter.cli.check_tables import print_report
from converter.parity.legs.identity import LegKind
from converter.parity.report import junit, page
from converter.parity.report.report import Report
from converter.parity.verdict.judge import LegReport, Status
from converter.weights.precisions import Budget

Save = Callable[..., Path]

NAME = "the leg that is looked at"
CHANGES = {
    Status.PASS: {"kind": LegKind.NUMERICS, "fault": ""},
    Status.FAULT: {"kind": LegKind.NUMERICS, "fault": "is wrong"},
    Status.YARDSTICK: {"kind": LegKind.NOISE, "fault": ""},
    Status.IN_BUDGET: {"kind": LegKind.HALF, "fault": "", "within_budget": True},
    Status.OVER_BUDGET: {"kind": LegKind.HALF, "fault": "", "within_budget": False},
}


@pytest.fixture
def report(save: Save, tmp_path: Path) -> Report:
    source = save()
    convert(source, tmp_path / "out")
    return check(source, tmp_path / "out", layers=True)


def with_leg(report: Report, **changes: object) -> Report:
    """The report with its first leg changed."""
    leg: LegReport = replace(report.legs[0], name=NAME, **changes)  # type: ignore[arg-type]
    return replace(report, legs=(leg, *report.legs[1:]))


def text_of(written: str) -> str:
    """What a reader of the page sees, roughly."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", written)))


def test_every_status_is_among_those_that_are_compared() -> None:
    assert set(CHANGES) == set(Status)


@pytest.mark.parametrize("status", Status)
def test_every_view_says_the_same_of_a_leg(
    report: Report, status: Status, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = with_leg(report, **CHANGES[status])
    assert shown.to_dict()["legs"][0]["status"] == status
    assert f" {NAME} {status} {shown.legs[0].kind} " in text_of(page.render(shown, "gpt2onnx check"))
    print_report(shown)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(NAME)]
    assert line.rstrip().endswith(f" {status}")
    [case] = [case for case in junit.tree(shown).iter("testcase") if case.get("name") == NAME]
    assert f"{status}; " in "".join(case.itertext())


def test_the_page_prints_the_budget_that_is_in_force(report: Report) -> None:
    allowed = Budget(kl_mean=3e-7, perplexity_ratio=1.25, rms=0.2)
    shown = with_leg(report, kind=LegKind.LOSSY, budget="int8", allowed=allowed)
    assert "int8: KL ≤ 3e-07, ratio ≤ 1.25" in text_of(page.render(shown, "gpt2onnx check"))


@pytest.mark.parametrize("tap", ["ln_f", "logits", "h.1.mlp.act"])
def test_the_page_names_every_operation_that_the_graph_lacks(report: Report, tap: str) -> None:
    assert report.localisation is not None
    assert "Not in the graph" not in page.render(report, "gpt2onnx check")
    shown = replace(report, localisation=replace(report.localisation, missing=(tap,)))
    assert f"Not in the graph: {tap}." in text_of(page.render(shown, "gpt2onnx check"))
