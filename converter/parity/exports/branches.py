"""Take graphs apart that choose between branches, such as Optimum's merged decoder, and those with functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from converter import onnx_file
from converter.onnx_file import nodes_of
from converter.parity.legs.widen import expose
from converter.runtime.ort import is_operator

THEN, ELSE = "then_branch", "else_branch"
SIDES = {True: THEN, False: ELSE}

TAKEN = "/taken"  # what is added to a condition's name for the output that watches it
NOT_RUN = -1  # what such an output gives where the If is in a branch that does not run; else 0 or 1


def read_model(file: Path, as_run: bool = False) -> onnx.ModelProto:
    """Read a graph without its weights. Its own functions become nodes, so that every operation can be seen.

    Args:
        as_run: leave out each function that ONNX Runtime does not use, as it has an operator of that name itself.
            Otherwise the function stands for the operator, which often has no float64.
    """
    model = onnx_file.read(file)
    if not model.functions:
        return model
    given = _inputs_given(model)
    kept = [
        each
        for each in model.functions
        if given.get((each.domain, each.name), 0) <= len(each.input)
        and not (as_run and is_operator(each.domain, each.name))
    ]
    copies = [FunctionProto.FromString(each.SerializeToString()) for each in kept]
    del model.functions[:]
    model.functions.extend(copies)
    return inliner.inline_local_functions(model) if copies else model


def _inputs_given(model: onnx.ModelProto) -> dict[tuple[str, str], int]:
    """Return the most inputs that a node gives to each operator. One that gets more than its function has is the
    runtime's: ONNX Runtime's fusions write such nodes into files that explain the operator by a function.
    """
    given: dict[tuple[str, str], int] = {}
    inside = [node for function in model.functions for node in function.node]
    for node in (*nodes_of([model.graph]), *inside):
        key = node.domain, node.op_type
        given[key] = max(given.get(key, 0), len(node.input))
    return given


@dataclass(frozen=True)
class Side:
    """One side of an If.

    Attributes:
        condition: the value that decides.
        taken: whether this is the side for true.
        decided: which sides must run, so that this one does: by condition, with those of the Ifs around it.
    """

    condition: str
    taken: bool
    decided: Mapping[str, bool]

    def __str__(self) -> str:
        return f"the branch for {self.condition} being {str(self.taken).lower()}"


def sides_of(graph: GraphProto, decided: Mapping[str, bool] | None = None) -> Iterator[Side]:
    """Yield both sides of each If of a graph, those in branches too."""
    for node in graph.node:
        if node.op_type == "If":
            for taken in SIDES:
                to_this = {**(decided or {}), node.input[0]: taken}
                yield Side(node.input[0], taken, to_this)
                yield from sides_of(branch_of(node, taken), to_this)


def branch_of(node: NodeProto, taken: bool) -> GraphProto:
    """Return the graph of one side of an If."""
    return next(attribute.g for attribute in node.attribute if attribute.name == SIDES[taken])


def watch(graph: GraphProto) -> tuple[str, ...]:
    """Make every condition an output of a graph; returns the names of these outputs.

    Each is the condition's name and ``TAKEN``. It gives 1 for true, 0 for false, and ``NOT_RUN``.
    """
    names = tuple(dict.fromkeys(_hoist(graph)))
    expose(names, graph)
    return names


def _hoist(graph: GraphProto) -> list[str]:
    """Add a node for each condition, and an output to each If for those inside it; returns the names of the values."""
    names: list[str] = []
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "If":
            name = f"{node.input[0]}{TAKEN}"
            if name not in names:
                nodes += _as_number(node.input[0], name)
                names.append(name)
            names += _hoist_from(node)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return names


def _hoist_from(node: NodeProto) -> list[str]:
    """Give an If an output for each condition inside it."""
    inside = {taken: _hoist(branch_of(node, taken)) for taken in SIDES}
    outer: list[str] = []
    for taken, names in inside.items():
        for name in names:
            for side in SIDES:
                branch, inner = branch_of(node, side), f"{name}/{str(side).lower()}"
                if side is taken:
                    branch.node.append(helper.make_node("Identity", [name], [inner]))
                else:
                    constant = numpy_helper.from_array(np.array([NOT_RUN]))
                    branch.node.append(helper.make_node("Constant", [], [inner], value=constant))
                branch.output.append(helper.make_tensor_value_info(inner, TensorProto.INT64, [1]))
            outer.append(f"{name}/out")
            node.output.append(outer[-1])
    return outer


def _as_number(condition: str, name: str) -> list[NodeProto]:
    """Return nodes that give a condition as ``[1]`` int64."""
    shape = helper.make_node("Constant", [], [f"{name}/shape"], value=numpy_helper.from_array(np.array([1])))
    cast = helper.make_node("Cast", [condition], [f"{name}/number"], to=TensorProto.INT64)
    return [shape, cast, helper.make_node("Reshape", [f"{name}/number", f"{name}/shape"], [name])]


def seen_in(values: Mapping[str, np.ndarray]) -> dict[str, bool]:
    """Return what the conditions were, by their names, from what the outputs of ``watch`` gave in one run."""
    found = {name.partition(TAKEN)[0]: int(value[0]) for name, value in values.items() if TAKEN in name}
    return {name: bool(value) for name, value in found.items() if value != NOT_RUN}


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
        branch = branch_of(node, decided[node.input[0]])
        take_branches(branch, decided)
        held = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(tensor for tensor in branch.initializer if tensor.name not in held)
        nodes.extend(branch.node)
        pairs = [(inner.name, outer) for inner, outer in zip(branch.output, node.output, strict=True)]
        nodes.extend(helper.make_node("Identity", [inner], [outer]) for inner, outer in pairs if inner != outer)
    del graph.node[:]
    graph.node.extend(nodes)


def is_constant(graph: GraphProto, condition: str) -> bool:
    """Tell whether a condition can have one value only, because the file holds it."""
    constants = [node.output[0] for node in graph.node if node.op_type == "Constant"]
    return condition in constants or any(tensor.name == condition for tensor in graph.initializer)
