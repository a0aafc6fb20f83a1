"""Mistakes that were made in the finished files of real exporters: the check catches each, and names what it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from converter import check
from tests.clients.edits import EDITS
from tests.clients.exporters_table import EDITED, Seeded
from tests.clients.exports import INTERFACES, config_of
from tests.clients.judging import measured_once
from tests.clients.surgery import Surgery

Exported, SourceOf = Callable[..., Path], Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def sources_are_measured_once() -> Iterator[None]:
    with measured_once():
        yield


@pytest.mark.parametrize(("name", "on"), [(name, on) for name, edit in EDITS.items() for on in edit.on])
def test_an_edit_of_an_export_is_caught(
    name: str, on: str, exported: Exported, source_of: SourceOf, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    edit, model = EDITS[name], onnx.load(exported(on) / INTERFACES[on].graph)
    edit.change(Surgery(model, config_of("usual")))
    onnx.save(model, tmp_path / "model.onnx")
    report = check(source_of("usual"), tmp_path / "model.onnx")
    said = " ".join([report.verdict, *report.faults, *report.notes])
    named = any(word in said for word in edit.where)
    pytestconfig.stash[EDITED].append(Seeded(edit.kind, not report.passed, named))
    assert report.headline == ("MISMATCH" if edit.shown else "MATCH")
    assert named or edit.faint, said
