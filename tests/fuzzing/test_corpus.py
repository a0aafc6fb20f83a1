"""What ``scripts/fuzz.py`` begins with, and what it once found: read, or refused with an error of ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cli.commands import ROOT

spec = importlib.util.spec_from_file_location("scripts_fuzz", ROOT / "scripts" / "fuzz.py")
assert spec is not None
assert spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

INPUTS = sorted(file for file in fuzz.CORPUS.glob("*/*"))


@pytest.mark.parametrize("file", INPUTS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_an_input_ends_in_a_sentence_or_is_read(file: Path) -> None:
    fuzz.try_one(file.parent.name, file.read_bytes())


def test_every_reader_has_something_to_begin_with() -> None:
    assert {file.parent.name for file in INPUTS} == set(fuzz.READERS)
