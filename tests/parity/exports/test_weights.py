"""A source's weights are found in any file by their numbers, and so is every number that was changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from converter import convert
from converter.checkpoint.options import SourceOptions
from converter.errors import ModelFolderError
from converter.parity.exports.tensors import tensors_of
from converter.parity.exports.weights import find_weights
from converter.parity.verdict.found import Weights
from converter.weights.ledger import Ledger, read_source
from tests import disguises
from tests.disguises import disguise

Save = Callable[..., Path]
Find = Callable[..., Weights]


@pytest.fixture
def source(save: Save) -> Path:
    return save(n_layer=2)


@pytest.fixture
def ledger(source: Path) -> Ledger:
    return read_source(source, SourceOptions())[1]


@pytest.fixture
def find(source: Path, ledger: Ledger, tmp_path: Path) -> Find:
    """``find(*edits)``: what is found in the source's graph after these edits."""
    convert(source, tmp_path / "ours")
    return lambda *edits: find_weights([disguise(tmp_path / "ours", tmp_path / "theirs.onnx", *edits)], ledger).weights


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], twice: bool = False) -> disguises.Edit:
    """Return an edit that changes a tensor, or adds a changed copy of it."""

    def edit(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        array = numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), f"{name}/copy" if twice else name)
        if twice:
            graph.initializer.append(array)
        else:
            tensor.CopyFrom(array)

    return edit


