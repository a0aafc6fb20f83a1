"""Turns our own graphs into what other exporters write: other names, other caches, other layouts of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

Edit = Callable[[GraphProto], None]

CACHE = "past_key_values."


def disguise(folder: Path, out: Path, *edits: Edit) -> Path:
    """Write the graph of a model folder to a file, with its weights inside, after some edits; returns the file."""
    model = onnx.load(folder / "onnx" / "model.onnx")
    for edit in (without_keep, *edits):
        edit(model.graph)
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name = "somebody"
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out)
    return out


def without_keep(graph: GraphProto) -> None:
    """Only gpt2onnx has the input ``num_logits_to_keep``; without it all logits are returned."""
    _keep(graph.input, lambda value: value.name != "num_logits_to_keep")


def last_only(graph: GraphProto) -> None:
    """Return the logits of the last token only."""
    keep = next(tensor for tensor in graph.initializer if tensor.name == "num_logits_to_keep")
    keep.CopyFrom(numpy_helper.from_array(np.array(1), keep.name))
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def fixed(value: str, axis: int, size: int) -> Edit:
    """Return an edit that fixes a dimension of an input; ``value`` is how its name begins."""

    def edit(graph: GraphProto) -> None:
        for each in graph.input:
            if each.name.startswith(value):
                each.type.tensor_type.shape.dim[axis].dim_value = size

    return edit


def renamed(graph: GraphProto) -> None:
    """Give every weight and every value inside a name that says nothing."""
    outer = {value.name for value in (*graph.input, *graph.output)}
    names = {tensor.name: f"onnx::W_{at}" for at, tensor in enumerate(graph.initializer)}
    values = [name for node in graph.node for name in node.output if name not in outer]
    names |= {name: f"/v_{at}" for at, name in enumerate(values)}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for at, node in enumerate(graph.node):
        node.name, node.doc_string = f"n_{at}", ""
        del node.metadata_props[:]
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def called(**names: str) -> Edit:
    """Return an edit that gives inputs and outputs other names."""

    def edit(graph: GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.name = names.get(value.name, value.name)
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]

    return edit


def int32(graph: GraphProto) -> None:
    """Take int32 ids, mask and positions."""
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.INT64:
            inner = f"{value.name}/int64"
            _use(graph, value.name, inner)
            graph.node.insert(0, helper.make_node("Cast", [value.name], [inner], to=TensorProto.INT64))
            value.type.tensor_type.elem_type = TensorProto.INT32


def joined_cache(graph: GraphProto) -> None:
    """Take and give keys and values of a layer in one value, ``[2, batch, n_head, slots, head_dim]``."""
    layers = sum(value.name.startswith(CACHE) for value in graph.input) // 2
    graph.initializer.extend(numpy_helper.from_array(np.array(at), f"part_{at}") for at in (0, 1))
    axes = numpy_helper.from_array(np.array([0]), "first_axis")
    graph.initializer.append(axes)
    kept = [value for value in graph.input if not value.name.startswith(CACHE)]
    given = [value for value in graph.output if not value.name.startswith("present.")]
    for layer in range(layers):
        heads, width = _cache_shape(graph)
        parts = [f"{layer}.{part}" for part in ("key", "value")]
        for values, name, slots in ((kept, f"past_{layer}", "past"), (given, f"present_{layer}", "all")):
            shape = [2, "batch_size", heads, slots, width]
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        for at, part in enumerate(parts):
            graph.node.insert(0, helper.make_node("Gather", [f"past_{layer}", f"part_{at}"], [f"{CACHE}{part}"]))
            graph.node.append(helper.make_node("Unsqueeze", [f"present.{part}", "first_axis"], [f"{part}/1"]))
        graph.node.append(helper.make_node("Concat", [f"{part}/1" for part in parts], [f"present_{layer}"], axis=0))
    _set(graph.input, kept)
    _set(graph.output, given)


def transposed_weights(graph: GraphProto) -> None:
    """Keep the weights of all projections transposed, and transpose them in the graph."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in initializers:
            tensor = initializers[node.input[1]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), tensor.name))
            nodes.append(helper.make_node("Transpose", [tensor.name], [f"{tensor.name}/T"], perm=[1, 0]))
            node.input[1] = f"{tensor.name}/T"
        nodes.append(node)
    _set(graph.node, nodes)


def split_projections(graph: GraphProto) -> None:
    """Keep queries', keys' and values' weights apart, and join them in the graph."""
    for name in [tensor.name for tensor in graph.initializer if ".attn.c_attn." in tensor.name]:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        thirds = np.split(numpy_helper.to_array(tensor), 3, axis=-1)
        parts = [f"{name}/{part}" for part in "qkv"]
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            numpy_helper.from_array(third.copy(), part) for third, part in zip(thirds, parts, strict=True)
        )
        graph.node.insert(0, helper.make_node("Concat", parts, [name], axis=-1))


def separate_head(graph: GraphProto) -> None:
    """Keep a transposed copy of the embedding for the head, as a trace does."""
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "wte.weight")
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), "lm_head"))
    _set(graph.node, [node for node in graph.node if "logits" not in node.output and "lm_head." not in node.output[0]])
    graph.node.append(helper.make_node("MatMul", ["ln_f", "lm_head"], ["logits"]))


def merged(graph: GraphProto) -> None:
    """Decide by ``use_cache_branch`` which of two branches runs; both are the whole graph."""
    choosing("use_cache_branch")(graph)
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))


