"""The shipped graph with a cache that grows where it lies, for ONNX Runtime on a CPU.

The standard operator Attention returns a new, longer cache at every step: of a long text, or of many, copying it takes
longer than reading the weights. ONNX Runtime's own GroupQueryAttention writes new keys and values into the buffers that
it is given. So each Attention becomes one, before the graph is opened: weights, names and everything else are the
shipped graph's, and the folder is left alone, as other clients know no such operator.

What stays outside: causality is the operator's own, and padding comes as ``attention_bias``, since its ``seqlens_k``
knows none on the left (it counts it among the tokens). https://github.com/microsoft/onnxruntime, ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from converter import onnx_file
from converter.runtime.decoder import scale_name
from converter.version import PRODUCER

ATTENTION, ATTENTION_IN_PLACE, MICROSOFT = "Attention", "GroupQueryAttention", "com.microsoft"
MASK = "attention_mask"
HEAD_DIM_MULTIPLE = 8  # the operator refuses others
PACKED = ("", "")  # where keys and values would be, if they did not lie behind the queries
NO_ROTATION = ("", "", "")  # cos_cache, sin_cache, position_ids


@dataclass(frozen=True)
class Operator:
    """What GroupQueryAttention takes on one kind of device.

    Attributes:
        element: the type of its cache.
        plain: the attributes of an Attention that means no more than it can.
        given: the inputs in place of the attention mask, the bias last if it takes one.
    """

    element: int
    plain: frozenset[str]
    given: Mapping[str, tuple[int, Sequence[str | int]]]


PLAIN = frozenset({"q_num_heads", "kv_num_heads", "scale"})
LENGTHS: dict[str, tuple[int, Sequence[str | int]]] = {
    "seqlens_k": (TensorProto.INT32, ["batch_size"]),
    "total_sequence_length": (TensorProto.INT32, []),
}
BIAS = "attention_bias"
ON_CPU = Operator(
    TensorProto.FLOAT,
    PLAIN,
    LENGTHS | {BIAS: (TensorProto.FLOAT, ["bias_batch", 1, "sequence_length", "total_sequence_length"])},
)

PASTS = slice(3, 5)  # where keys and values are among the inputs of GroupQueryAttention
EIGHT_BITS = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}

CACHE_DIMENSIONS = ("batch_size", "n_head", "slots", "head_dim")


def can_be_rewritten(file: Path) -> bool:
    """Tell whether the graph of ``file`` can run with its cache in place."""
    return with_buffers(file, ON_CPU) is not None


def rewritten(file: Path, eight_bits: bool = False) -> bytes | None:
    """Return the graph of ``file`` with its cache in place; None if that cannot be, or if it is not gpt2onnx's own.

    Its weights stay where they are, relative to the file's folder.

    Args:
        eight_bits: let the cache be int8, with scales as inputs: see ``converter.runtime.eight_bits``.
    """
    model = with_buffers(file, ON_CPU)
    if model is None:
        return None
    _allow_no_logits(model.graph)
    if eight_bits:
        _round_cache(model.graph)
    return model.SerializeToString()


def with_buffers(file: Path, operator: Operator) -> ModelProto | None:
    """Return the model of ``file`` with its cache in place; None if that cannot be, or if it is not gpt2onnx's own."""
    try:
        model = onnx_file.read(file)
    except (DecodeError, OSError):
        return None  # ONNX Runtime says what is wrong with it
    graph = model.graph
    attentions = [node for node in graph.node if node.op_type == ATTENTION]
    cache = _cache(graph)
    # In a graph of somebody else's the mask may mean more than which tokens are padding.
    outputs = ["logits", *(value.name.replace("past_key_values.", "present.") for value in cache)]
    ours = model.producer_name == PRODUCER and 2 * len(attentions) == len(cache)
    ours = ours and [value.name for value in graph.output] == outputs and all(map(_is_cache, graph.output[1:]))
    can = all(_can_be_in_place(*each, operator) for each in zip(attentions, cache[::2], strict=False))
    if not (ours and attentions and can):
        return None
    whole = {tuple(node.output): node.input[0] for node in graph.node if node.op_type == "Split"}
    nodes = [_in_place(node, whole, operator) if node.op_type == ATTENTION else node for node in graph.node]
    nodes = needed(nodes, [value.name for value in graph.output])
    if any(map(_uses_mask, nodes)):
        return None
    inputs = [value for value in graph.input if value.name != MASK]
    inputs += [helper.make_tensor_value_info(name, *what) for name, what in operator.given.items()]
    replace(graph.node, nodes)
    replace(graph.input, inputs)
    for value in (*cache, *graph.output[1:]):
        value.type.tensor_type.shape.dim[2].dim_param = "slots"
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def _cache(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the inputs that are the cache: keys and values of each layer."""
    return [value for value in graph.input if value.name.startswith("past_key_values.")]


def _can_be_in_place(attention: NodeProto, keys: ValueInfoProto, operator: Operator) -> bool:
    """Tell whether GroupQueryAttention can do all that the operator does, on a cache of this type and shape."""
    cache = keys.type.tensor_type
    plain = {attribute.name for attribute in attention.attribute if attribute.type} == operator.plain
    if not plain or not _is_cache(keys):
        return False
    return cache.elem_type == operator.element and cache.shape.dim[3].dim_value % HEAD_DIM_MULTIPLE == 0


def _is_cache(value: ValueInfoProto) -> bool:
    """Tell whether a value has the four dimensions of a cache."""
    return len(value.type.tensor_type.shape.dim) == len(CACHE_DIMENSIONS)


def _in_place(attention: NodeProto, whole: Mapping[tuple[str, ...], str], operator: Operator) -> NodeProto:
    """Replace an Attention. Queries, keys and values go in together if they come from one projection.

    Args:
        attention: the node.
        whole: the outputs of each Split, and what is split.
        operator: what it becomes.
    """
    projected = tuple(attention.input[:3])
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in attention.attribute}
    return helper.make_node(
        ATTENTION_IN_PLACE,
        [
            *((whole[projected], *PACKED) if projected in whole else projected),
            *attention.input[4:6],
            *LENGTHS,
            *NO_ROTATION,
            *(operator.given.keys() - LENGTHS),
        ],
        list(attention.output),
        name=attention.name,
        domain=MICROSOFT,
        num_heads=values["q_num_heads"],
        kv_num_heads=values["kv_num_heads"],
        scale=values["scale"],
    )


def _round_cache(graph: GraphProto) -> None:
    """Let the cache be int8. Each key and value has a scale for every channel."""
    for value in (*_cache(graph), *graph.output[1:]):
        value.type.tensor_type.elem_type = TensorProto.INT8
    for node in graph.node:
        if node.op_type == ATTENTION_IN_PLACE:
            pasts = node.input[PASTS]
            scales = [scale_name(past) for past in pasts]
            node.input.extend(["", *scales])  # the first is head_sink
            node.attribute.extend(helper.make_attribute(*each) for each in EIGHT_BITS.items())
            graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n_embd"]) for name in scales)


def _allow_no_logits(graph: GraphProto) -> None:
    """Let the logits have no rows: by itself, a Reshape takes a 0 for the size that was there before."""
    for node in graph.node:
        if node.op_type == "Reshape" and graph.output[0].name in node.output:
            node.attribute.append(helper.make_attribute("allowzero", 1))


def needed(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return the nodes that an output depends on. Those of the mask are not among them any more."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _uses_mask(node: NodeProto) -> bool:
    """Tell whether a node reads the mask, which is removed, or may read it in a subgraph."""
    subgraphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return MASK in node.input or any(attribute.type in subgraphs for attribute in node.attribute)


def replace(field: Any, values: Sequence[Any]) -> None:
    """Set the elements of a repeated field."""
    del field[:]
    field.extend(values)
