"""A quantized export of another program is held against its own numbers, and these against the source's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    QuantFormat,
)

from converter import check, convert
from converter.parity.exports import remarks
from converter.parity.exports.quantized import quantized_of
from converter.parity.report.report import Report
from tests import disguises
from tests.disguises import disguise

Save = Callable[..., Path]
Quantize = Callable[[Path, Path], None]

# A model with budgets that are too large for rounding to decide.
GENEROUS = {f"{name}.{key}": 1e6 for name in ("int8", "int4") for key in ("kl_mean", "perplexity_ratio", "rms")}
SHAPE = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_inner": 40}


def dynamic(**options: object) -> Quantize:
    return lambda file, out: quantize_dynamic(file, out, **options)


def blocks(bits: int, symmetric: bool, operators: tuple[str, ...] = ("MatMul",), qdq: bool = False) -> Quantize:
    def quantize(file: Path, out: Path) -> None:
        config = DefaultWeightOnlyQuantConfig(
            block_size=16,
            is_symmetric=symmetric,
            bits=bits,
            quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
            op_types_to_quantize=operators,
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        )
        quantizer = MatMulNBitsQuantizer(onnx.load(file), algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, out, save_as_external_data=qdq, size_threshold=256)  # packed numbers, too

    return quantize


class Prompts(CalibrationDataReader):
    """Tokens by which the ranges of activations are set."""

    def __init__(self) -> None:
        self.left: Iterator[int] = iter(range(4))

    def get_next(self) -> dict[str, np.ndarray] | None:
        at = next(self.left, None)
        if at is None:
            return None
        ids = np.random.default_rng(at).integers(0, 61, (2, 9))
        past = {f"past_key_values.{i}.{part}": np.zeros((2, 2, 0, 16), np.float32) for i in (0, 1) for part in PARTS}
        return past | {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.tile(np.arange(9), (2, 1)),
        }


PARTS = ("key", "value")


def static(**options: object) -> Quantize:
    return lambda file, out: quantize_static(file, out, Prompts(), op_types_to_quantize=["MatMul"], **options)


QUANTIZERS: dict[str, Quantize] = {
    "dynamic": dynamic(weight_type=QuantType.QInt8),
    "dynamic, by channel": dynamic(weight_type=QuantType.QUInt8, per_channel=True),
    "blocks of 4 bits": blocks(4, symmetric=True),
    "blocks of 4 bits with zero points": blocks(4, symmetric=False),
    "blocks of 8 bits": blocks(8, symmetric=True),
    "blocks of 4 bits, dequantized first": blocks(4, symmetric=True, qdq=True),
    "blocks of rows of the embedding": blocks(4, symmetric=True, operators=("MatMul", "Gather")),
    "static": static(),
    "static, by channel": static(per_channel=True),
}


@pytest.fixture
def source(save: Save) -> Path:
    return save(**SHAPE)


@pytest.fixture
def quantized(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """``quantized(name, of=source)``: a source as somebody exports and quantizes it."""

    def make(name: str, of: Path = source) -> Path:
        convert(of, tmp_path / "ours", opset=21, force=True)
        file = disguise(tmp_path / "ours", tmp_path / "whole" / "model.onnx", disguises.separate_head)
        (tmp_path / "theirs").mkdir(exist_ok=True)
        QUANTIZERS[name](file, tmp_path / "theirs" / "model.onnx")
        return tmp_path / "theirs" / "model.onnx"

    return make


def judged(source: Path, file: Path) -> Report:
    return check(source, file, limits=GENEROUS)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_mathematics_is_compared_in_float64_with_the_numbers_of_the_file(
    name: str, source: Path, quantized: Callable[..., Path]
) -> None:
    report = judged(source, quantized(name))
    assert report.headline == "MATCH", report.faults
    assert "mathematics in float64" in report.verdict, report.notes
    assert report.export is not None
    assert report.export.weights is not None
    assert report.export.weights.missing == ()
    assert report.export.precision == ("int4" if "4 bits" in name or "rows" in name else "int8")


@pytest.mark.parametrize("name", ["dynamic", "blocks of 4 bits with zero points", "static"])
def test_a_wrong_activation_is_named_however_coarse_the_numbers(
    name: str, source: Path, save: Save, quantized: Callable[..., Path]
) -> None:
    careless = save("careless", **SHAPE, activation_function="gelu")
    report = judged(source, quantized(name, of=careless))
    assert report.verdict.endswith("the activation in h.0.mlp.act is gelu; the source has gelu_new")


def change_one(file: Path, name: str) -> None:
    """Change one number in the middle of the quantized weight of this name."""
    model = onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if name in tensor.name and is_whole(tensor))
    array = numpy_helper.to_array(tensor).copy()
    place = np.unravel_index(array.size // 2, array.shape)
    array[place] ^= 0x10  # a bit of either size of number
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, file)


def is_whole(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and np.prod(tensor.dims) > 1


@pytest.mark.parametrize("name", ["dynamic", "blocks of 4 bits", "blocks of 8 bits", "static"])
@pytest.mark.parametrize("weight", ["h.1.mlp.c_fc.weight", "lm_head"])
def test_one_changed_number_is_a_fault(name: str, weight: str, source: Path, quantized: Callable[..., Path]) -> None:
    file = quantized(name)
    change_one(file, weight)
    report = judged(source, file)
    [fault] = report.exactness_faults
    assert fault.startswith(f"{weight.replace('lm_head', 'wte.weight')} has other numbers in ")
    assert "(1 of 1280 numbers " in fault or "(1 of 1952 numbers " in fault


def test_numbers_that_were_chosen_in_another_way_are_said_to_be(source: Path, quantized: Callable[..., Path]) -> None:
    file = quantized("blocks of 8 bits")
    model = onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if "c_fc" in tensor.name and is_whole(tensor))
    array = numpy_helper.to_array(tensor).copy()
    array.ravel()[::20] ^= 0x04  # as those that lower the error of a product
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, file)
    report = judged(source, file)
    assert report.headline == "MATCH", report.faults
    assert "mathematics in float64" in report.verdict
    assert any(note.startswith("h.0.mlp.c_fc.weight has other numbers in ") for note in report.notes)


# --- weights by themselves --------------------------------------------------------------------------------------------


def product(file: Path, operator: str, names: list[str], *held: onnx.TensorProto) -> Path:
    """A graph of one operator, with tensors that it uses."""
    node = helper.make_node(operator, ["x", *names], ["y"], domain="com.microsoft" if operator == "QGemm" else "")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    onnx.save(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], list(held))), file)
    return file


@pytest.mark.parametrize(
    ("scale", "wanted"), [([2.0, 3.0], [[2.0], [3.0]]), ([2.0, 3.0, 4.0], [[2.0, 3.0, 4.0]]), ([2.0] * 5, None)]
)
def test_scales_are_those_of_the_axis_that_they_fit(tmp_path: Path, scale: list[float], wanted: Any) -> None:
    numbers = np.array([[1, -2, 3], [4, 5, -6]], np.int8)
    held = numpy_helper.from_array(numbers, "w_quantized"), numpy_helper.from_array(np.float32(scale), "w_scale")
    found = list(quantized_of(product(tmp_path / "model.onnx", "QGemm", ["w_quantized", "w_scale"], *held)))
    if wanted is None:
        assert found == []
    else:
        np.testing.assert_array_equal(found[0].read().values, numbers * np.array(wanted))


def test_a_weight_of_eight_bits_that_are_no_whole_number_is_not_known(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [2], [1.0, 2.0])
    scale = numpy_helper.from_array(np.float32(1), "s")
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [value], [weight, scale])), tmp_path / "model.onnx")
    assert list(quantized_of(tmp_path / "model.onnx")) == []


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("exact", [np.int8, np.uint8])
def test_it_is_said_where_a_processor_cuts_sums_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, exact: type
) -> None:
    monkeypatch.setattr(remarks, "exact_kind", lambda: np.dtype(exact))
    weight = numpy_helper.from_array(np.ones((2, 2), kind), "w")
    notes = list(remarks.of_products([product(tmp_path / "model.onnx", "MatMulInteger", ["w"], weight)]))
    assert bool(notes) is (kind is np.int8 and exact is np.uint8)
