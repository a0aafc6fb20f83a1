"""Build the bytes of an ONNX file from a model's inputs, nodes, outputs and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
from onnx import external_data_helper, helper

from converter.graph import heads, outputs
from converter.graph.attention import KeyValue
from converter.graph.layers import FLOAT32, Layers
from converter.graph.model import GPT2, Body
from converter.graph.module import Parameter, name_values
from converter.version import PRODUCER, VERSION
from reference.config import GPT2Config
from reference.head import LM

MIN_OPSET = 17  # the first with LayerNormalization
MAX_OPSET = 25

GRAPHS_KEPT = 8  # a check writes the graphs of a folder again; without places they are the same

INT64 = ir.DataType.INT64

Locate = Callable[[str], tuple[str, int, int]]  # initializer name → file beside the graph, offset, length in bytes


def build(config: GPT2Config, locate: Locate, opset: int, layers: Layers = FLOAT32, asked: Iterable[str] = ()) -> bytes:
    """Return the serialized ONNX model of a GPT-2 with the config's head. Its weights are in files beside it.

    Args:
        asked: what it returns beside the answer of its head: patterns of ``converter.graph.outputs``.
    """
    model = onnx.ModelProto.FromString(_without_places(config, opset, layers, tuple(asked)))
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            place = dict(zip(("location", "offset", "length"), map(str, locate(tensor.name)), strict=True))
            for entry in tensor.external_data:
                entry.value = place[entry.key]
    return model.SerializeToString(deterministic=True)


@lru_cache(maxsize=GRAPHS_KEPT)
def _without_places(config: GPT2Config, opset: int, layers: Layers, asked: tuple[str, ...]) -> bytes:
    """Return the serialized model with initializers that point nowhere yet."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="gpt2")
    builder = onnxscript.GraphBuilder(graph)
    write = _language_model if config.head == LM else _head_model
    wanted = outputs.select(asked, config)
    model = write(builder, config, layers, wanted)
    name_values(graph, model)
    for name, value in _inside(builder.op, model, wanted, layers).items():
        _output(graph, value, name, ir.DataType.FLOAT, outputs.shape(name, config))
    for node in graph:
        graph.opset_imports.setdefault(node.domain, 1)  # of operators that are not ONNX's own
    for value in model.parameters():
        _make_external(value)
    ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    result = ir.Model(graph, ir_version=ir_version, producer_name=PRODUCER, producer_version=VERSION)
    return ir.to_proto(result).SerializeToString(deterministic=True)


def _language_model(
    builder: onnxscript.GraphBuilder, config: GPT2Config, layers: Layers, wanted: Iterable[str]
) -> Body:
    """Inputs ``input_ids [batch_size, sequence_length]``, ``attention_mask [batch_size, total_sequence_length]``,
    ``position_ids`` (int64) and ``past_key_values.{i}.key|value [batch_size, n_head, past_sequence_length, head_dim]``;
    outputs ``logits`` (float32) and ``present.{i}.key|value``. ``num_logits_to_keep``, a scalar, may be left out: its
    default of 0 asks for the logits of all positions. No dimension of an output has a name that no input has: Optimum
    works out the shapes of its buffers from these, and knows of no ``num_logits_to_keep``.
    """
    graph = builder.graph
    input_ids = builder.input("input_ids", INT64, ["batch_size", "sequence_length"])
    attention_mask = builder.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
    position_ids = builder.input("position_ids", INT64, ["batch_size", "sequence_length"])
    past = _cache(config, layers, "past_key_values", "past_sequence_length")
    graph.inputs.extend(value for pair in past for value in pair)
    keep = builder.input("num_logits_to_keep", const_value=ir.tensor(0, dtype=INT64, name="num_logits_to_keep"))

    model = GPT2(config, layers)
    _return_weights(model, wanted)
    logits, presents = model(builder.op, input_ids, attention_mask, position_ids, keep, past)
    _output(graph, logits, "logits", ir.DataType.FLOAT, ["batch_size", "sequence_length", config.vocab_size])
    for declared, present in zip(_cache(config, layers, "present", "total_sequence_length"), presents, strict=True):
        for like, value in zip(declared, present, strict=True):
            _output(graph, value, like.name, like.dtype, like.shape)
    return model


def _head_model(builder: onnxscript.GraphBuilder, config: GPT2Config, layers: Layers, wanted: Iterable[str]) -> Body:
    """Write a graph with the inputs ``input_ids`` and ``attention_mask`` (int64) of one shape, and the head's outputs
    in float32.
    """
    model = heads.CLASSES[config.head](config, layers)
    _return_weights(model, wanted)
    fed = [builder.input(name, INT64, list(model.takes)) for name in ("input_ids", "attention_mask")]
    answers = model(builder.op, *fed)
    for (name, shape), value in zip(model.gives.items(), answers, strict=True):
        _output(builder.graph, value, name, ir.DataType.FLOAT, [getattr(config, size, size) for size in shape])
    return model


def _return_weights(model: Body, wanted: Iterable[str]) -> None:
    """Let layers return the probabilities that are wanted."""
    for i, block in enumerate(model.h):
        block.attn.sdpa.returns_weights = f"{outputs.ATTENTIONS}.{i}" in wanted


def _inside(op: Any, model: Body, wanted: Iterable[str], layers: Layers) -> dict[str, ir.Value]:
    """Return the wanted values of a model whose nodes are written and named, in float32.

    A hidden state is an operation under a second name. The last one is of all positions, where a head normalises some.
    """
    there = {value.name: value for node in op.builder.graph for value in node.outputs}
    stream = [outputs.BEFORE[-1], *(f"h.{i}.mlp_residual" for i in range(len(model.h)))]

    def float32(value: ir.Value) -> ir.Value:
        return value if layers.dtype == ir.DataType.FLOAT else op.Cast(value, to=ir.DataType.FLOAT)

    def returned(name: str) -> ir.Value:
        word, _, number = name.partition(".")
        if word == outputs.ATTENTIONS:
            return float32(model.h[int(number)].attn.sdpa.weights)
        if word == outputs.HIDDEN_STATES and int(number) == len(model.h):
            return float32(model.ln_f.forward(op, there[stream[-1]]))
        if word == outputs.HIDDEN_STATES:
            return op.Cast(there[stream[int(number)]], to=ir.DataType.FLOAT)
        value = there[name]
        if layers.dtype != ir.DataType.FLOAT:
            value.name = f"{name}.{layers.dtype.name.lower()}"
        return float32(value)

    return {name: returned(name) for name in wanted}


def _output(graph: ir.Graph, value: ir.Value, name: str | None, dtype: ir.DataType | None, shape: object) -> None:
    """Declare an output of the graph."""
    value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
    graph.outputs.append(value)


def _cache(config: GPT2Config, layers: Layers, name: str, length: str) -> list[KeyValue]:
    def value(i: int, part: str) -> ir.Value:
        shape = ["batch_size", config.n_head, length, config.head_dim]
        return ir.val(f"{name}.{i}.{part}", dtype=layers.dtype, shape=shape)

    return [(value(i, "key"), value(i, "value")) for i in range(config.n_layer)]


def _make_external(parameter: Parameter) -> None:
    """Declare that the numbers of an initializer are in a file."""
    assert parameter.name
    assert parameter.dtype
    assert parameter.shape
    parameter.const_value = ir.ExternalTensor("", 0, 0, parameter.dtype, shape=parameter.shape, name=parameter.name)
