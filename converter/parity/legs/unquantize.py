"""Replace the quantized operators of a graph by the same operators in float64.

The weights stay the numbers that they stand for. What flows between them is no longer rounded, so that the mathematics
of a quantized graph can be judged exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from converter.onnx_file import graphs_of
from converter.parity.legs.graphs import Writer, rewrite
from converter.parity.legs.shipped import Numbers
from converter.weights.quantize import unpack

# Operators with a quantized weight, and where its numbers, scale and zero point are among the inputs.
WEIGHTS: dict[str, tuple[int, int, int]] = {
    "DequantizeLinear": (0, 1, 2),
    "DynamicQuantizeMatMul": (1, 2, 3),
    "GatherBlockQuantized": (0, 2, 3),
    "MatMulIntegerToFloat": (1, 3, 5),
    "MatMulNBits": (1, 2, 3),
    "QLinearMatMul": (3, 4, 5),
}

DEFAULT_BITS = 4  # of the operators that may have more


def inputs_of(node: NodeProto, count: int) -> list[str]:
    """Return so many inputs of a node; those that it leaves out are empty."""
    return [*node.input, *[""] * count][:count]


def attributes_of(node: NodeProto) -> dict[str, int]:
    """Return a node's attributes that are whole numbers."""
    return {attribute.name: attribute.i for attribute in node.attribute}


@dataclass(frozen=True)
class Dequantized:
    """The numbers that a quantized weight stands for, in float64.

    Attributes:
        values: the numbers. The weight of a product is ``[inputs, outputs]``.
        step: the distance between two numbers that it can stand for; it broadcasts to ``values``. It may be negative.
        ends: the numbers that the smallest and the largest integer stand for; they broadcast, too.
    """

    values: np.ndarray
    step: np.ndarray
    ends: tuple[np.ndarray, np.ndarray]


def dequantized(node: NodeProto, parts: Sequence[np.ndarray]) -> Dequantized:
    """Return the weight of an operator in ``WEIGHTS``.

    Args:
        parts: its numbers and scales, and its zero points if it has them, each in the shape that the file gives.
    """
    given = attributes_of(node)
    if node.op_type == "MatMulNBits":
        return _of_product(given, parts)
    if node.op_type == "GatherBlockQuantized":
        return _of_rows(given, parts)
    axis = given.get("axis", 1) if node.op_type == "DequantizeLinear" else -1
    return scaled(parts, axis, given.get("block_size", 0))


def scaled(
    parts: Sequence[np.ndarray], axis: int = -1, block: int = 0, ends: tuple[int, int] | None = None
) -> Dequantized:
    """Return (numbers − zero points) · scales.

    Args:
        parts: numbers and scales, and zero points if there are any.
        axis: the axis along which scales differ, if there are several.
        block: how many numbers of the axis share a scale; 0 if each has its own.
        ends: the smallest and the largest integer; by default those of the numbers' type.
    """
    numbers = parts[0].astype(np.float64)
    step, *zeros = (_along(part.astype(np.float64), numbers.shape, axis, block) for part in parts[1:])
    zero = zeros[0] if zeros else np.zeros(())
    kind = ml_dtypes.iinfo(parts[0].dtype)
    least, most = ends or (kind.min, kind.max)
    return Dequantized((numbers - zero) * step, step, ((least - zero) * step, (most - zero) * step))


