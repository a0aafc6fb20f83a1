"""What has no name is not given one; what is no number is found where it arises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, helper, numpy_helper

from converter.errors import CheckError
from tests.parity.diagnosis.bench import Copy, MakeBench, Spoil, findings, the_finding
from tests.parity.diagnosis.defects import DEFECTS
from tests.parity.diagnosis.edits import (
    activate,
    all_of,
    node_of,
    on_graph,
    on_weight,
    query_counts_from_0,
    set_attribute,
    transpose,
    without_bias,
)


def noise(weight: np.ndarray) -> np.ndarray:
    return weight + np.random.default_rng(0).normal(size=weight.shape).astype(np.float32) * np.float32(0.01)


def two_numbers(weight: np.ndarray) -> np.ndarray:
    weight[[2, 9], 4] += np.float32([0.3, -0.2])
    return weight


def through(output: str, *made: tuple[str, list[str]], **constants: Any) -> Spoil:
    """What an operation puts out goes through others first; ``x`` is what it put out."""

    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        at = list(graph.node).index(node)
        node.output[list(node.output).index(output)] = "x"
        for number, (op_type, inputs) in enumerate(made):
            last = number == len(made) - 1
            new = helper.make_node(op_type, inputs, [output if last else f"x{number + 1}"])
            graph.node.insert(at + 1 + number, new)
        for name, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))

    return on_graph(edit)


UNNAMED: dict[str, tuple[Spoil, str]] = {
    "transposed without its bias": (
        all_of(on_weight("h.1.mlp.c_fc.weight", transpose), without_bias("h.1.mlp.c_fc")), "h.1.mlp.c_fc"),
    "noise on a weight": (on_weight("h.1.attn.c_proj.weight", noise), "h.1.attn.c_proj"),
    "noise on a bias": (on_weight("h.1.attn.c_proj.bias", noise), "h.1.attn.c_proj"),
    "noise on a gain": (on_weight("h.1.ln_2.weight", noise), "h.1.ln_2"),
    "noise on the positions": (on_weight("wpe.weight", noise), "wpe"),
    "two numbers of a column": (on_weight("h.0.mlp.c_fc.weight", two_numbers), "h.0.mlp.c_fc"),
    "two rows swapped": (on_weight("h.0.mlp.c_fc.weight", lambda w: w[[1, 0, *range(2, 15)]]), "h.0.mlp.c_fc"),
    "a gain scaled": (on_weight("h.2.ln_1.weight", lambda w: w * np.float32(1.01)), "h.2.ln_1"),
    "a bias doubled": (on_weight("h.2.mlp.c_proj.bias", lambda b: b * 2), "h.2.mlp.c_proj"),
    "another activation altogether": (activate("Abs", 1), "h.1.mlp.act"),
    "a leaky slope of its own": (activate("LeakyRelu", 1, alpha=0.3), "h.1.mlp.act"),
    "a scale of its own": (
        set_attribute("Attention", "scale", lambda i, s: s * 0.9, "h.1.attn.sdpa"), "h.1.attn.sdpa"),
    "a residual halved": (through("h.1.attn_residual", ("Mul", ["x", "half"]), half=0.5), "h.1.attn_residual"),
    "queries normalised": (through("h.1.attn.q", ("Tanh", ["x"])), "h.1.attn.q"),
    "logits capped": (
        through("logits", ("Div", ["x", "cap"]), ("Tanh", ["x1"]), ("Mul", ["x2", "cap"]), cap=30.0), "logits"),
    "embedding scaled by its width": (
        through("drop", ("Mul", ["x", "root"]), root=15**0.5), "drop"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNNAMED)
def test_a_defect_without_a_name_is_said_to_be_unexplained_where_it_is(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, tap = UNNAMED[name]
    made = bench()
    folder = copy(made)
    spoil(folder)
    report = made.report(folder)
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("unexplained", (tap,)), finding.sentence
    assert finding.sentence.startswith(f"{tap} (")
    assert "has another output than its inputs and weights give, and no known cause explains it" in finding.sentence
    assert re.match(r"off by \S+ of its size at most$", finding.evidence)
    assert report.localisation is not None
    assert report.localisation.first == tap
    json.dumps(report.to_dict())


def test_an_operator_that_float64_lacks_is_said_to_lack_float64(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    activate("Elu", 1)(folder)
    with pytest.raises(CheckError, match="Elu") as error:
        made.report(folder)
    assert "float64" in str(error.value).replace(str(folder.path), "")


def test_an_unexplained_defect_does_not_hide_one_that_has_a_name(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    UNNAMED["a gain scaled"][0](folder)
    DEFECTS["no bias in h.0.mlp.c_fc"][0](folder)
    assert [finding.cause for finding in findings(made.report(folder))] == ["bias", "unexplained"]


def test_a_mask_that_forgets_the_cache_altogether_is_called_by_its_name(bench: MakeBench, copy: Copy) -> None:
    """As an exporter would do it: a row is numbered within what is fed, and does not even see its own column."""
    made = bench()
    folder = copy(made)
    query_counts_from_0(True)(folder)
    finding = the_finding(made.report(folder))
    assert finding.cause == "mask"
    assert "does not count the tokens in the cache" in finding.sentence


# --- what is no number ------------------------------------------------------------------------------------------------


def spoilt_number(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(weight: np.ndarray) -> np.ndarray:
        weight.flat[7] = value
        return weight

    return change


@pytest.mark.parametrize(
    ("name", "tap", "value"),
    [
        ("h.1.mlp.c_fc.weight", "h.1.mlp.c_fc", np.nan),
        ("h.1.mlp.c_fc.weight", "h.1.mlp.c_fc", np.inf),
        ("h.1.mlp.c_fc.bias", "h.1.mlp.c_fc", -np.inf),
        ("h.2.ln_1.weight", "h.2.ln_1", np.nan),
        ("h.0.attn.c_proj.bias", "h.0.attn.c_proj", np.inf),
        ("wpe.weight", "wpe", np.nan),
    ],
)
def test_the_operation_that_brings_nan_is_blamed_and_none_after_it(
    bench: MakeBench, copy: Copy, name: str, tap: str, value: float
) -> None:
    made = bench()
    folder = copy(made)
    folder.weight(name, spoilt_number(value))
    report = made.report(folder)
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("overflow", (tap,))
    assert re.match(
        rf"{re.escape(tap)} is (NaN|infinite) in column 7; its largest value should be \d", finding.sentence
    )
    assert report.localisation is not None
    assert report.localisation.first == tap
    json.dumps(report.to_dict())


def test_nan_in_a_row_that_only_the_head_reads_is_found_there(bench: MakeBench, copy: Copy) -> None:
    made = bench(tie_word_embeddings=False)
    folder = copy(made)
    folder.weight("lm_head.weight", spoilt_number(np.nan))
    finding = the_finding(made.report(folder))
    assert (finding.cause, finding.operations) == ("overflow", ("logits",))
    assert "in column 0" in finding.sentence


def test_what_came_before_a_nan_is_still_explained(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    DEFECTS["positions -1"][0](folder)
    folder.weight("h.1.mlp.c_fc.weight", spoilt_number(np.nan))
    assert [finding.cause for finding in findings(made.report(folder))] == ["position", "overflow"]


# --- float32 alone ----------------------------------------------------------------------------------------------------


def test_digits_that_only_float32_loses_are_not_given_a_meaning(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    far = 3e5
    through("h.1.ln_2", ("Add", ["x", "far"]), ("Sub", ["x1", "far"]), far=far)(folder)
    report = made.report(folder)
    faults = {leg.name: leg.fault for leg in report.legs if leg.fault}
    assert list(faults) == ["ONNX Runtime float32"]
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("unexplained", ("h.1.ln_2",))


def test_a_value_that_float16_cannot_hold_is_said_to_be_the_reason(bench: MakeBench, copy: Copy) -> None:
    def large(model: Any) -> None:
        model.transformer.h[1].mlp.c_fc.bias[3] = 1e5

    made = bench(change=large, activation_function="relu")
    folder = copy(made)

    def narrow(graph: GraphProto) -> None:
        node = node_of(graph, "h.1.mlp.c_fc")
        at = list(graph.node).index(node)
        node.output[0] = "x"
        graph.node.insert(at + 1, helper.make_node("Cast", ["x"], ["half"], to=onnx.TensorProto.FLOAT16))
        graph.node.insert(at + 2, helper.make_node("Cast", ["half"], ["h.1.mlp.c_fc"], to=onnx.TensorProto.FLOAT))

    folder.graph(narrow)
    report = made.report(folder)
    finding = the_finding(report)
    assert finding.cause == "overflow"
    assert finding.operations == ("h.1.mlp.c_fc",)
    assert re.search(r"infinite in column 3; .* 1e\+05, more than the 65504 that float16 holds", finding.sentence)
    assert report.diagnosis is not None
    assert report.diagnosis.maxima["h.1"] > 65504 > report.diagnosis.maxima["h.0"]
