"""Integer products for many rows: what they compute, which rows they run, and when there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.data import CHECKPOINT
from converter.errors import ConfigError
from converter.folder.convert import convert
from converter.parity.legs.widen import open_widened
from converter.runtime import decoder
from converter.runtime.decoder import MANY_TEXTS, MANY_TOKENS
from converter.runtime.integer import FUNCTION, PRODUCTS, exact_kind, with_integers
from converter.runtime.opening import load
from converter.runtime.ort import InferenceSession
from converter.weights.precisions import PRECISIONS, Blocks
from converter.weights.quantize import dequantize, quantize_rows

Save = Callable[..., Path]

KIND = exact_kind()
exact = pytest.mark.skipif(KIND is None, reason="this processor cuts off large sums of products")

QUANTIZED = [name for name, row in PRECISIONS.items() if row.scheme]
INPUTS, OUTPUTS = 40, 24
BLOCKS = {"int8": Blocks(8, 16, symmetric=True), "int4": Blocks(4, 16, symmetric=False)}


def product(folder: Path, precision: str) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """A graph of one product in blocks; the weight ``[outputs, inputs]`` that it computes with, and its bias."""
    rng, blocks = np.random.default_rng(0), BLOCKS[precision]
    rows = quantize_rows(rng.standard_normal((OUTPUTS, INPUTS), np.float32), blocks)
    bias = rng.standard_normal(OUTPUTS, np.float32)
    shape = [OUTPUTS, blocks.count(INPUTS), -1]
    held = {
        "h.0.weight": rows.numbers.reshape(shape),
        "h.0.scales": rows.scales,
        "zeros": rows.zero_points,
        "bias": bias,
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items() if array is not None]
    zeros = "" if rows.zero_points is None else "zeros"
    node = helper.make_node(
        "MatMulNBits", ["x", "h.0.weight", "h.0.scales", zeros, "", "bias"], ["y"], domain="com.microsoft",
        K=INPUTS, N=OUTPUTS, bits=blocks.bits, block_size=blocks.size,
    )  # fmt: skip
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", INPUTS])]
    given.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]))
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", OUTPUTS])]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", given, out, tensors), opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    return onnx.load(folder / "g.onnx", load_external_data=False), dequantize(rows, blocks, INPUTS), bias


def inline(model: onnx.ModelProto, weights: dict[str, np.ndarray], folder: Path) -> onnx.ModelProto:
    """The same graph with all numbers inside it."""
    for tensor in model.graph.initializer:
        held = weights.get(tensor.name)
        array = numpy_helper.to_array(tensor, str(folder)) if held is None else held
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


ROWS = {
    "of both signs": lambda rng: rng.standard_normal((5, INPUTS)),
    "positive": lambda rng: rng.uniform(5, 6, (5, INPUTS)),
    "negative": lambda rng: -rng.uniform(5, 6, (5, INPUTS)),
    "nothing but 0": lambda rng: np.zeros((5, INPUTS)),
    "with an outlier": lambda rng: rng.standard_normal((5, INPUTS)) + 300 * (np.arange(INPUTS) == 7),
    "very small": lambda rng: 1e-12 * rng.standard_normal((5, INPUTS)),
    "very large": lambda rng: 1e12 * rng.standard_normal((5, INPUTS)),
}


@exact
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_row_is_rounded_to_eight_bits_between_its_extremes_and_0(tmp_path: Path, precision: str, rows: str) -> None:
    model, weight, bias = product(tmp_path, precision)
    assert KIND is not None
    made = with_integers(model, tmp_path, KIND)
    assert made is not None
    x = ROWS[rows](np.random.default_rng(1)).astype(np.float32)
    session = InferenceSession(inline(made.model, made.weights, tmp_path).SerializeToString())
    (found,) = session.run(["y"], {"x": x[None], "input_ids": np.zeros((1, len(x)), np.int64)})
    # An oracle in numpy: the weight and each row on their nearest steps, everything else in float64.
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    step = np.abs(weight).max(axis=1) / 127
    numbers = np.rint(weight / step[:, None])
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    scale = np.maximum((high - low) / 255, 1e-300)[:, None]
    zero = np.rint(-low[:, None] / scale)
    rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    expected = rounded @ (numbers * step[:, None]).T + bias
    # A value between two steps may go to either of them in float32.
    rounding = 1e-5 * (np.abs(expected).max() + np.abs(x).max() * np.abs(weight).sum(axis=1).max())
    np.testing.assert_allclose(found[0], expected, atol=2 * scale.max() * np.abs(weight).max() + rounding)
    assert np.median(np.abs(found[0] - expected)) <= rounding


@pytest.mark.parametrize("kind", PRODUCTS, ids=str)
@pytest.mark.parametrize("precision", QUANTIZED)
def test_without_rounding_it_is_the_product_with_its_numbers(tmp_path: Path, precision: str, kind: np.dtype) -> None:
    model, _, bias = product(tmp_path, precision)
    made = with_integers(model, tmp_path, kind)
    assert made is not None
    whole = inline(made.model, made.weights, tmp_path)
    scales = next(numpy_helper.to_array(each) for each in whole.graph.initializer if each.name == "h.0.integer.scales")
    middle = 128.0 if kind == np.uint8 else 0.0
    weight = (made.weights["h.0.weight"] - middle) * scales.astype(np.float64)
    x = np.random.default_rng(1).standard_normal((2, 3, INPUTS))
    session = open_widened(whole, tmp_path / "g.data").session
    (found,) = session.run(["y"], {"x": x, "input_ids": np.zeros((2, 3), np.int64)})
    # The sums of the weights, with which the zero points are taken off, are float32's.
    np.testing.assert_allclose(found, x @ weight + bias, atol=1e-5)


@exact
@pytest.mark.parametrize("precision", QUANTIZED)
def test_many_rows_run_on_them_and_few_do_not(save: Save, tmp_path: Path, precision: str) -> None:
    convert(save(n_embd=24, n_positions=128), tmp_path / "out", precision=[precision])
    model, first = load(tmp_path / "out"), load(tmp_path / "out", prepack=False)
    assert first.second is None
    rng = np.random.default_rng(0)
    few, text = rng.integers(61, size=MANY_TOKENS - 1), rng.integers(61, size=MANY_TOKENS)
    texts = rng.integers(61, size=(MANY_TEXTS, 1))
    np.testing.assert_array_equal(model.logits(few), first.logits(few))
    for ids in (text, texts):
        exact, other = first.logits(ids), model.logits(ids)
        assert (exact != other).any()
        np.testing.assert_allclose(other, exact, atol=0.1 * exact.std())


def test_each_row_is_the_same_beside_any_others(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(save(n_embd=24), tmp_path / "out", precision=["int8"])
    monkeypatch.setattr(decoder, "MANY_TOKENS", 1)
    model = load(tmp_path / "out")
    ids = np.random.default_rng(0).integers(61, size=(5, 9))
    together = model.logits(ids)
    for row, alone in zip(ids, together, strict=True):
        np.testing.assert_allclose(model.logits(row), alone, atol=1e-5 * together.std())


def test_a_processor_that_cuts_sums_off_does_without_them(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(save(n_embd=24, n_positions=128), tmp_path / "out", precision=["int8"])
    monkeypatch.setattr("converter.runtime.integer.exact_kind", lambda: None)
    ids = np.arange(MANY_TOKENS) % 61
    plain = load(tmp_path / "out", prepack=False).logits(ids)
    np.testing.assert_array_equal(load(tmp_path / "out").logits(ids), plain)


def test_a_version_that_lacks_an_operator_does_without_them(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(save(n_embd=24, n_positions=128), tmp_path / "out", precision=["int8"])
    monkeypatch.setattr("converter.runtime.integer.FUNCTION", FUNCTION.replace("Relu", "NoSuchOperator"))
    ids = np.arange(MANY_TOKENS) % 61
    plain = load(tmp_path / "out", prepack=False).logits(ids)
    np.testing.assert_array_equal(load(tmp_path / "out").logits(ids), plain)


def test_weights_that_lie_in_the_graph_itself_stay_as_they_are(save: Save, tmp_path: Path) -> None:
    convert(save(n_embd=24, n_positions=128), tmp_path / "out", precision=["int8"])
    file = tmp_path / "out/onnx/model_int8.onnx"
    onnx.save(onnx.load(file), file)
    ids = np.arange(MANY_TOKENS) % 61
    plain = load(tmp_path / "out", prepack=False).logits(ids)
    np.testing.assert_array_equal(load(tmp_path / "out").logits(ids), plain)


def test_float32_has_no_second_session(save: Save, tmp_path: Path) -> None:
    convert(save(n_embd=24), tmp_path / "out")
    assert load(tmp_path / "out").second is None


@exact
@pytest.mark.parametrize("precision", QUANTIZED)
def test_steady_texts_are_the_same_alone_and_beside_others(tmp_path: Path, precision: str) -> None:
    convert(CHECKPOINT, tmp_path / "out", precision=precision)
    model, rng = load(tmp_path / "out", steady=True), np.random.default_rng(0)
    prompts = [rng.integers(1, 2048, size=size).tolist() for size in (1, 5, 30, 70, 12, 3, 64, 40)]
    together = model.generate(prompts, max_new_tokens=30).new_ids
    assert together == [model.generate([prompt], max_new_tokens=30).new_ids[0] for prompt in prompts]
    texts = model.generate(prompts[2:3], max_new_tokens=30, best=3, temperature=1.0, seed=0).new_ids
    assert len({tuple(text) for text in texts}) == 3


def test_what_cannot_be_steady_is_said_so(save: Save, tmp_path: Path) -> None:
    convert(save(n_embd=24), tmp_path / "out", precision="int8,fp32")
    with pytest.raises(ConfigError, match=r"cannot be steady .*: omit --steady"):
        load(tmp_path / "out", precision="int8", steady=True, prepack=False)
    assert not load(tmp_path / "out", precision="fp32", steady=True).steady  # float32 is so by itself
