"""Edits of a graph or of its weights, made by other means than ``converter.parity.seeded.mutations``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from tests.parity.diagnosis.bench import HEAD, WIDTH, Folder, Spoil


def node_of(graph: GraphProto, output: str) -> NodeProto:
    return next(node for node in graph.node if output in node.output)


def nodes_of(graph: GraphProto, *op_types: str) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type in op_types]


def put_before(graph: GraphProto, node: NodeProto, *new: NodeProto, **constants: Any) -> None:
    at = list(graph.node).index(node)
    for number, other in enumerate(new):
        graph.node.insert(at + number, other)
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def on_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda folder: folder.weight(name, change)


def on_graph(edit: Callable[[GraphProto], None]) -> Spoil:
    return lambda folder: folder.graph(edit)


def all_of(*spoils: Spoil) -> Spoil:
    def spoil(folder: Folder) -> None:
        for one in spoils:
            one(folder)

    return spoil


def transpose(weight: np.ndarray) -> np.ndarray:
    return weight.T.reshape(weight.shape)


def columns(order: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weight: weight[..., order]


def projection(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return all_of(on_weight(f"{name}.weight", change), on_weight(f"{name}.bias", change))


def blocks(order: tuple[int, int, int]) -> list[int]:
    """The columns of c_attn with q, k and v in another order."""
    return [part * WIDTH + column for part in order for column in range(WIDTH)]


PER_HEAD = [part * WIDTH + head * HEAD + d for head in range(3) for part in range(3) for d in range(HEAD)]
PER_DIMENSION = [part * WIDTH + head * HEAD + d for head in range(3) for d in range(HEAD) for part in range(3)]


def split_into(*parts: str, layer: int = 1) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node_of(graph, f"h.{layer}.attn.q").output[:] = [f"h.{layer}.attn.{part}" for part in parts]

    return on_graph(edit)


def attend_with(*parts: str, layer: int = 1) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node_of(graph, f"h.{layer}.attn.sdpa").input[:3] = [f"h.{layer}.attn.{part}" for part in parts]

    return on_graph(edit)


def layer_from(layer: int, other: int) -> Spoil:
    """All weights of a layer are another one's."""

    def edit(graph: GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [
                name.replace(f"h.{layer}.", f"h.{other}.") if name.endswith((".weight", ".bias")) else name
                for name in node.input
            ]

    return on_graph(edit)


def set_attribute(op_type: str, attribute: str, value: Callable[[int, float], float], *outputs: str) -> Spoil:
    """Another value, by layer and by what it was, in the nodes of these outputs or all of a kind."""

    def edit(graph: GraphProto) -> None:
        for number, node in enumerate(nodes_of(graph, op_type)):
            if not outputs or node.output[0] in outputs:
                held = next(a for a in node.attribute if a.name == attribute)
                held.f = value(number, held.f)

    return on_graph(edit)


def activate(op_type: str, *layers: int, **attributes: Any) -> Spoil:
    def edit(graph: GraphProto) -> None:
        for layer in layers:
            node = node_of(graph, f"h.{layer}.mlp.act")
            new = helper.make_node(op_type, [f"h.{layer}.mlp.c_fc"], [f"h.{layer}.mlp.act"], **attributes)
            node.CopyFrom(new)

    return on_graph(edit)


def only_input(output: str, kept: int) -> Spoil:
    """A sum of two that hands one of them on."""

    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        node.op_type = "Identity"
        node.input[:] = [node.input[kept]]

    return on_graph(edit)


def without_bias(output: str) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        if node.op_type == "LayerNormalization":
            del node.input[2:]
            return
        node.op_type = "Identity"
        node.input[:] = [name for name in node.input if not name.endswith(".bias")]

    return on_graph(edit)


def shifted(output: str, by: int, last: int) -> Spoil:
    """An embedding's ids are off, but for those that would be outside."""

    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        put_before(
            graph, node,
            helper.make_node("Add", [node.input[1], "by"], ["moved"]),
            helper.make_node("Min", ["moved", "highest"], ["below"]),
            helper.make_node("Max", ["below", "zero"], ["ids"]),
            by=by, highest=last, zero=0,
        )  # fmt: skip
        node_of(graph, output).input[1] = "ids"

    return on_graph(edit)


def positions_from(*new: NodeProto, **constants: Any) -> Spoil:
    def edit(graph: GraphProto) -> None:
        put_before(graph, node_of(graph, "wpe"), *new, **constants)
        node_of(graph, "wpe").input[1] = "ids"

    return on_graph(edit)


def queries(graph: GraphProto) -> NodeProto:
    return nodes_of(graph, "LessOrEqual")[0]


def mask_with_query(op_type: str, by: int) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node = queries(graph)
        put_before(graph, node, helper.make_node(op_type, [node.input[1], "by"], ["query"]), by=by)
        queries(graph).input[1] = "query"

    return on_graph(edit)


def no_causal_mask(graph: GraphProto) -> None:
    queries(graph).input[1] = queries(graph).input[0]


def no_padding_mask(graph: GraphProto) -> None:
    node = nodes_of(graph, "And")[0]
    kept = queries(graph).output[0]
    node.input[:] = [kept, kept]


def first_is_hidden(graph: GraphProto) -> None:
    node = nodes_of(graph, "And")[0]
    put_before(
        graph, node,
        helper.make_node("Greater", [queries(graph).input[0], "zero"], ["later"]),
        helper.make_node("And", [node.input[1], "later"], ["token"]),
        zero=0,
    )  # fmt: skip
    nodes_of(graph, "And")[1].input[1] = "token"


def query_counts_from_0(equal_too: bool) -> Spoil:
    """Rows are numbered within what is fed now, as if nothing lay in the cache."""

    def edit(graph: GraphProto) -> None:
        node = queries(graph)
        new = next(n for n in graph.node if n.op_type == "Sub").input[1]
        put_before(
            graph, node,
            helper.make_node("Range", ["zero", new, "one"], ["rows"]),
            helper.make_node("Unsqueeze", ["rows", "axis"], ["query"]),
            zero=0, one=1, axis=[1],
        )  # fmt: skip
        queries(graph).input[1] = "query"
        if equal_too:
            nodes_of(graph, "Equal")[0].input[1] = "query"

    return on_graph(edit)


def head_from(name: str) -> Spoil:
    def edit(graph: GraphProto) -> None:
        nodes_of(graph, "Gemm")[0].input[1] = name

    return on_graph(edit)


def to_half(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float16).astype(np.float32)


def to_bfloat16(weight: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even, on the bits."""
    bits = weight.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def to_float8(weight: np.ndarray) -> np.ndarray:
    """e4m3: four bits of significand, subnormal below 2^-6."""
    unit = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(weight))), -6) - 3)
    return (np.round(weight / unit) * unit).astype(np.float32)
