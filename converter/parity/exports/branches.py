"""Take graphs apart that choose between branches, such as Optimum's merged decoder, and those with functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, helper, inliner

THEN, ELSE = "then_branch", "else_branch"


def read_model(file: Path) -> onnx.ModelProto:
    """Read a graph without its weights. Its own functions become nodes, so that every operation can be seen."""
    model = onnx.load(file, load_external_data=False)
    return inliner.inline_local_functions(model) if model.functions else model


def conditions_of(graph: GraphProto) -> tuple[str, ...]:
    """Return the values that decide which branches of a graph run."""
    return tuple(dict.fromkeys(node.input[0] for node in graph.node if node.op_type == "If"))


def take_branches(graph: GraphProto, decided: Mapping[str, bool]) -> None:
    """Replace each If by the nodes of the branch that runs, as far as it is known which.

    Args:
        decided: which branch runs, by the name of the condition.
    """
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "If" or node.input[0] not in decided:
            nodes.append(node)
            continue
        name = THEN if decided[node.input[0]] else ELSE
        branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
        held = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(tensor for tensor in branch.initializer if tensor.name not in held)
        take_branches(branch, decided)
        nodes.extend(branch.node)
        pairs = [(inner.name, outer) for inner, outer in zip(branch.output, node.output, strict=True)]
        nodes.extend(helper.make_node("Identity", [inner], [outer]) for inner, outer in pairs if inner != outer)
    del graph.node[:]
    graph.node.extend(nodes)


def never_taken(graph: GraphProto, seen: Mapping[str, set[bool]]) -> list[str]:
    """Return a sentence for each branch that no case ran.

    Args:
        seen: the values that each condition had.
    """
    return [
        f"the branch for {name} being {str(side).lower()} was never taken"
        for name in conditions_of(graph)
        for side in (True, False)
        if side not in seen.get(name, set())
    ]
