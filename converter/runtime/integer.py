"""The products of int8 and int4 graphs as integer products, for many rows at once.

MatMulNBits, which the folder's graphs have, is the fastest operator for one row. For many it is the slowest: it takes
its weights apart again for each few of them. Processors multiply whole matrices of integers several times as fast. So
a second session of the same graph has MatMulIntegerToFloat in its place. Its weights are the shipped ones, rounded to
8 bits with one scale for each output; each row of what they are multiplied with is rounded to 8 bits, with a scale and
a zero point of its own, so that no row depends on another. Sums of integers are exact: where a processor adds products
of bytes of two types in 16 bits, both have the same type.

https://github.com/microsoft/onnxruntime, ContribOperators.md; "zeropoint, vector-wise" in Dettmers et al., LLM.int8(),
2022.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from converter.runtime.given import give, outside
from converter.runtime.ort import CPU_PROVIDER, OPEN_ERRORS, InferenceSession, session_of, session_options, untiled
from converter.weights.precisions import Blocks
from converter.weights.quantize import Rows, dequantize

PRODUCT, DOMAIN = "MatMulNBits", "gpt2onnx"
ONES, SHAPE = "integer.ones", "integer.shape"  # what all products share
PROJECTION = "h."  # how the names of the weights of projections begin; the head is run on few rows

MOST = 127  # of the numbers of a weight, on either side of 0
MIDDLE = 128  # stands for 0 in a weight of uint8

# So many outputs of a weight are rounded together: they fit the second-level cache in float32.
PIECE_ROWS = 64

STEPS = 255  # from the lowest to the highest value of a row

# The least range of a row, and scale of an output, for rows of zeros. Divided by 255 it is still a normal float32.
LEAST_RANGE = 1e-30

# A row is rounded to 0 … 255, from the lowest to the highest of its values and 0, so that x = scale · q − zero. What
# the zero adds to each output is taken off again with the sums of the weights, where the bias goes in, too:
# x·W + b = scale · (q·W) + zero · (−ΣW) + 1 · b.
FUNCTION = """
<domain: "gpt2onnx", opset_import: ["" : OPSET, "com.microsoft" : 1]>
IntegerLinear (x, ones, shape, weight, scales, sums_and_bias) => (y)
{
    last = Constant <value_ints = [-1]> ()
    rows = Flatten <axis = -1> (x)
    highest = ReduceMax <keepdims = 0> (rows, last)
    lowest = ReduceMin <keepdims = 0> (rows, last)
    least = Constant <value_float = LEAST> ()
    above = Max (highest, least)
    depth = Neg (lowest)
    below = Relu (depth)
    range = Add (above, below)
    part = Constant <value_float = PART> ()
    scale = Mul (range, part)
    zero = QuantizeLinear <axis = 0> (below, scale)
    numbers = QuantizeLinear <axis = 0> (rows, scale, zero)
    one = Constant <value_float = 1.0> ()
    PRODUCT
    scale_column = Unsqueeze (scale, last)
    scaled = Mul (product, scale_column)
    zero_value = DequantizeLinear <axis = 0> (zero, scale)
    zero_column = Unsqueeze (zero_value, last)
    factors = Concat <axis = 1> (zero_column, ones)
    whole = Gemm (factors, sums_and_bias, scaled)
    y = Reshape (whole, shape)
}
"""

# How numbers and weight are multiplied, by the type of the weight. int8 is the faster one where both are exact.
PRODUCTS = {
    np.dtype(np.int8): "product = com.microsoft.MatMulIntegerToFloat (numbers, weight, one, scales)",
    np.dtype(np.uint8): """none = Constant <value = uint8 {0}> ()
    middle = Constant <value = uint8 {128}> ()
    product = com.microsoft.MatMulIntegerToFloat (numbers, weight, one, scales, none, middle)""",
}

# What all products of a step share: a column of ones, one for each row, and the dimensions [batch, tokens].
SHARED = """
<domain: "gpt2onnx", opset_import: ["" : OPSET]>
Shared (ids) => (ones, leading)
{
    leading = Shape (ids)
    one = Constant <value_ints = [1]> ()
    rows = ReduceProd (leading)
    column = Concat <axis = 0> (rows, one)
    ones = ConstantOfShape <value = float[1] {1.0}> (column)
}
"""


@dataclass(frozen=True)
class Integers:
    """A graph with integer products.

    Attributes:
        model: the graph; the weights of its products are external initializers.
        weights: these weights, ``[inputs, outputs]`` int8, or uint8 with 128 for 0, by name.
    """

    model: ModelProto
    weights: dict[str, np.ndarray]


def with_integers(model: ModelProto, folder: Path, kind: np.dtype) -> Integers | None:
    """Return a graph with integer products; None if it has no product in blocks whose weight lies in a data file.

    ``model`` is left alone.

    Args:
        model: a graph of int8 or int4, without its weights.
        folder: where its data file lies.
        kind: of the weights, int8 or uint8.
    """
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if _is_projection(node, held)]
    if not products:
        return None
    with ThreadPoolExecutor() as pool:  # numpy computes outside Python's lock
        rounded = list(pool.map(lambda node: _rounded(node, held, folder), products))
    there = next(entry.value for entry in held[products[0].input[1]].external_data if entry.key == "location")
    weights: dict[str, np.ndarray] = {}
    for node, weight in zip(products, rounded, strict=True):
        name = node.input[1]
        weights[name] = weight.numbers if kind == np.int8 else weight.numbers.view(np.uint8) ^ MIDDLE
        held[name].CopyFrom(outside(name, kind, weight.numbers.shape, there))
        _replace(node, weight, graph)
    nodes = [*_shared(graph, rounded), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    made.functions.extend(_functions(made, kind))
    made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    made = inline_local_functions(made)
    _keep_used(made.graph)
    return Integers(made, weights)


def _is_projection(node: NodeProto, held: Mapping[str, TensorProto]) -> bool:
    """Tell whether a node is a product in blocks as ``convert`` writes it for a projection."""
    if node.op_type != PRODUCT or not node.input[1].startswith(PROJECTION):
        return False
    known = all(name in held for name in node.input[1:] if name)
    return known and held[node.input[1]].data_location == TensorProto.EXTERNAL


def _replace(node: NodeProto, weight: _Weight, graph: GraphProto) -> None:
    """Make a product in blocks one of integers. Its weight keeps its name."""
    name, stem = node.input[1], node.input[1].removesuffix(".weight")
    given = {f"{stem}.integer.scales": weight.scales, f"{stem}.integer.sums_and_bias": weight.sums_and_bias}
    graph.initializer.extend(numpy_helper.from_array(array, part) for part, array in given.items())
    inputs = [node.input[0], ONES, f"{SHAPE}.{len(weight.scales)}", name, *given]
    node.CopyFrom(helper.make_node("IntegerLinear", inputs, node.output, node.name, domain=DOMAIN))


def _shared(graph: GraphProto, weights: Sequence[_Weight]) -> list[NodeProto]:
    """Return the nodes of what the products share: ``Shared``, and the shape of a product of each width."""
    nodes = [helper.make_node("Shared", ["input_ids"], [ONES, SHAPE], domain=DOMAIN)]
    for width in sorted({len(weight.scales) for weight in weights}):
        graph.initializer.append(numpy_helper.from_array(np.array([width]), f"integer.width.{width}"))
        nodes.append(helper.make_node("Concat", [SHAPE, f"integer.width.{width}"], [f"{SHAPE}.{width}"], axis=0))
    return nodes


def _functions(model: ModelProto, kind: np.dtype) -> list[FunctionProto]:
    """Return ``Shared`` and ``IntegerLinear`` in the version of the operators that a model has."""
    opset = next(each.version for each in model.opset_import if not each.domain)
    filled = {"OPSET": str(opset), "LEAST": repr(LEAST_RANGE), "PART": repr(1 / STEPS), "PRODUCT": PRODUCTS[kind]}
    texts = [SHARED, FUNCTION]
    for word, value in filled.items():
        texts = [text.replace(word, value) for text in texts]
    return [onnx.parser.parse_function(text) for text in texts]


def _keep_used(graph: GraphProto) -> None:
    """Remove the initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


