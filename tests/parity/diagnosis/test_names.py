"""Every defect is called by its name, and found where it is."""

from __future__ import annotations

import re
import shutil

import pytest
from onnx import GraphProto

from tests.parity.diagnosis.bench import Copy, MakeBench, the_finding
from tests.parity.diagnosis.defects import DEFECTS
from tests.parity.diagnosis.edits import (
    nodes_of,
    set_attribute,
)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_called_by_its_name_and_found_where_it_is(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, cause, sentence, operations, config = DEFECTS[name]
    made = bench(**config)
    folder = copy(made)
    spoil(folder)
    report = made.report(folder)
    finding = the_finding(report)
    assert finding.cause == cause, finding.sentence
    assert re.search(sentence, finding.sentence)
    assert list(finding.operations) == operations.split()
    assert finding.left < 0.01 * finding.error
    assert finding.sentence in report.verdict
    assert report.localisation is not None
    assert report.localisation.first == finding.operations[0]


@pytest.mark.parametrize("name", [
    "square weight transposed", "rotated at the split", "epsilon in one place", "relu in all layers",
    "a position sees the next one", "cache not counted", "positions start again", "no bias in h.1.attn.c_attn",
    "a layer with another one's weights", "h.0.attn_residual without drop",
])  # fmt: skip
def test_a_graph_of_an_old_opset_is_understood_too(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, cause, sentence, operations, config = DEFECTS[name]
    made = bench(17, **config)
    folder = copy(made)
    spoil(folder)
    finding = the_finding(made.report(folder))
    assert finding.cause == cause
    assert re.search(sentence, finding.sentence)
    assert list(finding.operations) == operations.split()


def test_in_an_old_opset_a_scale_is_a_multiplication(bench: MakeBench, copy: Copy) -> None:
    made = bench(17)
    folder = copy(made)

    def edit(graph: GraphProto) -> None:
        scores = next(n for n in nodes_of(graph, "Mul") if n.output[0].startswith("h.2.attn.sdpa"))
        scores.op_type = "Identity"
        del scores.input[1:]

    folder.graph(edit)
    finding = the_finding(made.report(folder))
    assert finding.sentence == "the attention scale 1/√head_dim is missing in h.2.attn.sdpa"


@pytest.mark.parametrize("name", [
    "no bias in ln_f", "epsilon at the end", "no activation", "positions -1", "a position sees the next one",
    "drop without wpe", "tied embedding rounded", "scale missing",
])  # fmt: skip
def test_a_model_of_one_layer_is_understood_too(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, cause, _, operations, config = DEFECTS[name]
    made = bench(n_layer=1, n_head=5, **config)
    folder = copy(made)
    spoil(folder)
    finding = the_finding(made.report(folder))
    assert finding.cause == cause
    assert set(finding.operations) == {tap for tap in operations.split() if not re.match(r"h\.[12]", tap)}


def test_a_cause_that_could_be_another_in_one_layer_is_the_one_that_explains_all(bench: MakeBench, copy: Copy) -> None:
    """With heads of 4, 1/√4 is what the second layer's number gives too."""
    made = bench(n_embd=12)
    for value, cause in ((lambda i, s: s / (i + 1), "inverse_layer"), (lambda i, s: s / 2, "scale")):
        folder = copy(made)
        set_attribute("Attention", "scale", value)(folder)
        assert the_finding(made.report(folder)).cause == cause
        shutil.rmtree(folder.path)
