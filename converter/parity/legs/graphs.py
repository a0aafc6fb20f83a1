"""Write nodes of ONNX graphs in the place of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper


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
