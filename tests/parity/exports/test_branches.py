"""A graph that goes another way for some inputs is followed there, also if none of the cases leads there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converter import check, convert
from tests import disguises
from tests.disguises import choosing, disguise, larger_logits, rows_are

Export = Callable[..., Path]

FED, NOT_FED = 2, 7000  # numbers of rows that some case has, and that none has


@pytest.fixture
def source(save: Callable[..., Path]) -> Path:
    return save(n_embd=15, n_layer=2, n_inner=15)


@pytest.fixture
def export(source: Path, tmp_path: Path) -> Export:
    """``export(*edits)``: the source as somebody else exports it."""
    convert(source, tmp_path / "ours")
    return lambda *edits: disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx", *edits)


def when(rows: int, then: disguises.Edit, name: str = "few") -> disguises.Edit:
    """Return an edit after which a batch of so many rows takes another branch than all others."""

    def edit(graph: onnx.GraphProto) -> None:
        rows_are(rows, name)(graph)
        choosing(name, then=then)(graph)

    return edit


def nothing(graph: onnx.GraphProto) -> None:
    pass


def test_a_branch_that_some_case_takes_is_judged_as_all_else(source: Path, export: Export) -> None:
    report = check(source, export(when(FED, larger_logits)))
    assert report.headline == "MISMATCH"
    assert report.localisation is not None
    assert report.localisation.first == "logits"
    assert report.localisation.case == "2 rows of 3 tokens"  # the number that it compares with
    assert check(source, export(when(FED, nothing))).headline == "MATCH"


def test_a_branch_that_no_case_takes_is_tried(source: Path, export: Export) -> None:
    wrong = check(source, export(when(NOT_FED, larger_logits)))
    assert wrong.headline == "MISMATCH"
    assert "the branch for few being true is taken in none of the cases; where it is, a leg is " in wrong.verdict
    right = check(source, export(when(NOT_FED, nothing)))
    assert right.headline == "MATCH"
    assert not any("never taken" in note for note in right.notes)


@pytest.mark.parametrize("rows", [FED, NOT_FED])
def test_a_branch_inside_another_is_followed_too(source: Path, export: Export, rows: int) -> None:
    inner = when(NOT_FED, larger_logits, "inner")
    report = check(source, export(when(rows, inner, "outer")))
    assert report.headline == "MISMATCH"
    assert "being true is taken in none of the cases" in report.verdict
    assert "outer/then/inner" in report.verdict
    assert check(source, export(when(rows, when(NOT_FED, nothing, "inner"), "outer"))).headline == "MATCH"


def test_what_is_wrong_inside_two_branches_is_found(source: Path, export: Export) -> None:
    def squared(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if "h.1.mlp.act" in node.output)
        node.op_type, node.input[:] = "Mul", [node.input[0], node.input[0]]
        del node.attribute[:]

    report = check(source, export(when(FED, when(FED, squared, "inner"), "outer")))
    assert report.localisation is not None
    assert report.localisation.first == "h.1.mlp.act"
    assert report.localisation.case == "2 rows of 3 tokens"  # the number that it compares with


def test_a_branch_that_nothing_can_lead_to_is_said_and_so_is_one_that_cannot_be_tried(
    source: Path, export: Export
) -> None:
    def never(graph: onnx.GraphProto) -> None:
        choosing("never", otherwise=nothing, then=larger_logits)(graph)
        graph.initializer.append(numpy_helper.from_array(np.array([False]), "never"))

    def misshapen(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if "logits" in node.output)
        node.output[:] = ["right"]
        graph.initializer.append(numpy_helper.from_array(np.array([0, 5]), "twice"))
        graph.node.append(helper.make_node("Gather", ["right", "twice"], ["logits"], axis=1))

    for edit, name in ((never, "never"), (when(NOT_FED, misshapen), "few")):
        report = check(source, export(edit))
        assert report.headline == "MATCH", report.faults
        assert f"the branch for {name} being true was never taken" in report.notes


def with_function(file: Path, name: str, body: onnx.NodeProto, *more: str) -> None:
    """Replace the first Gelu by an operator of ONNX Runtime's that the file explains by a function."""
    model = onnx.load(file)
    gelu = next(node for node in model.graph.node if node.op_type == "Gelu")
    gelu.op_type, gelu.domain = name, "com.microsoft"
    gelu.input.extend(more)
    del gelu.attribute[:]
    model.graph.initializer.extend(numpy_helper.from_array(np.zeros(15, np.float32), each) for each in more)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model.functions.append(helper.make_function("com.microsoft", name, ["x"], ["y"], [body], opsets))
    model.opset_import.append(opsets[1])
    onnx.save(model, file)


def test_an_operator_that_has_outgrown_its_function_is_the_runtimes(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "ours", opset=20)
    file = disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx")
    wrong = helper.make_node("Gelu", ["x"], ["y"], approximate="none")
    with_function(file, "FastGelu", wrong, "no_bias")
    report = check(source, file)
    assert report.headline == "MATCH", report.faults


def test_a_function_hides_no_operator_that_the_runtime_has_instead(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "ours", opset=20)
    file = disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx")
    with_function(file, "QuickGelu", helper.make_node("Gelu", ["x"], ["y"], approximate="tanh"))
    report = check(source, file)
    assert report.headline == "MISMATCH"
    assert {leg.name for leg in report.legs if leg.fault} == {"ONNX Runtime float32"}  # the function is right
