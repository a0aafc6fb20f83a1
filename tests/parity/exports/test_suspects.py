"""What a graph does for one token, for one size or by chance is found, though no usual case has that token or size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converter import check, convert
from converter.parity.exports.suspects import suspects_of
from tests import disguises
from tests.disguises import disguise

Save = Callable[..., Path]

SHAPE = {"n_layer": 1, "n_embd": 15, "n_positions": 40}
CACHE = "past_key_values.0.key"


@pytest.fixture
def source(save: Save) -> Path:
    return save(**SHAPE)


@pytest.fixture
def export(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """``export(*edits)``: the source as somebody else exports it."""

    def make(*edits: disguises.Edit) -> Path:
        convert(source, tmp_path / "ours", force=True)
        return disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx", *edits)

    return make


def larger_if(*condition: onnx.NodeProto, **constants: object) -> disguises.Edit:
    """The logits are a tenth too large where the value ``told`` is true."""

    def edit(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if "logits" in node.output)
        node.output[:] = ["right"]
        held = {"larger": np.array(1.1, np.float32), **constants}
        graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in held.items())
        graph.node.extend(condition)
        graph.node.append(helper.make_node("Mul", ["right", "larger"], ["wrong"]))
        graph.node.append(helper.make_node("Where", ["told", "wrong", "right"], ["logits"]))

    return edit


def size_is(value: str, axis: int, number: int) -> disguises.Edit:
    shape = helper.make_node("Shape", [value], ["size"], start=axis, end=axis + 1)
    return larger_if(shape, helper.make_node("Equal", ["size", "number"], ["told"]), number=np.array([number]))


def token_is(number: int) -> disguises.Edit:
    """The same for a token, whose number is hidden: 3 · token is compared."""
    nodes = [
        helper.make_node("Mul", ["input_ids", "three"], ["thrice"]),
        helper.make_node("Equal", ["thrice", "number"], ["is"]),
        helper.make_node("Unsqueeze", ["is", "last_axis"], ["told"]),
    ]
    return larger_if(*nodes, three=np.array(3), number=np.array([3 * number]), last_axis=np.array([-1]))


def sizes_are(*numbers: int) -> disguises.Edit:
    """The same for the number of tokens, compared with a vector."""
    shape = helper.make_node("Shape", ["input_ids"], ["size"], start=1, end=2)
    equal = helper.make_node("Equal", ["size", "numbers"], ["both"])
    all_of_them = [helper.make_node("Cast", ["both"], ["numbered"], to=onnx.TensorProto.INT32)]
    all_of_them += [helper.make_node("ReduceMin", ["numbered"], ["least"], keepdims=0)]
    all_of_them += [helper.make_node("Cast", ["least"], ["told"], to=onnx.TensorProto.BOOL)]
    return larger_if(shape, equal, *all_of_them, numbers=np.array(numbers))


# Sizes that are none of the usual cases', and where they are told.
SIZES = {
    "4 rows": size_is("input_ids", 0, 4),
    "a prompt of 22 tokens": size_is("input_ids", 1, 22),
    "a token after 13": size_is(CACHE, 2, 13),
    "a prompt of 21 tokens": sizes_are(21, 21),
}


@pytest.mark.parametrize(("case", "edit"), SIZES.items(), ids=SIZES)
def test_a_graph_that_compares_with_a_number_is_fed_that_number(
    source: Path, export: Callable[..., Path], case: str, edit: disguises.Edit
) -> None:
    report = check(source, export(edit))
    assert report.headline == "MISMATCH"
    [note] = [note for note in report.notes if note.startswith("it is wrong in ")]
    assert case in note


def test_a_graph_that_looks_at_tokens_is_fed_all_of_them(source: Path, export: Callable[..., Path]) -> None:
    fed = {int(token) for token in np.unique(np.random.default_rng(0).integers(61, size=48))}
    unseen = max(set(range(61)) - fed)
    report = check(source, export(token_is(unseen)))
    assert report.headline == "MISMATCH"
    [leg] = [leg for leg in report.legs if leg.fault and "vocabulary, part 1" in leg.cases]
    assert leg.worst_case == "vocabulary, part 1"


def test_a_second_table_that_is_looked_up_is_something_else_that_is_done_with_tokens(
    export: Callable[..., Path],
) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        flags = np.zeros(61, bool)
        flags[60] = True
        told = helper.make_node("Gather", ["flags", "input_ids"], ["flag"], name="flagged")
        larger_if(told, helper.make_node("Unsqueeze", ["flag", "last"], ["told"]), flags=flags, last=np.array([-1]))(
            graph
        )

    found = suspects_of(export(edit), "input_ids")
    assert found.uses == ["Gather (flagged)"]


def test_a_table_of_which_a_row_was_replaced_is_something_else_that_is_done_with_tokens(
    source: Path, export: Callable[..., Path]
) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        ends = {"zero": 0, "five": 5, "six": 6, "seven": 7, "end": 99}
        graph.initializer.extend(numpy_helper.from_array(np.array([at]), name) for name, at in ends.items())
        parts = {"before": ("zero", "six"), "row": ("five", "six"), "after": ("seven", "end")}
        cuts = [helper.make_node("Slice", ["wte.weight", *places, "zero"], [name]) for name, places in parts.items()]
        gather = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == "wte.weight")
        gather.input[0] = "table"
        joined = helper.make_node("Concat", list(parts), ["table"], axis=0)
        for node in (joined, *reversed(cuts)):
            graph.node.insert(0, node)

    report = check(source, export(edit))
    assert report.headline == "MISMATCH"
    assert "vocabulary, part 1" in {leg.worst_case for leg in report.legs if leg.fault}


def test_numbers_of_which_no_case_is_made_are_said(source: Path, export: Callable[..., Path]) -> None:
    report = check(source, export(sizes_are(*range(20, 40))))  # no size is all of them
    assert report.headline == "MATCH", report.faults
    [note] = [note for note in report.notes if note.startswith("it compares something with ")]
    assert note.startswith("it compares something with 36, 37, 38 and 1 more; not every batch, text and token")


def test_axes_and_places_are_no_numbers_that_something_is_compared_with(export: Callable[..., Path]) -> None:
    assert suspects_of(export(), "input_ids").numbers == set()


def test_a_graph_that_only_looks_rows_up_is_not(source: Path, export: Callable[..., Path]) -> None:
    file = export(disguises.int32, disguises.renamed)
    assert suspects_of(file, "input_ids").uses == []
    assert not any("vocabulary" in case for leg in check(source, file).legs for case in leg.cases)


def test_a_graph_that_draws_random_numbers_is_no_match_however_small_they_are(
    source: Path, export: Callable[..., Path]
) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        disguises._use(graph, "ln_f", "noisy")
        graph.initializer.append(numpy_helper.from_array(np.array(1e-30, np.float32), "tiny"))
        at = next(at for at, node in enumerate(graph.node) if "ln_f" in node.output) + 1
        graph.node.insert(at, helper.make_node("RandomNormalLike", ["ln_f"], ["noise"], name="draw"))
        graph.node.insert(at + 1, helper.make_node("Mul", ["noise", "tiny"], ["less"]))
        graph.node.insert(at + 2, helper.make_node("Add", ["ln_f", "less"], ["noisy"]))

    report = check(source, export(edit))
    assert report.headline == "MISMATCH"
    assert "it draws random numbers: RandomNormalLike (draw)" in report.verdict


def test_one_cell_of_a_causal_mask_is_a_fault_whatever_is_fed(source: Path, export: Callable[..., Path]) -> None:
    def edit(cell: tuple[int, int]) -> disguises.Edit:
        def hold(graph: onnx.GraphProto) -> None:
            mask = np.tri(40, dtype=bool)
            mask[cell] = True
            graph.initializer.append(numpy_helper.from_array(mask[None, None], "onnx::Where_9"))

        return hold

    assert check(source, export(edit((3, 2)))).passed
    report = check(source, export(edit((2, 30))))
    assert "the causal mask onnx::Where_9 has True at [2, 30], where every other cell has False" in report.verdict


@pytest.mark.parametrize("number", [1, 2])
def test_a_graph_that_can_be_asked_for_some_logits_is_asked(source: Path, tmp_path: Path, number: int) -> None:
    convert(source, tmp_path / "ours")
    model = onnx.load(tmp_path / "ours" / "onnx" / "model.onnx")
    model.producer_name = "somebody"
    onnx.save(model, tmp_path / "theirs.onnx")
    assert check(source, tmp_path / "theirs.onnx").passed
    told = helper.make_node("Equal", ["num_logits_to_keep", "number"], ["told"])
    larger_if(told, number=np.array(number))(model.graph)
    onnx.save(model, tmp_path / "theirs.onnx")
    assert check(source, tmp_path / "theirs.onnx").headline == "MISMATCH"


def test_a_bound_that_no_case_reaches_is_said(source: Path, export: Callable[..., Path]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if "logits" in node.output)
        node.output[:] = ["right"]
        graph.initializer.append(numpy_helper.from_array(np.array(1e4, np.float32), "most"))
        graph.node.append(helper.make_node("Min", ["right", "most"], ["logits"], name="bound"))

    report = check(source, export(edit))
    assert any(note.startswith("it bounds values by Min (bound); ") for note in report.notes)
    assert not any(note.startswith("it bounds") for note in check(source, export()).notes)