@dataclass(frozen=True)
class _Weight:
    """A weight for an integer product: numbers ``[inputs, outputs]`` int8, a scale for each output, the bias."""

    numbers: np.ndarray
    scales: np.ndarray
    bias: np.ndarray

    @property
    def sums_and_bias(self) -> np.ndarray:
        """Return for each output the sum of its weights, negative, and the bias: ``[2, outputs]`` float32."""
        sums = self.numbers.sum(axis=0, dtype=np.int64) * self.scales.astype(np.float64)
        return np.stack([-sums, self.bias]).astype(np.float32)


def _rounded(node: NodeProto, held: Mapping[str, TensorProto], folder: Path) -> _Weight:
    """Round the weight of a product in blocks to one scale for each output."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    inputs, outputs = given["K"], given["N"]

    def part(at: int) -> np.ndarray | None:
        name = [*node.input, "", "", ""][at]
        return numpy_helper.to_array(held[name], os.fspath(folder)).reshape(outputs, -1) if name else None

    packed, scales, zeros, bias = part(1), part(2), part(3), part(5)
    assert packed is not None  # the operator has both
    assert scales is not None
    blocks = Blocks(given["bits"], given["block_size"], symmetric=zeros is None)
    whole, steps = np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32)
    for begin in range(0, outputs, PIECE_ROWS):
        piece = slice(begin, begin + PIECE_ROWS)
        rows = Rows(packed[piece], scales[piece], None if zeros is None else zeros[piece])
        values = dequantize(rows, blocks, inputs)
        steps[piece] = np.maximum(np.abs(values).max(axis=1) / MOST, LEAST_RANGE)
        whole[:, piece] = np.rint(values / steps[piece, None]).T
    return _Weight(whole, steps, np.zeros(outputs, np.float32) if bias is None else bias[:, 0])


def open_integers(graph: bytes, folder: Path, threads: int | None) -> InferenceSession | None:
    """Open a graph of int8 or int4 with integer products.

    None if they cannot be had: the processor, the graph or this version of ONNX Runtime does not allow it.

    It takes the memory of the weights once more, at 8 bits a number.

    Args:
        graph: the graph with its cache in place.
        folder: where its data file lies.
        threads: see ``load``.
    """
    kind = exact_kind()
    made = None if kind is None else with_integers(onnx.load_from_string(graph), folder, kind)
    if made is None:
        return None
    options = session_options(threads)
    values = give(options, made.weights)
    try:
        with untiled():
            return session_of(made.model.SerializeToString(), options, folder, CPU_PROVIDER)
    except OPEN_ERRORS:  # older versions lack QuantizeLinear in the opset of the graph
        return None
    finally:
        del values  # ONNX Runtime has laid the weights out anew


@cache
def exact_kind() -> np.dtype | None:
    """Return the type of weights whose products with uint8 are exact on this processor; None if there is none.

    Of two that are exact int8 is the faster one: it has instructions that add products in 32 bits (VNNI, AMX, Arm's
    dot product). Without them ONNX Runtime adds two products of uint8 and int8 in 16 bits and cuts off what is too
    large; uint8 it widens first.
    """
    return next((kind for kind in PRODUCTS if _multiplies_exactly(kind)), None)


def _multiplies_exactly(kind: np.dtype) -> bool:
    """Tell whether ONNX Runtime's integer product is exact with weights of a type, and keeps a copy of them.

    Without a copy of its own it would go on reading memory that we free.
    """
    size, most = 256, np.iinfo(kind).max
    numbers, weight = np.full((size, size), 255, np.uint8), np.full((size, size), most, kind)
    node = helper.make_node("MatMulInteger", ["numbers", "weight"], ["sums"])
    given = helper.make_tensor_value_info("numbers", TensorProto.UINT8, numbers.shape)
    sums = helper.make_tensor_value_info("sums", TensorProto.INT32, numbers.shape)
    graph = helper.make_graph([node], "exact", [given], [sums], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = session_options(threads=1)
    values = give(options, {"weight": weight})
    session = InferenceSession(model.SerializeToString(), options, providers=[CPU_PROVIDER])
    weight[:] = 0
    (found,) = session.run(["sums"], {"numbers": numbers})
    del values
    return bool((found == size * 255 * int(most)).all())
