"""Read the quantized weights of ONNX files of other programs, as far as their operators and names tell them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from converter.parity.exports.tensors import Held, nodes_of, tensors_of
from converter.parity.legs.widen import dequantized_product

# A number may be a step from the source's: quantizers of other programs round zero points, and so shift all numbers.
STEPS = 1.001

SAMPLED = 257  # numbers that are compared before all are; a prime, so that no dimension divides it

WHOLE = (TensorProto.INT8, TensorProto.UINT8)

# Operators that take a quantized weight, and where its numbers, scale and zero point are among the inputs.
OPERATORS: dict[str, tuple[int, int, int]] = {
    "DequantizeLinear": (0, 1, 2),
    "DynamicQuantizeMatMul": (1, 2, 3),
    "MatMulIntegerToFloat": (1, 3, 5),
    "QLinearMatMul": (3, 4, 5),
}

# What onnxruntime's quantizer adds to a weight's name.
NUMBERS, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"

# Operators that show that a file is quantized, with the number of bits of its weights; None: an attribute says it.
BITS: dict[str, int | None] = {
    "MatMulInteger": 8,
    "DynamicQuantizeLinear": 8,
    "DequantizeLinear": 8,
    "DynamicQuantizeMatMul": 8,
    "MatMulIntegerToFloat": 8,
    "QLinearMatMul": 8,
    "QAttention": 8,
    "QGemm": 8,
    "MatMulNBits": None,
    "GatherBlockQuantized": None,
}
DEFAULT_BITS = 4  # of the operators that have an attribute


@dataclass(frozen=True)
class Quantized:
    """A quantized weight.

    Attributes:
        name: the name of its numbers.
        values: the numbers that it stands for, ``[inputs, outputs]`` or in any other order, float64.
        step: the distance between two numbers that it can stand for, whatever its sign; it broadcasts to ``values``.
    """

    name: str
    values: np.ndarray
    step: np.ndarray

    def holds(self, numbers: np.ndarray) -> bool:
        """Tell whether it stands for these numbers, each to within a step."""
        if numbers.size != self.values.size or numbers.shape != self.values.shape:
            return False
        step = np.abs(np.broadcast_to(self.step, self.values.shape))  # a scale may be negative
        some = np.s_[:: max(1, len(numbers) // SAMPLED)]
        within = [
            bool((np.abs(self.values[part] - numbers[part]) <= STEPS * step[part]).all()) for part in (some, np.s_[:])
        ]
        return all(within)


def bits_of(file: Path) -> int | None:
    """Return the number of bits of a file's quantized weights; None if it has none."""
    found = set[int]()
    for node in nodes_of([onnx.load(file, load_external_data=False).graph]):
        if node.op_type in BITS:
            given = {attribute.name: attribute.i for attribute in node.attribute}
            found.add(BITS[node.op_type] or given.get("bits", DEFAULT_BITS))
    return min(found, default=None)


def quantized_of(file: Path) -> Iterator[Quantized]:
    """Yield the quantized weights of a file."""
    tensors = {held.name: held for held in tensors_of(file)}
    seen: set[str] = set()
    for node in nodes_of([onnx.load(file, load_external_data=False).graph]):
        for names in _parts(node, tensors):
            if names[0] not in seen:
                seen.add(names[0])
                yield from _read(*(tensors.get(name) for name in names))
        if node.op_type == "MatMulNBits" and node.input[1] in tensors and node.input[1] not in seen:
            seen.add(node.input[1])
            parts = [tensors[name] for name in node.input[1:4] if name in tensors]
            yield Quantized(node.input[1], *dequantized_product(node, [part.array().ravel() for part in parts]))


def _parts(node: NodeProto, tensors: Mapping[str, Held]) -> Iterator[tuple[str, str, str]]:
    """Yield the names of numbers, scale and zero point of each weight that a node takes."""
    inputs = [*node.input, *[""] * 8]
    if node.op_type in OPERATORS:
        numbers, scale, zero_point = (inputs[at] for at in OPERATORS[node.op_type])
        if numbers in tensors and scale in tensors:
            yield numbers, scale, zero_point
    for name in node.input:
        base = name.removesuffix(NUMBERS)
        if name in tensors and base != name and f"{base}{SCALE}" in tensors:
            yield name, f"{base}{SCALE}", f"{base}{ZERO_POINT}"


def _read(numbers: Held | None, scale: Held | None, zero_point: Held | None) -> Iterator[Quantized]:
    """Yield what a weight stands for. A square one has a scale for each row or for each column: both are yielded."""
    assert numbers is not None
    assert scale is not None
    whole = numbers.array().astype(np.float64)
    for axis in [axis for axis, size in enumerate(whole.shape) if size == scale.size] or [0]:
        step = _along(scale.array().astype(np.float64), whole, axis)
        zero = _along(zero_point.array().astype(np.float64), whole, axis) if zero_point is not None else 0.0
        yield Quantized(numbers.name, (whole - zero) * step, step)


def _along(values: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray:
    """Return scales or zero points so that they broadcast: one number, or one for each index of an axis."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if at == axis else 1 for at in range(whole.ndim)])
