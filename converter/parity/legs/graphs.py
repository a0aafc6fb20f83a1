"""Walk through ONNX graphs and those inside them, and write nodes in the place of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper


def branches(node: NodeProto) -> list[GraphProto]:
    """Return the graphs inside a node: the branches of an If, the body of a Loop."""
    return [
        graph
        for attribute in node.attribute
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
        for graph in ([attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs)
    ]


def graphs_of(graph: GraphProto) -> list[GraphProto]:
    """Return a graph and all graphs inside it."""
    found = [graph]
    for each in found:
        found.extend(inner for node in each.node for inner in branches(node))
    return found


def nodes_of(graphs: Iterable[GraphProto]) -> Iterator[NodeProto]:
    """Yield every node, those of branches too."""
    for graph in graphs:
        for each in graphs_of(graph):
            yield from each.node


class Writer:
    """Writes nodes in the place of one: ``write.Mul(x, 0.5)`` adds a node and returns its output's name."""

    def __init__(self, nodes: list[NodeProto], prefix: str) -> None:
        self.nodes, self.prefix = nodes, prefix

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        return lambda *inputs: self.node(op_type, *inputs)

    def node(self, op_type: str, *inputs: str | float, **attributes: Any) -> str:
        """Add a node and return the name of its output. Numbers among the inputs become float64 constants."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        return self._add(helper.make_node(op_type, names, [""], **attributes))

    def constant(self, value: float | np.ndarray) -> str:
        """Add a constant, a float64 scalar if it is a number, and return its name."""
        array = value if isinstance(value, np.ndarray) else np.array(float(value))
        return self._add(helper.make_node("Constant", [], [""], value=numpy_helper.from_array(array)))

    def _add(self, node: NodeProto) -> str:
        node.output[0] = f"{self.prefix}/float64/{len(self.nodes)}"
        self.nodes.append(node)
        return node.output[0]


def rewrite(graph: GraphProto, spelled: Callable[[Writer, NodeProto], list[str] | None]) -> None:
    """Replace nodes of a graph, but not of the graphs inside it.

    Args:
        spelled: writes what stands for a node; returns the names of its outputs, empty for one that is not computed, or
            None for a node that stays.
    """
    nodes: list[NodeProto] = []
    for node in graph.node:
        outputs = spelled(Writer(nodes, node.output[0]), node)
        if outputs is None:
            nodes.append(node)
        else:
            pairs = [(new, old) for new, old in zip(outputs, node.output, strict=False) if new and old]
            nodes.extend(helper.make_node("Identity", [new], [old]) for new, old in pairs)
    del graph.node[:]
    graph.node.extend(nodes)
