"""Widen the shipped graph from float32 to float64: the same nodes, without the rounding of float32.

An error that is left is then not rounding but wrong mathematics: a wrong GELU, a wrong epsilon, a wrong scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.polynomial.legendre import leggauss
from onnx import AttributeProto, NodeProto, TensorProto, external_data_helper, helper, numpy_helper

from converter import onnx_file
from converter.graph.build import MAX_OPSET, MIN_OPSET, build
from converter.onnx_file import graphs_of
from converter.parity.legs.graphs import Writer, rewrite
from converter.parity.legs.shipped import Numbers
from converter.parity.legs.unquantize import inputs_of, unquantize
from converter.runtime.given import give, outside
from converter.runtime.ort import (
    CPU_PROVIDER,
    HAS_WIDE_ATTENTION,
    NO_OPTIMIZATION,
    InferenceSession,
    SessionOptions,
    session_of,
    session_options,
)
from reference.config import GPT2Config

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

# Smaller weights go into the graph itself: ONNX Runtime's optimizers read vectors, and would read them from the float32
# file.
INLINE_BYTES = 64 * 1024

# The nodes of the quadrature for erf, and from where erf is 1 in float64. The result is exact to 4e-15 everywhere.
ERF_NODES, ERF_END = 24, 6.0


# Threads cost a model with fewer parameters more than they save: where cores are shared, each operation waits for a
# thread that waits for its core, and a check took 204 s on two threads, 55 s on one.
SMALL_MODEL = 10_000_000


def threads_for(parameters: int) -> int | None:
    """Return how many threads a model runs on: one if it is small, else None for one a core."""
    return 1 if parameters < SMALL_MODEL else None


@dataclass(frozen=True)
class OpenedGraph:
    """A session, and the weights that it uses but does not own; they must live as long as the session."""

    session: InferenceSession
    weights: list[Any]


LOG_NOTHING = 4  # what ONNX Runtime refuses is an error in Python too, and is said in the report


Edit = Callable[[onnx.GraphProto], None]  # changes a graph in memory


def _options(graph: onnx.GraphProto) -> SessionOptions:
    """Return the options of a session that may be refused: one thread for a small model, else one a core."""
    parameters = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    options = session_options(threads_for(parameters))
    options.log_severity_level = LOG_NOTHING
    return options


def graph_session(file: Path, edit: Edit = lambda graph: None, provider: str = CPU_PROVIDER) -> OpenedGraph:
    """Open the graph in ``file``, after an edit in memory."""
    model = onnx_file.read(file)
    edit(model.graph)
    return open_graph(model, file, provider)


def open_graph(model: onnx.ModelProto, file: Path, provider: str = CPU_PROVIDER) -> OpenedGraph:
    """Open a model that was read from ``file``.

    Raises:
        ProviderError: the provider does not work on this machine.
    """
    session = session_of(model.SerializeToString(), _options(model.graph), file.parent, provider)
    return OpenedGraph(session, [])


def expose(names: Iterable[str], graph: onnx.GraphProto) -> None:
    """Make values outputs of a graph. ONNX Runtime infers their types."""
    known = {value.name for value in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)


def widened_session(file: Path, edit: Edit = lambda graph: None, config: GPT2Config | None = None) -> OpenedGraph:
    """Open the graph in ``file``, widened, on the CPU.

    Args:
        config: tells which constants of the mathematics a graph in float16 had to round; they are replaced by the exact
            ones.
    """
    model = onnx_file.read(file)
    edit(model.graph)
    return open_widened(model, file, config)


def open_widened(model: onnx.ModelProto, file: Path, config: GPT2Config | None = None) -> OpenedGraph:
    """Widen a model that was read from ``file``, and open it on the CPU; see ``widened_session``."""
    if config is not None:
        make_constants_whole(model.graph, config)
    options = _options(model.graph)
    options.graph_optimization_level = NO_OPTIMIZATION  # it would read weights that are not in the file in float64
    weights: list[Any] = []
    numbers = Numbers(file)
    weights_of = unquantize(model.graph, numbers)
    for tensor in model.graph.initializer:
        array = weights_of.get(tensor.name)
        if array is None and tensor.data_type in FLOATS:
            array = numbers.shaped(tensor).astype(np.float64)
        if array is None:
            continue
        if array.nbytes > INLINE_BYTES:
            weights += give(options, {tensor.name: array})
            tensor.CopyFrom(outside(tensor.name, array.dtype, array.shape, file.name))
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    _widen(model.graph, numbers)
    return OpenedGraph(session_of(model.SerializeToString(), options, file.parent, CPU_PROVIDER), weights)


def _widen(graph: onnx.GraphProto, numbers: Numbers) -> None:
    """Widen the values and nodes of a graph, and the graphs inside it."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                attribute.CopyFrom(helper.make_attribute("value", _double(helper.get_attribute_value(attribute))))
            if attribute.HasField("t") and attribute.t.data_type in FLOATS:
                attribute.t.CopyFrom(numpy_helper.from_array(numbers.shaped(attribute.t).astype(np.float64)))
            if attribute.HasField("g"):
                _widen_inside(attribute.g, numbers)
    spell_out(graph)