def _along(values: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Return scales or zero points so that they broadcast to a shape."""
    if values.size == 1:
        return values.reshape(())
    if values.ndim == 1:
        axis %= len(shape)
        return values.reshape([-1 if at == axis else 1 for at in range(len(shape))])
    whole = np.repeat(values, block, axis)
    return whole.take(np.arange(shape[axis]), axis)


def _of_product(given: Mapping[str, int], parts: Sequence[np.ndarray]) -> Dequantized:
    """Return the weight of a MatMulNBits, whose numbers are packed with a row for each output."""
    outputs, inputs, size, bits = given["N"], given["K"], given["block_size"], given.get("bits", DEFAULT_BITS)
    packed, scales, *zeros = (part.reshape(outputs, -1) for part in parts)
    zeros = [unpack(zero, bits, scales.shape[1]) for zero in zeros] or [np.array(1 << (bits - 1))]
    rows = scaled([unpack(packed, bits, inputs), scales, *zeros], 1, size, (0, (1 << bits) - 1))
    step, least, most = (np.broadcast_to(each, rows.values.shape).T for each in (rows.step, *rows.ends))
    return Dequantized(np.ascontiguousarray(rows.values.T), step, (least, most))


def _of_rows(given: Mapping[str, int], parts: Sequence[np.ndarray]) -> Dequantized:
    """Return the table of a GatherBlockQuantized, ``[rows, width]``."""
    bits, size, axis = given.get("bits", DEFAULT_BITS), given.get("block_size", 128), given.get("quantize_axis", 1)
    numbers, scales, *zeros = parts
    if numbers.dtype != np.uint8:
        return scaled(parts, axis, size)
    zeros = [unpack(zero, bits, scales.shape[-1]) for zero in zeros] or [np.array(1 << (bits - 1))]
    whole = unpack(numbers, bits, numbers.shape[-1] * 8 // bits)  # several numbers in a byte
    return scaled([whole, scales, *zeros], axis, size, (0, (1 << bits) - 1))


def unquantize(graph: GraphProto, numbers: Numbers) -> dict[str, np.ndarray]:
    """Replace the quantized operators of a graph, and of those inside it, as far as float64 has others for them.

    Args:
        numbers: of the file that the graph was read from.

    Returns:
        The new initializers, by name. They are in the graph, but for their numbers.
    """
    held = {tensor.name: tensor for each in graphs_of(graph) for tensor in each.initializer}
    constants = [node for each in graphs_of(graph) for node in each.node if node.op_type == "Constant"]
    held |= {
        node.output[0]: attribute.t for node in constants for attribute in node.attribute if attribute.HasField("t")
    }
    weights: dict[str, np.ndarray] = {}

    def weight(node: NodeProto) -> str:
        """Return the name of a node's weight in float64; empty if it has none, or one that is computed."""
        places = WEIGHTS.get(node.op_type, ())
        names = [name for at in places for name in inputs_of(node, at + 1)[at:] if name]
        if not names or any(name not in held for name in names):
            return ""
        new = f"{names[0]}/float64"
        if new not in weights:
            parts = [numbers.shaped(held[name]) for name in names]
            weights[new] = dequantized(node, parts).values
            graph.initializer.add(name=new, data_type=TensorProto.DOUBLE, dims=weights[new].shape)
        return new

    def spelled(write: Writer, node: NodeProto) -> list[str] | None:
        row = SPELLED.get(node.op_type)
        whole = weight(node)
        return row.write(write, node, whole) if row is not None and (whole or not row.needs_weight) else None

    there = graphs_of(graph)
    if any(node.op_type in SPELLED for each in there for node in each.node):
        for each in reversed(there):  # those inside first, as a graph that is rewritten is made of copies
            rewrite(each, spelled)
        for each in graphs_of(graph):
            del each.value_info[:]  # types that were inferred are others now
    return weights


def _less(write: Writer, numbers: str, zero_point: str) -> str:
    """Write numbers less their zero point, in float64."""
    wide = write.node("Cast", numbers, to=TensorProto.DOUBLE)
    return write.Sub(wide, write.node("Cast", zero_point, to=TensorProto.DOUBLE)) if zero_point else wide


def _counted(write: Writer, x: str, scale: str, zero_point: str) -> str:
    """Write in steps of a scale what is not rounded to whole ones."""
    steps = write.Div(x, scale)
    return write.Add(steps, write.node("Cast", zero_point, to=TensorProto.DOUBLE)) if zero_point else steps


def _biased(write: Writer, product: str, bias: str) -> list[str]:
    return [write.Add(product, bias) if bias else product]


def _dynamic(write: Writer, node: NodeProto, weight: str) -> list[str]:
    return [node.input[0], write.constant(1.0), write.constant(0.0)]  # in steps of 1


def _along_axis(write: Writer, node: NodeProto) -> list[str]:
    """Return the inputs of a node whose scales and zero points lie along its axis, so that they broadcast to the first.

    The rank is not known before the graph runs: the shape is 1 everywhere but at the axis.
    """
    x, *others = inputs_of(node, 3)
    axis = attributes_of(node).get("axis")
    if axis is None:
        return [x, *others]
    rank = write.Shape(write.Shape(x))
    ones = write.node("ConstantOfShape", rank, value=numpy_helper.from_array(np.ones(1, np.int64)))
    shape = write.ScatterElements(ones, write.constant(np.array([axis])), write.constant(np.array([-1])))
    return [x, *(write.Reshape(each, shape) if each else each for each in others)]


def _quantize(write: Writer, node: NodeProto, weight: str) -> list[str]:
    return [_counted(write, *_along_axis(write, node))]


def _dequantize(write: Writer, node: NodeProto, weight: str) -> list[str]:
    if weight:
        return [weight]
    x, scale, zero_point = _along_axis(write, node)
    return [write.Mul(_less(write, x, zero_point), scale)]


def _whole_product(write: Writer, node: NodeProto, weight: str) -> list[str]:
    a, b, a_zero, b_zero = inputs_of(node, 4)
    return [write.MatMul(_less(write, a, a_zero), _less(write, b, b_zero))]


def _dynamic_product(write: Writer, node: NodeProto, weight: str) -> list[str]:
    return _biased(write, write.MatMul(node.input[0], weight), inputs_of(node, 5)[4])


def _product_to_float(write: Writer, node: NodeProto, weight: str) -> list[str]:
    a, _, a_scale, _, a_zero, _, bias = inputs_of(node, 7)
    return _biased(write, write.MatMul(write.Mul(_less(write, a, a_zero), a_scale), weight), bias)


def _linear_product(write: Writer, node: NodeProto, weight: str) -> list[str]:
    a, a_scale, a_zero, _, _, _, scale, zero_point = inputs_of(node, 8)
    product = write.MatMul(write.Mul(_less(write, a, a_zero), a_scale), weight)
    return [_counted(write, product, scale, zero_point)]


def _blocked_product(write: Writer, node: NodeProto, weight: str) -> list[str]:
    return _biased(write, write.MatMul(node.input[0], weight), inputs_of(node, 6)[5])


def _blocked_rows(write: Writer, node: NodeProto, weight: str) -> list[str]:
    return [write.node("Gather", weight, node.input[1], axis=attributes_of(node).get("gather_axis", 0))]


@dataclass(frozen=True)
class Spelled:
    """How an operator is written in float64.

    Attributes:
        write: takes a writer, the node and the name of its weight; returns the names of the outputs.
        needs_weight: whether the weight must be known.
    """

    write: Callable[[Writer, NodeProto, str], list[str]]
    needs_weight: bool = True


SPELLED: dict[str, Spelled] = {
    "DequantizeLinear": Spelled(_dequantize, needs_weight=False),
    "DynamicQuantizeLinear": Spelled(_dynamic, needs_weight=False),
    "DynamicQuantizeMatMul": Spelled(_dynamic_product),
    "GatherBlockQuantized": Spelled(_blocked_rows),
    "MatMulInteger": Spelled(_whole_product, needs_weight=False),
    "MatMulIntegerToFloat": Spelled(_product_to_float),
    "MatMulNBits": Spelled(_blocked_product),
    "QLinearMatMul": Spelled(_linear_product),
    "QuantizeLinear": Spelled(_quantize, needs_weight=False),
}
