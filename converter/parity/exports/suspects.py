"""Read out of a graph where it may do something of its own: for one token, for one size, or by chance.

No number of cases covers every input. But a graph that treats some input in a way of its own must compare it with
something, and what it compares with is written in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from converter.onnx_file import branches
from converter.parity.exports.branches import read_model
from converter.parity.legs.shipped import Numbers

# Operators that decide, or bend a value at a limit.
DECIDES = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Mod", "Min", "Max", "Clip", "OneHot")

# What is computed through these has too many values to be compared with one number on purpose.
MATHEMATICS = (
    *("Attention", "Erf", "Exp", "Gemm", "LayerNormalization", "MatMul", "MultiHeadAttention", "Softmax", "Tanh"),
    *("GroupQueryAttention", "SkipLayerNormalization", "BiasGelu", "FastGelu", "Gelu"),
)

# Operators that only move numbers, or write them in another type.
MOVES = (
    *("Cast", "Concat", "DequantizeLinear", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)

# Operators whose other inputs are axes, places or sizes, and no values.
FIRST_ALONE = (
    *("CumSum", "Expand", "Gather", "ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "Slice", "Split"),
    *("Squeeze", "Unsqueeze"),
)

# Of these, operators that leave every row of a table where it is.
KEEPS_ROWS = tuple(name for name in MOVES if name not in ("Concat", "Expand", "Slice", "Split"))

WHOLE = (TensorProto.INT32, TensorProto.INT64)  # types that hold every token id
TELLS_SIZE = ("Shape", "Size")

# Operators that look rows up in a table: operator → which input has the table, which one the number of the row.
LOOKS_UP = {
    "Gather": (0, 1),
    "GatherBlockQuantized": (0, 1),
    "EmbedLayerNormalization": (2, 0),
    "QEmbedLayerNormalization": (2, 0),
}

NUMBERS = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)

BOUNDS = ("Clip", "Max", "Min")

CHANCE = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
LEAST = 2  # every graph compares something with 0 and 1
FEW = 64  # numbers of a tensor: more of them are a mask or a table, and no sizes or tokens

DROPOUT, TRAINING = "Dropout", 2  # and the input that turns it on


@dataclass(frozen=True)
class Suspects:
    """What a graph has that may treat some inputs in a way of its own.

    Attributes:
        numbers: whole numbers from 2 on that something is compared with.
        uses: where the values of token ids go besides to the row of a table, as sentences.
        chance: operators that draw random numbers.
        bounds: operators that bound what the model computes, as GPT-2 does not.
    """

    numbers: set[int]
    uses: list[str]
    chance: list[str]
    bounds: list[str]


def suspects_of(file: Path, ids: str) -> Suspects:
    """Look for what a graph compares, and for what it does with its token ids.

    Args:
        ids: the name of the input.

    Raises:
        ModelFolderError: a tensor is missing, or outside the folder.
    """
    graph = read_model(file).graph
    nodes, held = list(_inside(graph)), dict(_constants(graph))
    makers = {name: node for node in nodes for name in node.output if name}
    deciding = [node for node in nodes if node.op_type in DECIDES]
    behind = {name for node in deciding for name in _behind(node, makers, held)}
    return Suspects(
        {number for name in behind for number in _whole(file, held[name])},
        list(_uses(nodes, {ids}, set(held))),
        [_called(node) for node in nodes if node.op_type in CHANCE or _drops_out(node, held)],
        list(_bounds(nodes)),
    )


def _inside(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph in the order in which they run, those of branches before the node that has them."""
    for node in graph.node:
        for branch in branches(node):
            yield from _inside(branch)
        yield node


def _constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield every tensor that a graph holds, those of branches too."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield node.output[0], _held(node)
        for branch in branches(node):
            yield from _constants(branch)


def _held(node: NodeProto) -> TensorProto:
    """Return what a Constant holds, as a tensor; an empty one if it is no number."""
    [attribute] = node.attribute
    if attribute.HasField("t"):
        return attribute.t
    held = helper.get_attribute_value(attribute) if attribute.type in NUMBERS else []
    return numpy_helper.from_array(np.array(held))


def _behind(node: NodeProto, makers: Mapping[str, NodeProto], held: Mapping[str, TensorProto]) -> set[str]:
    """Return the tensors of the file from which the inputs of a node are computed."""
    names = list(node.input)
    for name in names:
        maker = makers.get(name)
        if name not in held and maker is not None and maker.op_type not in MATHEMATICS:
            given = maker.input[:1] if maker.op_type in FIRST_ALONE else maker.input
            names.extend(other for other in given if other not in names)
    return held.keys() & set(names)


def _whole(file: Path, tensor: TensorProto) -> set[int]:
    """Return the whole numbers from 2 on that a tensor holds, if it is a small one."""
    if math.prod(tensor.dims) > FEW or tensor.data_type == TensorProto.STRING:
        return set()
    numbers = Numbers(file).flat(tensor).astype(np.float64)
    return {int(number) for number in numbers if number.is_integer() and number >= LEAST}


def _uses(nodes: Iterable[NodeProto], carriers: set[str], constants: set[str]) -> Iterator[str]:
    """Yield where the values of token ids go besides to the row of one table.

    Args:
        carriers: the values that hold token ids.
        constants: the values that hold what the file holds.
    """
    known = ""
    for node in nodes:
        ids = [at for at, name in enumerate(node.input) if name in carriers]
        moves = node.op_type in MOVES and not _narrows(node)
        if moves and node.op_type in KEEPS_ROWS and constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
        if not ids or node.op_type in TELLS_SIZE:
            continue
        table, row = LOOKS_UP.get(node.op_type, (-1, -1))
        if moves:
            carriers.update(node.output)
        elif ids == [row] and node.input[table] in constants and known in ("", node.input[table]):
            known = node.input[table]
        else:
            yield _called(node)


def _bounds(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Yield operators that bound a value which is computed by the mathematics of the model."""
    computed: set[str] = set()
    for node in nodes:
        if node.op_type in MATHEMATICS or (node.op_type not in TELLS_SIZE and not computed.isdisjoint(node.input)):
            computed.update(filter(None, node.output))
            if node.op_type in BOUNDS:
                yield _called(node)


def _narrows(node: NodeProto) -> bool:
    """Tell whether a Cast loses some of the numbers."""
    return node.op_type == "Cast" and any(each.name == "to" and each.i not in WHOLE for each in node.attribute)


def _drops_out(node: NodeProto, held: Mapping[str, TensorProto]) -> bool:
    """Tell whether a Dropout may be at work."""
    training = node.input[TRAINING] if node.op_type == DROPOUT and len(node.input) > TRAINING else ""
    return bool(training) and (training not in held or bool(numpy_helper.to_array(held[training]).any()))


def _called(node: NodeProto) -> str:
    return f"{node.op_type} ({node.name or node.output[0]})"
