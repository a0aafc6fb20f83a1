"""What README.md and the pages claim in numbers is held against the code."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import convert
from converter.checkpoint.open import open_source
from converter.cli import cli
from converter.data import CHECKPOINT
from converter.graph import build
from converter.parity.seeded.mutations import MUTATIONS, elements
from reference.activations import FUNCTIONS
from reference.config import ACTIVATION_NAMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOLD = {
    "help": "\n".join(line for command in cli.commands.values() for line in command.examples),
    **{str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in
       (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"))},
}  # fmt: skip


def test_the_number_of_seeded_defects_is_the_same_everywhere() -> None:
    config = open_source(str(CHECKPOINT)).config
    number = len(MUTATIONS) + len(elements(config))
    told = {(place, int(n)) for place, text in TOLD.items() for n in re.findall(r"\b(\d+)\s+defects", text)}
    assert {n for _, n in told} == {number}, told
    assert {"README.md", "help", "docs/check.md"} <= {place for place, _ in told}