def _double(value: float | Sequence[float]) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.float64))


def _widen_inside(graph: onnx.GraphProto, numbers: Numbers) -> None:
    """Widen a graph inside another. Its weights become part of it."""
    for tensor in graph.initializer:
        if tensor.data_type in FLOATS:
            array = numbers.shaped(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    _widen(graph, numbers)


def make_constants_whole(graph: onnx.GraphProto, config: GPT2Config) -> None:
    """Replace constants in float16 by the numbers that they were rounded from, such as 1.702 of quick_gelu.

    A constant that is no rounded constant of the model is left as it is, and so shows as an error.
    """
    graphs = graphs_of(graph)
    nodes = [node for each in graphs for node in each.node if node.op_type == "Constant"]
    constants = [attribute.t for node in nodes for attribute in node.attribute]
    held = [tensor for each in graphs for tensor in each.initializer]
    constants += [tensor for tensor in held if not external_data_helper.uses_external_data(tensor)]
    rounded = [
        tensor for tensor in constants if tensor.data_type == TensorProto.FLOAT16 and math.prod(tensor.dims) == 1
    ]
    if not rounded:
        return
    known = _constants(config)
    roots = {math.sqrt(number) for number in known if number > 0}  # others scale queries and keys, each by a root
    with np.errstate(over="ignore"):
        whole = {float(np.float16(number)): number for number in (*roots, *known)}
    for tensor in rounded:
        value = numpy_helper.to_array(tensor)
        number = whole.get(float(value.item()), float(value.item()))
        tensor.CopyFrom(numpy_helper.from_array(np.full(value.shape, number), tensor.name))


def _constants(config: GPT2Config) -> set[float]:
    """Return the scalar float32 constants of the model's graph, in the oldest and in the newest opset."""
    found = set()
    for opset in (MIN_OPSET, MAX_OPSET):
        graph = onnx.load_from_string(build(config, lambda name: ("", 0, 0), opset)).graph
        tensors = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
        for tensor in (*tensors, *graph.initializer):
            inline = tensor.data_type == TensorProto.FLOAT and not external_data_helper.uses_external_data(tensor)
            if inline and math.prod(tensor.dims) == 1:
                found.add(float(numpy_helper.to_array(tensor).item()))
    return found


def erf(write: Writer, x: str) -> str:
    """Write erf(x) = 2x/√π · ∫₀¹ exp(−x²t²) dt, by Gauss-Legendre quadrature."""
    x = write.Max(write.Min(x, ERF_END), -ERF_END)
    square = write.Mul(x, x)
    places, weights = leggauss(ERF_NODES)
    total: str | float = 0.0
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        total = write.Add(total, write.Mul(write.Exp(write.Mul(square, -(place**2))), weight))
    return write.Mul(write.Mul(x, 2 / math.sqrt(math.pi)), total)


def gelu(write: Writer, x: str, approximate: bytes = b"none") -> str:
    """Write Gelu as ONNX defines it, with float64 constants."""
    if approximate == b"tanh":
        cubic = write.Mul(x, write.Add(write.Mul(write.Mul(x, x), 0.044715), 1))
        inner = write.Tanh(write.Mul(cubic, math.sqrt(2 / math.pi)))
    else:
        inner = erf(write, write.Mul(x, math.sqrt(0.5)))
    return write.Mul(write.Mul(x, 0.5), write.Add(inner, 1))


def softplus(write: Writer, x: str) -> str:
    """Write log(1 + eˣ), without overflow."""
    return write.Add(write.Relu(x), write.Log(write.Add(write.Exp(write.Neg(write.Abs(x))), 1)))


def hard_swish(write: Writer, x: str) -> str:
    """Write x · clip(x/6 + 1/2, 0, 1)."""
    return write.Mul(x, write.Max(write.Min(write.Add(write.Div(x, 6), 0.5), 1), 0))


# Operators that ONNX Runtime's CPU does not have in float64, or computes with float32 constants.
SPELLED_OUT: dict[str, Callable[..., str]] = {
    "Erf": erf,
    "Gelu": gelu,
    "HardSwish": hard_swish,
    "LeakyRelu": lambda write, x, alpha=0.01: write.Max(x, write.Mul(x, alpha)),
    "Mish": lambda write, x: write.Mul(x, write.Tanh(softplus(write, x))),
    "Softplus": softplus,
}


def skip_norm(write: Writer, node: NodeProto) -> list[str]:
    """Write ONNX Runtime's layer normalisation of a sum."""
    x, skip, weight, bias, more = inputs_of(node, 5)
    total = write.Add(x, skip)
    total = write.Add(total, more) if more else total
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = [name for name in (total, weight, bias) if name]
    return [write.node("LayerNormalization", *inputs, axis=-1, epsilon=given.get("epsilon", 1e-12)), "", "", total]


def biased_gelu(write: Writer, node: NodeProto, approximate: bytes) -> list[str]:
    """Write ONNX Runtime's Gelu of a sum."""
    x, bias = inputs_of(node, 2)
    return [gelu(write, write.Add(x, bias) if bias else x, approximate)]


# Operators that ONNX Runtime joined from several, and has in float32 only.
JOINED: dict[str, Callable[[Writer, NodeProto], list[str]]] = {
    "BiasGelu": partial(biased_gelu, approximate=b"none"),
    "FastGelu": partial(biased_gelu, approximate=b"tanh"),
    "SkipLayerNormalization": skip_norm,
}


PLAIN = {"q_num_heads", "kv_num_heads", "scale", "softmax_precision"}  # attributes that ``attention`` knows
LOGICAL = {"And", "Or", "Not", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"}


def attention(write: Writer, node: NodeProto) -> list[str] | None:
    """Write ONNX's Attention of ``[batch, tokens, width]`` with a mask of truth values; None if it is another one."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    n_head = given.get("q_num_heads")
    if not (given.keys() <= PLAIN and n_head and n_head == given.get("kv_num_heads") and "scale" in given):
        return None
    query, key, value, mask, *past = inputs_of(node, 6)

    def heads(x: str) -> str:
        apart = write.Reshape(x, write.constant(np.array([0, 0, n_head, -1])))
        return write.node("Transpose", apart, perm=[0, 2, 1, 3])

    query, key, value = map(heads, (query, key, value))
    if all(past):
        key, value = (write.node("Concat", *pair, axis=2) for pair in zip(past, (key, value), strict=True))
    across = write.node("Transpose", key, perm=[0, 1, 3, 2])
    scores = write.MatMul(write.Mul(query, given["scale"]), across)
    scores = write.Where(mask, scores, -math.inf) if mask else scores
    joined = write.node("Transpose", write.MatMul(write.node("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    return [write.Reshape(joined, write.constant(np.array([0, 0, -1]))), key, value]


def spell_out(graph: onnx.GraphProto) -> None:
    """Replace the operators in ``SPELLED_OUT`` and ``JOINED``, and let a Mul before Attention do its scaling.

    Attention takes the square root of its ``scale`` in float32 in every precision. That would look like wrong
    mathematics.
    """
    masks = {"", *(output for node in graph.node if node.op_type in LOGICAL for output in node.output)}

    def spelled(write: Writer, node: NodeProto) -> list[str] | None:
        if node.op_type in SPELLED_OUT:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            return [SPELLED_OUT[node.op_type](write, node.input[0], **attributes)]
        if node.op_type in JOINED:
            return JOINED[node.op_type](write, node)
        if node.op_type == "Attention" and not HAS_WIDE_ATTENTION and inputs_of(node, 4)[3] in masks:
            whole = attention(write, node)
            if whole is not None:
                return whole
        softmax = _attribute(node, "softmax_precision") if node.op_type == "Attention" else None
        if softmax is not None:
            softmax.i = TensorProto.DOUBLE
        scale = _attribute(node, "scale") if node.op_type == "Attention" else None
        if scale is not None:
            node.input[0], scale.f = write.Mul(node.input[0], scale.f), 1.0
        return None

    rewrite(graph, spelled)


def _attribute(node: NodeProto, name: str) -> AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)
