"""Seed defects into the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

from converter.parity.seeded.mutation import Apply, Copy
from reference.config import GPT2Config


def on_nodes(edit: Callable[[NodeProto, GPT2Config], None], everywhere: bool, *tails: str) -> Apply:
    """Change the nodes whose output has one of these names, in all layers or in the middle one."""

    def apply(copy: Copy) -> None:
        layers = range(copy.config.n_layer) if everywhere else [copy.layer]
        names = {tail.format(i=i) for i in layers for tail in tails}

        def change(graph: GraphProto) -> None:
            for node in graph.node:
                if names & set(node.output):
                    edit(node, copy.config)

        copy.edit_graph(change)

    return apply


def attribute(node: NodeProto, name: str) -> AttributeProto:
    """Return an attribute of a node."""
    return next(a for a in node.attribute if a.name == name)


def activation(op_type: str) -> Callable[[NodeProto, GPT2Config], None]:
    """Use another operator as activation."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        node.op_type = op_type
        del node.attribute[:]

    return edit


def epsilon(factor: float) -> Callable[[NodeProto, GPT2Config], None]:
    """Multiply the epsilon."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        attribute(node, "epsilon").f *= factor

    return edit


def scale(change: Callable[[float, int, GPT2Config], float]) -> Callable[[NodeProto, GPT2Config], None]:
    """Change the attention scale: ``change`` takes the old one, the layer and the config."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        held = attribute(node, "scale")
        held.f = change(held.f, int(node.output[0].split(".")[1]), config)

    return edit


def swap_inputs(first: int, second: int) -> Callable[[NodeProto, GPT2Config], None]:
    """Swap two inputs."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        node.input[first], node.input[second] = node.input[second], node.input[first]

    return edit


def swap_outputs(node: NodeProto, config: GPT2Config) -> None:
    """Swap the second and the third output."""
    node.output[1], node.output[2] = node.output[2], node.output[1]


def to_identity(node: NodeProto, config: GPT2Config) -> None:
    """Turn a sum into its first input."""
    node.op_type = "Identity"
    del node.input[1:]


def swap_layers(copy: Copy) -> None:
    """Swap the first and the last layer."""
    first, last = "h.0.", f"h.{copy.config.n_layer - 1}."

    def swap(graph: GraphProto) -> None:
        for node in graph.node:
            for at, name in enumerate(node.input):
                if name.endswith((".weight", ".bias")):
                    new = last if name.startswith(first) else first if name.startswith(last) else None
                    node.input[at] = name if new is None else new + name.split(".", 2)[2]

    copy.edit_graph(swap)


def insert(
    before: str, *nodes: tuple[str, list[str], str], constants: dict[str, int] | None = None
) -> Callable[[GraphProto], None]:
    """Insert nodes before the node that gives ``before``; ``constants`` become initializers."""

    def edit(graph: GraphProto) -> None:
        at = next(i for i, node in enumerate(graph.node) if before in node.output)
        for number, (op_type, inputs, output) in enumerate(nodes):
            graph.node.insert(at + number, helper.make_node(op_type, inputs, [output]))
        for name, value in (constants or {}).items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))

    return edit


def shift_positions(copy: Copy) -> None:
    """Add 1 to every position but the last."""

    def edit(graph: GraphProto) -> None:
        insert(
            "wpe",
            ("Add", ["position_ids", "shift"], "shifted"),
            ("Min", ["shifted", "last_position"], "positions"),
            constants={"shift": 1, "last_position": copy.config.n_positions - 1},
        )(graph)
        replace_input(graph, "wpe", "position_ids", "positions")

    copy.edit_graph(edit)


def count_padding(copy: Copy) -> None:
    """Count positions over the padding too, by using the positions that the mask compares."""

    def edit(graph: GraphProto) -> None:
        queries = [node.output[0] for node in graph.node if node.op_type == "Range"][-1]
        insert("wpe", ("Shape", ["input_ids"], "ids_shape"), ("Expand", [queries, "ids_shape"], "positions"))(graph)
        replace_input(graph, "wpe", "position_ids", "positions")

    copy.edit_graph(edit)


def replace_input(graph: GraphProto, output: str, old: str, new: str) -> None:
    """Make the node of ``output`` read another value."""
    node = next(node for node in graph.node if output in node.output)
    node.input[:] = [new if name == old else name for name in node.input]


def look_ahead(copy: Copy) -> None:
    """Let every position see the one after it."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LessOrEqual")
        output = node.output[0]
        insert(output, ("Add", [node.input[1], "shift"], "ahead"), constants={"shift": 1})(graph)
        replace_input(graph, output, node.input[1], "ahead")

    copy.edit_graph(edit)


def forget_padding(copy: Copy) -> None:
    """Drop the padding from the mask; it stays causal."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "And")
        causal = next(node.output[0] for node in graph.node if node.op_type == "LessOrEqual")
        node.input[:] = [causal, causal]

    copy.edit_graph(edit)


def head_reads(name: str) -> Apply:
    """Make the output head use another initializer."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Gemm")
        node.input[1] = name

    return lambda copy: copy.edit_graph(edit)


def when(condition: Callable[[GraphProto], str], wrong: Callable[[GraphProto, str], None]) -> Apply:
    """Make the graph wrong only if a condition holds. The condition is a boolean value that is added to the graph."""
    return lambda copy: copy.edit_graph(lambda graph: wrong(graph, condition(graph)))


def kept_is(number: int) -> Callable[[GraphProto], str]:
    """Return a condition that holds if this many logits are asked for."""

    def condition(graph: GraphProto) -> str:
        return _compared(graph, "Equal", "num_logits_to_keep", number)

    return condition


def size_is(op_type: str, axis: int, number: int) -> Callable[[GraphProto], str]:
    """Return a condition that holds if ``op_type`` does, between a dimension of ``input_ids`` and a number."""

    def condition(graph: GraphProto) -> str:
        shape = helper.make_node("Shape", ["input_ids"], ["ids_size"], start=axis, end=axis + 1)
        graph.node.insert(0, shape)
        return _compared(graph, op_type, "ids_size", number, at=1)

    return condition


def _compared(graph: GraphProto, op_type: str, value: str, number: int, at: int = 0) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), "seeded_number"))
    graph.node.insert(at, helper.make_node(op_type, [value, "seeded_number"], ["seeded_condition"]))
    return "seeded_condition"


def larger_logits(graph: GraphProto, condition: str) -> None:
    """Make the logits a tenth too large if the condition holds."""
    node = next(node for node in graph.node if "logits" in node.output)
    node.output[:] = ["right_logits"]
    graph.initializer.append(numpy_helper.from_array(np.array(1.1, np.float32), "seeded_factor"))
    graph.node.append(helper.make_node("Mul", ["right_logits", "seeded_factor"], ["wrong_logits"]))
    graph.node.append(helper.make_node("Where", [condition, "wrong_logits", "right_logits"], ["logits"]))


def no_padding(graph: GraphProto, condition: str) -> None:
    """Treat padding as text if the condition holds."""
    node = next(node for node in graph.node if node.op_type == "And")
    causal = next(node.output[0] for node in graph.node if node.op_type == "LessOrEqual")
    at = list(graph.node).index(node)
    padding = next(name for name in node.input if name != causal)
    graph.node.insert(at, helper.make_node("Or", [padding, condition], ["seen"]))
    replace_input(graph, node.output[0], padding, "seen")
