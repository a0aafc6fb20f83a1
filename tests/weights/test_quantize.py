"""Weights in blocks of whole numbers, laid out as ONNX Runtime's operators read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from converter.checkpoint.tensor import LazyTensor
from converter.weights.precisions import Blocks
from converter.weights.quantize import (
    PIECE_BYTES,
    Rows,
    dequantize,
    not_nearest,
    pack,
    quantize_rows,
    row_pieces,
    unpack,
)

KINDS = [Blocks(bits, size, symmetric) for bits in (4, 8) for size in (16, 32) for symmetric in (True, False)]
every_kind = pytest.mark.parametrize("blocks", KINDS, ids=str)


def drawn(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def in_file(folder: Path, values: np.ndarray) -> LazyTensor:
    values.tofile(folder / "weight")
    return LazyTensor("w", "float32", values.shape, folder / "weight", 0)


@given(bits=st.sampled_from((4, 8)), numbers=st.data())
def test_packing_loses_nothing(bits: int, numbers: st.DataObject) -> None:
    shape = st.tuples(st.integers(1, 4), st.integers(1, 9))
    given_numbers = numbers.draw(arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    assert np.array_equal(unpack(pack(given_numbers, bits), bits, given_numbers.shape[1]), given_numbers)


@settings(deadline=None)
@given(
    blocks=st.sampled_from(KINDS),
    values=arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=st.floats(-8, 8, width=32)),
)
def test_every_number_is_the_nearest_to_its_source(blocks: Blocks, values: np.ndarray) -> None:
    rows = quantize_rows(values, blocks)
    assert not_nearest(rows, values, blocks) is None
    steps = np.repeat(np.abs(rows.scales), blocks.size_for(values.shape[1]), axis=1)[:, : values.shape[1]]
    most = 1.0 if blocks.symmetric else 0.5  # the shorter side of a symmetric range ends a step early
    assert (np.abs(dequantize(rows, blocks, values.shape[1]) - values) <= (most + 1e-3) * steps + 1e-6).all()


@every_kind
def test_a_number_that_is_not_the_nearest_is_found(blocks: Blocks) -> None:
    values = drawn(3, 40)
    rows = quantize_rows(values, blocks)
    numbers = unpack(rows.numbers, blocks.bits, rows.numbers.shape[1] * 8 // blocks.bits).copy()
    at = (1, 17)
    numbers[at] = numbers[at] + 1 if numbers[at] < blocks.middle else numbers[at] - 1
    assert not_nearest(type(rows)(pack(numbers, blocks.bits), rows.scales, rows.zero_points), values, blocks) == at


def any_rows(blocks: Blocks, width: int, seed: int) -> Rows:
    """Rows of arbitrary numbers, zero points and scales, the extreme ones often among them."""
    rng, count = np.random.default_rng(seed), blocks.count(width)
    extremes = [0, 1, blocks.most - 1, blocks.most]

    def some(columns: int) -> np.ndarray:
        there = rng.integers(0, blocks.most + 1, (2, columns))
        return np.where(rng.random(there.shape) < 0.4, rng.choice(extremes, there.shape), there)

    # An operator that reads whole bytes may find anything in the half that is left over.
    zero_points = None if blocks.symmetric else pack(some(count + count % 2), blocks.bits)
    scales = rng.uniform(-2, 2, (2, count)).astype(np.float32)
    return Rows(pack(some(count * blocks.size_for(width)), blocks.bits), scales, zero_points)


@settings(deadline=None)
@given(blocks=st.sampled_from(KINDS), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_nearest_is_what_is_nearest_among_all_numbers(blocks: Blocks, width: int, seed: int) -> None:
    rows, rng = any_rows(blocks, width, seed), np.random.default_rng(seed)
    size, count = blocks.size_for(width), blocks.count(width)
    zeros = np.full((2, count), blocks.middle)
    if rows.zero_points is not None:
        zeros = unpack(rows.zero_points, blocks.bits, count).astype(int)
    steps = np.repeat(rows.scales.astype(float), size, axis=1)[:, :width]
    every = np.arange(blocks.most + 1)
    offered = (every - np.repeat(zeros, size, axis=1)[:, :width, None]) * steps[..., None]  # [rows, width, numbers]
    numbers = unpack(rows.numbers, blocks.bits, count * size)[:, :width].astype(int)
    held = np.take_along_axis(offered, numbers[..., None], axis=-1)[..., 0]
    away = rng.choice([0, 0, 0, 0.25, 0.45, 0.55, 1.2, 3, -0.25, -0.45, -0.55, -1.2, -3], held.shape)
    source = (held + away * steps).astype(np.float32)
    nearest = np.abs(offered - source[..., None]).argmin(axis=-1)
    wrong = [(int(row), int(column)) for row, column in np.argwhere(nearest != numbers)]
    assert not_nearest(rows, source, blocks) == (wrong[0] if wrong else None)


@every_kind
def test_a_scale_that_is_not_a_number_is_found(blocks: Blocks) -> None:
    values = drawn(2, 40)
    rows = quantize_rows(values, blocks)
    rows.scales[1, 1] = np.nan
    found = not_nearest(rows, values, blocks)
    assert found is not None
    assert found[0] == 1


@every_kind
def test_zeros_stay_zeros_and_the_widest_number_of_eight_bits_stays_itself(blocks: Blocks) -> None:
    values = np.zeros((2, 40), np.float32)
    assert not dequantize(quantize_rows(values, blocks), blocks, 40).any()
    values[0, 3] = -3.0
    found = dequantize(quantize_rows(values, blocks), blocks, 40)
    assert found[0, 3] == pytest.approx(-3.0, rel=1e-6)
    assert np.count_nonzero(found) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_quantized_piece_by_piece_as_it_is_in_one(tmp_path: Path, transposed: bool) -> None:
    values = drawn(PIECE_BYTES // 4 // 64 * 2 + 5, 64)  # two pieces and a bit
    weight = in_file(tmp_path, np.ascontiguousarray(values.T)).transposed() if transposed else in_file(tmp_path, values)
    assert [len(piece) for piece in row_pieces(weight)] == [PIECE_BYTES // 4 // 64] * 2 + [5]
    blocks = Blocks(4, 32, symmetric=False)
    parts, whole = [quantize_rows(rows, blocks) for rows in row_pieces(weight)], quantize_rows(values, blocks)
    assert np.array_equal(np.concatenate([part.numbers for part in parts]), whole.numbers)
    assert np.array_equal(np.concatenate([part.scales for part in parts]), whole.scales)


@pytest.mark.parametrize(("width", "size", "count"), [(5, 16, 1), (16, 16, 1), (17, 32, 1), (33, 64, 1), (300, 128, 3)])
def test_a_narrow_weight_has_smaller_blocks(width: int, size: int, count: int) -> None:
    blocks = Blocks(8, 128, symmetric=True)
    assert (blocks.size_for(width), blocks.count(width)) == (size, count)


@pytest.mark.parametrize("width", [16, 40, 64])
@every_kind
def test_onnx_runtime_reads_the_same_numbers(blocks: Blocks, width: int) -> None:
    """In MatMulNBits, which at accuracy level 1 computes in float32."""
    rows, values = 7, drawn(7, width)
    made = quantize_rows(values, blocks)
    size, count = blocks.size_for(width), blocks.count(width)
    given_arrays = {
        "b": made.numbers.reshape(rows, count, -1),
        "scales": made.scales,
        "x": np.eye(width, dtype=np.float32),
    }
    zero = []
    if made.zero_points is not None:
        given_arrays["zero"], zero = made.zero_points, ["zero"]
    attributes = {"K": width, "N": rows, "bits": blocks.bits, "block_size": size, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", "b", "scales", *zero], ["y"], domain="com.microsoft", **attributes)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(array, name) for name, array in given_arrays.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [], outputs, tensors), opset_imports=opsets, ir_version=11)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {})[0], dequantize(made, blocks, width).T, atol=1e-5)
    assert onnx.helper.find_min_ir_version_for(opsets[:1]) == 11
