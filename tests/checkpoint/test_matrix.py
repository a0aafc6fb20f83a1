"""Every format × a tied or untied head × with and without biases: ONNX Runtime computes what the format's code does.

``ROWS`` says which combinations a format has, and docs/sources.md repeats it. Weights are random, so that nothing is
symmetric, and every model has square projections, where a transposition would not show in a shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.writers.matrix import IDS, ROWS, Row

DOCS = Path(__file__).parents[2] / "docs" / "sources.md"

State = dict[str, torch.Tensor]

CELLS = [
    pytest.param(row, tied, bias, id=f"{row.name}-{'tied' if tied else 'untied'}-{'bias' if bias else 'no bias'}")
    for row in ROWS
    for tied, bias in row.cells()
]


@pytest.mark.parametrize(("row", "tied", "bias"), CELLS)
def test_onnx_runtime_computes_what_the_format_s_own_code_does(
    tmp_path: Path, converted_logits: Callable[..., torch.Tensor], row: Row, tied: bool, bias: bool
) -> None:
    case = row.make(tmp_path, tied, bias)
    found = converted_logits(case.source, IDS, **case.options)
    torch.testing.assert_close(found, case.expected, atol=2e-5, rtol=1e-5)
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config.get("tie_word_embeddings", True) is tied


def test_the_documentation_has_this_table() -> None:
    """Of docs/sources.md, the rows behind the table's rule under the heading, as they stand."""
    section = DOCS.read_text(encoding="utf-8").partition("## How each is tested\n")[2].partition("\n## ")[0]
    written = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert written == [[r.name, r.tied, r.untied, r.bias, r.no_bias, r.other_side] for r in ROWS]
