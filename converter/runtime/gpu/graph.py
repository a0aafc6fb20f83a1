"""The shipped float16 graph for a GPU: its cache grows where it lies, and each step leaves behind what the next is fed.

Beside the attention of ``converter.runtime.in_place``, without a bias, which no fast kernel of a GPU takes:

- A residual sum and the normalisation behind it are one operator, with the bias of the projection before.
- ``kept`` names the positions whose logits are wanted, since rows end at different ones.
- The likeliest tokens, and the positions behind them, are outputs. So a step needs nothing from the processor, and all
  of its kernels can be launched at once, as a CUDA graph.

No shape is computed on the processor, as a CUDA graph may contain nothing of it.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html (CUDA graphs); ContribOperators.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from converter.runtime.in_place import LENGTHS, MICROSOFT, PLAIN, Operator, needed, replace, with_buffers

# Softmax is float32 in the kernels, whatever is asked for.
ON_GPU = Operator(TensorProto.FLOAT16, PLAIN | {"softmax_precision"}, LENGTHS)

KEEP, KEPT = "num_logits_to_keep", "kept"
SKIP_NORMALIZATION = "SkipLayerNormalization"
STATE = ("input_ids", "position_ids", "seqlens_k")  # what a step leaves behind for the next
NEXT = tuple(f"next.{name}" for name in STATE)
GPU_FED = (*STATE, KEPT, "total_sequence_length")
ONE, ONE_LENGTH, FLAT = "one", "one_length", "flat"


def can_be_captured(file: Path) -> bool:
    """Tell whether the graph of ``file`` can be rewritten so."""
    return rewritten(file) is not None


def rewritten(file: Path) -> bytes | None:
    """Return the graph of ``file`` for a GPU; None if that cannot be: see ``converter.runtime.in_place``."""
    model = with_buffers(file, ON_GPU)
    if model is None:
        return None
    graph = model.graph
    if not _keep_positions(graph):
        return None
    _join_residuals(graph)
    _leave_behind(graph)
    replace(graph.node, needed(graph.node, [value.name for value in graph.output]))
    return model.SerializeToString()


def _keep_positions(graph: GraphProto) -> bool:
    """Let ``kept`` say which positions of all rows, one behind the other, get logits ``[kept, vocab_size]``."""
    made = {output: node for node in graph.node for output in node.output}
    slices = [node for node in graph.node if node.op_type == "Slice"]
    last = made["logits"]
    if len(slices) != 1 or last.op_type != "Reshape":
        return False
    hidden, (kept,) = slices[0].input[0], slices[0].output
    n_embd = _weights(graph)["ln_f.weight"].dims[0]
    graph.initializer.append(numpy_helper.from_array(np.array([-1, n_embd]), FLAT))
    rows = [
        helper.make_node("Reshape", [hidden, FLAT], [f"{hidden}.rows"]),
        helper.make_node("Gather", [f"{hidden}.rows", KEPT], [kept]),
    ]
    made[last.input[0]].output[0] = "logits"
    nodes = [node for node in graph.node if node is not last]
    at = nodes.index(slices[0])
    replace(graph.node, [*nodes[:at], *rows, *nodes[at + 1 :]])
    inputs = [value for value in graph.input if value.name != KEEP]
    replace(graph.input, [*inputs, helper.make_tensor_value_info(KEPT, TensorProto.INT64, [KEPT])])
    defaults = [value for value in graph.initializer if value.name != KEEP]
    replace(graph.initializer, defaults)
    dimensions = graph.output[0].type.tensor_type.shape.dim
    dimensions[0].dim_param = KEPT
    del dimensions[1]
    return True


def _join_residuals(graph: GraphProto) -> None:
    """Make a sum and the normalisation behind it one operator, with the bias that is part of the sum."""
    made = {output: node for node in graph.node for output in node.output}
    weights = _weights(graph)
    joined = dict[str, NodeProto]()
    for node in graph.node:
        total = made.get(node.input[0])
        if node.op_type == "LayerNormalization" and total is not None and total.op_type == "Add":
            joined[total.output[0]] = _skip_normalization(total, node, made, weights)
    gone = {output for node in joined.values() for output in node.output}
    kept = (joined.get(node.output[0], node) for node in graph.node)
    replace(graph.node, [node for node in kept if node.op_type == SKIP_NORMALIZATION or not gone & set(node.output)])


def _skip_normalization(
    total: NodeProto, norm: NodeProto, made: dict[str, NodeProto], weights: dict[str, TensorProto]
) -> NodeProto:
    """Return one node for a sum and its normalisation. It returns both."""
    residual, added = total.input
    bias = list[str]()
    before = made.get(added)
    if before is not None and before.op_type == "Add" and before.input[1] in weights:
        added, bias = before.input[0], [before.input[1]]
    epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    inputs = [added, residual, *norm.input[1:], *bias]
    outputs = [norm.output[0], "", "", total.output[0]]
    return helper.make_node(SKIP_NORMALIZATION, inputs, outputs, name=norm.name, domain=MICROSOFT, epsilon=epsilon)


def _leave_behind(graph: GraphProto) -> None:
    """Return the likeliest tokens, and the positions and lengths of the step that follows."""
    graph.initializer.append(numpy_helper.from_array(np.array([1]), ONE))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int32), ONE_LENGTH))
    ids, positions, lengths = NEXT
    graph.node.append(helper.make_node("ArgMax", ["logits"], [ids], axis=-1, keepdims=1))
    graph.node.append(helper.make_node("Add", ["position_ids", ONE], [positions]))
    graph.node.append(helper.make_node("Add", ["seqlens_k", ONE_LENGTH], [lengths]))
    graph.output.append(helper.make_tensor_value_info(ids, TensorProto.INT64, [KEPT, 1]))
    tokens = ["batch_size", "sequence_length"]
    graph.output.append(helper.make_tensor_value_info(positions, TensorProto.INT64, tokens))
    graph.output.append(helper.make_tensor_value_info(lengths, TensorProto.INT32, ["batch_size"]))


def _weights(graph: GraphProto) -> dict[str, TensorProto]:
    return {weight.name: weight for weight in graph.initializer}
