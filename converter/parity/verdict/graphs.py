"""Compare two ONNX graphs node by node, and describe each difference in a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    external_data_helper,
    helper,
    numpy_helper,
)

from converter import onnx_file

SHOWN = 60  # characters of a value; longer ones are cut

# The parts of a model outside its graph: name → how the part is read.
MODEL_PARTS = {
    "IR version": lambda model: model.ir_version,
    "opset": lambda model: {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
    "functions": lambda model: [function.name for function in model.functions],
    "metadata": lambda model: {entry.key: entry.value for entry in model.metadata_props},
}


def differences(found: ModelProto, expected: ModelProto) -> Iterator[str]:
    """Yield a sentence for each difference between a graph and the one that the source gives; nothing if there is none.

    The bytes are compared too, so that no edit of any field passes.
    """
    if found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True):
        return
    said = [*_parts(found, expected), *_graph(found.graph, expected.graph)]
    yield from said or ["a field other than nodes, weights, inputs and outputs is not what the source gives"]


def _parts(found: ModelProto, expected: ModelProto) -> Iterator[str]:
    for name, read in MODEL_PARTS.items():
        if read(found) != read(expected):
            yield f"{name} {contrasted(read(found), read(expected))}"


def _graph(found: GraphProto, expected: GraphProto) -> Iterator[str]:
    yield from _values("input", found.input, expected.input)
    yield from _values("output", found.output, expected.output)
    yield from _initializers(found, expected)
    nodes, wanted = _by_name(found.node), _by_name(expected.node)
    for name, node in wanted.items():
        if name in nodes:
            yield from (f"{name}: {text}" for text in _node(nodes[name], node))
        else:
            yield f"{name}: missing; the source gives {node.op_type}"
    yield from (
        f"{name}: {node.op_type}, which the source does not give" for name, node in nodes.items() if name not in wanted
    )
    if nodes.keys() == wanted.keys() and [*nodes] != [*wanted]:
        yield "the nodes are in another order than the source gives them"


def _by_name(nodes: Sequence[NodeProto]) -> dict[str, NodeProto]:
    """Return nodes by the name of their first output, which is unique in a graph."""
    return {next((name for name in node.output if name), node.name): node for node in nodes}


def _node(found: NodeProto, expected: NodeProto) -> Iterator[str]:
    """Yield what differs in a node: ``Gelu approximate 'none'; the source gives 'tanh'``."""
    if (found.domain, found.op_type) != (expected.domain, expected.op_type):
        yield f"{found.op_type}; the source gives {expected.op_type}"
        return
    for what in ("input", "output"):
        ours, theirs = list(getattr(found, what)), list(getattr(expected, what))
        if ours != theirs:
            yield f"{found.op_type} {what}s {contrasted(ours, theirs)}"
    has_all, given_all = _attributes(found), _attributes(expected)
    for name in sorted(has_all.keys() | given_all.keys(), key=str):  # a name that is not UTF-8 is bytes
        if has_all.get(name) != given_all.get(name):
            if name in given_all and name in has_all:
                yield f"{found.op_type} {name} {contrasted(has_all[name].value, given_all[name].value)}"
                continue
            given = shown(given_all[name].value) if name in given_all else "none"
            has = shown(has_all[name].value) if name in has_all else "left out"
            yield f"{found.op_type} {name} {has}; the source gives {given}"


class _Attribute:
    """An attribute: its value for messages, and its bytes for the comparison."""

    def __init__(self, attribute: AttributeProto) -> None:
        self.value = _value(attribute)
        self.bytes = attribute.SerializeToString(deterministic=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Attribute) and self.bytes == other.bytes

    __hash__ = None  # type: ignore[assignment]


def _attributes(node: NodeProto) -> dict[str, _Attribute]:
    return {attribute.name: _Attribute(attribute) for attribute in node.attribute}


def _value(attribute: AttributeProto) -> Any:
    if attribute.HasField("g"):
        return "a subgraph"
    if attribute.HasField("t"):
        return _numbers(attribute.t)
    try:
        value = helper.get_attribute_value(attribute)
    except ValueError:  # of no type
        return "of no type"
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _numbers(tensor: TensorProto) -> Any:
    if external_data_helper.uses_external_data(tensor):
        return "in another file"
    try:
        return numpy_helper.to_array(tensor).tolist()
    except (ValueError, TypeError, KeyError):  # KeyError: of no known type
        return "a damaged tensor"


def _values(kind: str, found: Sequence[ValueInfoProto], expected: Sequence[ValueInfoProto]) -> Iterator[str]:
    ours, theirs = {value.name: value for value in found}, {value.name: value for value in expected}
    for name in theirs:
        if name not in ours:
            yield f"the {kind} {name} of the source is missing"
        elif ours[name] != theirs[name]:
            yield f"the {kind} {name} is {_type(ours[name])}; the source gives {_type(theirs[name])}"
    yield from (f"the {kind} {name} is not one that the source gives" for name in ours if name not in theirs)
    if ours.keys() == theirs.keys() and (len(found) != len(ours) or [*ours] != [*theirs]):
        yield f"the {kind}s are in another order than the source gives them"


def _type(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dimensions = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return f"{onnx_file.type_name(tensor.elem_type)} {shown(dimensions)}"


def _initializers(found: GraphProto, expected: GraphProto) -> Iterator[str]:
    ours, theirs = ({tensor.name: tensor for tensor in graph.initializer} for graph in (found, expected))
    for name in theirs:
        if name not in ours:
            yield f"{name}: the weight is missing"
        elif ours[name] != theirs[name]:
            (kind, value), (given_kind, given) = _tensor(ours[name]), _tensor(theirs[name])
            has, gives = _apart(repr(value), repr(given))
            yield f"{name}: {kind} {has}; the source gives {given_kind} {gives}"
    yield from (f"{name}: a weight that the source does not give" for name in ours if name not in theirs)


def _tensor(tensor: TensorProto) -> tuple[str, Any]:
    """Return type and dimensions of an initializer, and its numbers or their place."""
    kind = f"{onnx_file.type_name(tensor.data_type)} {list(tensor.dims)}"
    if tensor.external_data:
        return f"{kind} at", {entry.key: entry.value for entry in tensor.external_data}
    return kind, _numbers(tensor)


def contrasted(found: Any, expected: Any) -> str:
    """Return two values for a message, each cut around the first place where they differ."""
    has, gives = _apart(repr(found), repr(expected))
    return f"{has}; the source gives {gives}"


def _apart(*texts: str) -> list[str]:
    """Return texts, cut so that the first place where they differ is in sight."""
    at = len(os.path.commonprefix(texts))  # noqa: RUF071 - texts, not paths
    begin = 0 if at < SHOWN or max(map(len, texts)) <= SHOWN else at - SHOWN // 2
    return [_cut(text, begin) for text in texts]


def _cut(text: str, begin: int = 0) -> str:
    end = begin + SHOWN
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if len(text) > end else ''}"


def shown(value: Any) -> str:
    """Return a value for a message, cut if it is long."""
    return _cut(repr(value))