def one_number(array: np.ndarray) -> np.ndarray:
    array[np.unravel_index(array.size // 2, array.shape)] += 1e-3
    return array


def in_type(dtype: type, back: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.astype(dtype).astype(np.float32 if back else dtype)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(split=st.booleans(), transposed=st.booleans(), renamed=st.booleans())
def test_every_weight_is_found_whatever_it_is_called_and_however_it_lies(
    find: Find, split: bool, transposed: bool, renamed: bool
) -> None:
    edits = {disguises.split_projections: split, disguises.transposed_weights: transposed, disguises.renamed: renamed}
    found = find(*(edit for edit, wanted in edits.items() if wanted))
    assert (found.missing, found.faults, found.notes) == ((), (), ())
    assert found.sentence == f"{found.total} of {found.total} weights bit for bit"


def test_it_is_said_which_tensor_a_weight_is_and_how_it_lies(find: Find) -> None:
    found = find(disguises.split_projections, disguises.transposed_weights)
    assert found.found["h.1.mlp.c_fc.weight"] == "h.1.mlp.c_fc.weight transposed"
    assert found.found["h.0.attn.c_attn.bias"] == (
        "split into h.0.attn.c_attn.bias/q, h.0.attn.c_attn.bias/k, h.0.attn.c_attn.bias/v"
    )


@pytest.mark.parametrize("twice", [False, True], ids=["itself", "a copy"])
@pytest.mark.parametrize("name", ["wte.weight", "h.1.mlp.c_proj.weight", "h.0.ln_2.weight"])
def test_one_changed_number_is_a_fault_with_its_place(find: Find, ledger: Ledger, name: str, twice: bool) -> None:
    weight = ledger.weights[name]
    place = [int(i) for i in np.unravel_index(weight.size // 2, weight.shape)]
    [fault] = find(changed(name, one_number, twice)).faults
    assert fault.startswith(f"{name} has other numbers in {name}")
    assert f" at {place}; the source has " in fault
    assert f"(1 of {weight.size} numbers differ)" in fault


def test_a_changed_number_is_found_in_a_transposed_weight_of_another_name(find: Find) -> None:
    edits = changed("h.0.mlp.c_fc.weight", one_number), disguises.transposed_weights, disguises.renamed
    [fault] = find(*edits).faults
    assert fault.startswith("h.0.mlp.c_fc.weight has other numbers in onnx::W_")
    assert " at [6, 0]; " in fault  # as the source has it lie


def test_a_changed_number_is_found_in_queries_keys_or_values_that_lie_apart(find: Find) -> None:
    name = "h.1.attn.c_attn.weight/k"
    [fault] = find(disguises.split_projections, changed(name, one_number)).faults
    assert fault.startswith(f"k of h.1.attn.c_attn.weight has other numbers in {name}")


def test_a_weight_that_alone_was_rounded_is_a_fault(find: Find) -> None:
    [fault] = find(changed("h.0.mlp.c_proj.weight", in_type(np.float16, back=True))).faults
    assert "they were rounded to float16, those of others were not" in fault


def test_the_first_rows_of_the_positions_are_all_that_a_short_file_needs(find: Find) -> None:
    found = find(changed("wpe.weight", lambda array: array[None, :5]))
    assert (found.missing, found.faults) == ((), ())
    assert found.sentence == "27 of 28 weights bit for bit, the first 5 of 24 rows of wpe.weight"
    [fault] = find(changed("wpe.weight", lambda array: one_number(array[None, :5].copy()))).faults
    assert fault.startswith("the first 5 of 24 rows of wpe.weight has other numbers in wpe.weight")


def test_queries_that_are_scaled_beforehand_are_said_to_be(find: Find) -> None:
    def scaled(array: np.ndarray) -> np.ndarray:
        array[..., : array.shape[-1] // 3] *= np.float32(0.5)
        return array

    name = "h.0.attn.c_attn.weight"
    found = find(changed(name, scaled))
    assert found.notes == (f"{name} is {name} times 0.5, 1, 1 (q, k, v); the legs judge whether that is right",)
    assert not found.faults


def test_a_weight_that_is_another_ones_is_missing_and_named(find: Find) -> None:
    found = find(
        changed("h.0.mlp.c_fc.weight", lambda array: np.random.default_rng(0).normal(size=array.shape).astype("f4"))
    )
    assert found.missing == ("h.0.mlp.c_fc.weight",)
    assert found.sentence.endswith("h.0.mlp.c_fc.weight not compared")


def test_a_multiple_of_a_weight_is_said_to_be_one(find: Find) -> None:
    found = find(changed("h.0.attn.c_proj.weight", lambda array: array * np.float32(0.125)))
    assert found.notes == (
        "h.0.attn.c_proj.weight is h.0.attn.c_proj.weight times 0.125; the legs judge whether that is right",
    )
    assert not found.faults


@pytest.mark.parametrize(("dtype", "back"), [(np.float16, False), (np.float16, True), (np.float64, False)])
def test_rounding_to_a_shorter_type_is_recognised_also_where_it_was_widened_again(
    find: Find, ledger: Ledger, dtype: type, back: bool
) -> None:
    found = find(*(changed(name, in_type(dtype, back)) for name in ledger.weights))
    assert len(found.found) == len(ledger.weights)
    assert set(found.rounding.values()) == (set() if dtype is np.float64 else {"float16"})


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
def test_what_onnxruntimes_quantizer_made_is_within_a_step(
    source: Path, ledger: Ledger, tmp_path: Path, per_channel: bool, kind: QuantType
) -> None:
    convert(source, tmp_path / "ours", opset=17)
    file = disguise(tmp_path / "ours", tmp_path / "theirs.onnx")
    quantize_dynamic(file, tmp_path / "quantized.onnx", per_channel=per_channel, weight_type=kind)
    found = find_weights([tmp_path / "quantized.onnx"], ledger).weights
    assert found.missing == ()
    assert {"h.0.mlp.c_fc.weight", "h.1.attn.c_attn.weight"} <= set(found.rounded)
    assert not found.faults


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_our_own_quantized_weights_are_within_a_step(save: Save, tmp_path: Path, precision: str) -> None:
    source = save(n_layer=1, n_embd=32, n_head=2)
    convert(source, tmp_path / "ours", precision=precision)
    [file] = (tmp_path / "ours" / "onnx").glob("*.onnx")
    found = find_weights([file], read_source(source, SourceOptions())[1]).weights
    assert {"h.0.mlp.c_fc.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_proj.weight"} <= set(found.rounded)
    assert not found.faults


def test_a_tensor_of_an_unknown_type_is_refused(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "ours")
    file = disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx")
    model = onnx.load(file)
    model.graph.initializer[0].data_type = 99
    onnx.save(model, file)
    with pytest.raises(ModelFolderError, match=r"is damaged: the type of .* is number 99, which ONNX does not know"):
        tensors_of(file)