def choosing(condition: str, then: Edit = lambda graph: None, otherwise: Edit = lambda graph: None) -> Edit:
    """Return an edit after which a value decides between two branches: the whole graph after one edit or the other.

    Nodes whose names begin with that of the condition compute it, and stay outside.
    """

    def edit(graph: GraphProto) -> None:
        outside = [node for node in graph.node if node.output[0].startswith(condition)]
        nodes = [node for node in graph.node if node not in outside]
        outputs = list(graph.output)
        branches = []
        for which, change in (("then", then), ("else", otherwise)):
            branch = helper.make_graph(nodes, which, [], outputs, list(graph.initializer))
            change(branch)
            known = {tensor.name for tensor in graph.initializer}
            graph.initializer.extend(tensor for tensor in branch.initializer if tensor.name not in known)
            del branch.initializer[:]
            _renamed_inside(branch, {}, f"{condition}/{which}/")
            branches.append(branch)
        names = [value.name for value in outputs]
        choice = helper.make_node("If", [condition], names, then_branch=branches[0], else_branch=branches[1])
        _set(graph.node, [*outside, choice])

    return edit


def _renamed_inside(graph: GraphProto, names: dict[str, str], prefix: str) -> None:
    """Give every value that is computed in a branch a name of its own."""
    names = names | {name: prefix + name for node in graph.node for name in node.output if name}
    for node in graph.node:
        node.name = prefix + node.name if node.name else ""
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _renamed_inside(attribute.g, names, prefix)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def rows_are(number: int, name: str) -> Edit:
    """Compute whether so many rows are fed, under a name."""

    def edit(graph: GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([number]), f"{name}/number"))
        rows = helper.make_node("Shape", ["input_ids"], [f"{name}/rows"], start=0, end=1)
        _first(graph, [rows, helper.make_node("Equal", [f"{name}/rows", f"{name}/number"], [name])])

    return edit


def larger_logits(graph: GraphProto) -> None:
    """Make the logits a tenth too large."""
    node = next(node for node in graph.node if "logits" in node.output)
    node.output[:] = ["right"]
    graph.initializer.append(numpy_helper.from_array(np.array(1.1, np.float32), "larger"))
    graph.node.append(helper.make_node("Mul", ["right", "larger"], ["logits"]))


def without_mask(graph: GraphProto) -> None:
    """Take no attention mask: every token counts."""
    _all_ones(graph)
    _keep(graph.input, lambda value: value.name != "attention_mask")


def ignored_mask(graph: GraphProto) -> None:
    """Take an attention mask, and ignore it: padding counts as tokens do."""
    _use(graph, "attention_mask", "mask/ones")
    one = numpy_helper.from_array(np.array([1]))
    nodes = [
        helper.make_node("Shape", ["attention_mask"], ["mask/shape"]),
        helper.make_node("ConstantOfShape", ["mask/shape"], ["mask/ones"], value=one),
    ]
    _first(graph, nodes)


def own_positions(graph: GraphProto) -> None:
    """Take no positions: count columns, padding too, as transformers does by default."""
    _positions_by_column(graph)
    _keep(graph.input, lambda value: value.name != "position_ids")


def ignored_positions(graph: GraphProto) -> None:
    """Take positions, and ignore them: padding has positions as tokens have."""
    _positions_by_column(graph)


def _positions_by_column(graph: GraphProto) -> None:
    _use(graph, "position_ids", "columns")
    one = numpy_helper.from_array(np.array([1]))
    constants = {"axis_1": np.array(1), "minus_1": np.array(-1), "axes_1": np.array([1]), "to_end": np.array([2**31])}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = [
        helper.make_node("Shape", ["attention_mask"], ["all/shape"]),
        helper.make_node("ConstantOfShape", ["all/shape"], ["all/ones"], value=one),
        helper.make_node("CumSum", ["all/ones", "axis_1"], ["all/count"]),
        helper.make_node("Add", ["all/count", "minus_1"], ["all/columns"]),
        helper.make_node("Shape", ["input_ids"], ["new"], start=1, end=2),
        helper.make_node("Neg", ["new"], ["from"]),
        helper.make_node("Slice", ["all/columns", "from", "to_end", "axes_1"], ["columns"]),
    ]
    _first(graph, nodes)


def _all_ones(graph: GraphProto) -> None:
    """Make a mask of ones, as long as the cache and the new tokens together."""
    _use(graph, "attention_mask", "mask/ones")
    one = numpy_helper.from_array(np.array([1]))
    first = next(value.name for value in graph.input if value.name.startswith(CACHE))
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["rows"], start=0, end=1),
        helper.make_node("Shape", ["input_ids"], ["new"], start=1, end=2),
        helper.make_node("Shape", [first], ["before"], start=2, end=3),
        helper.make_node("Add", ["new", "before"], ["total"]),
        helper.make_node("Concat", ["rows", "total"], ["mask/shape"], axis=0),
        helper.make_node("ConstantOfShape", ["mask/shape"], ["mask/ones"], value=one),
    ]
    _first(graph, nodes)


def _cache_shape(graph: GraphProto) -> tuple[int, int]:
    """The number of heads, and the width of one."""
    dims = next(value for value in graph.input if value.name.startswith(CACHE)).type.tensor_type.shape.dim
    return dims[1].dim_value, dims[3].dim_value


def _first(graph: GraphProto, nodes: list[NodeProto]) -> None:
    _set(graph.node, [*nodes, *graph.node])


def _use(graph: GraphProto, old: str, new: str) -> None:
    """Let every node read another value."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _keep(field: object, wanted: Callable[[onnx.ValueInfoProto], bool]) -> None:
    _set(field, [value for value in field if wanted(value)])  # type: ignore[attr-defined]


def _set(field: object, values: list) -> None:
    copies = []
    for value in values:
        copy = type(value)()
        copy.CopyFrom(value)
        copies.append(copy)
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
