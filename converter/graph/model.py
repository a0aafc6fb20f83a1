"""GPT-2 as an ONNX graph: the classes of ``reference/model.py``, in the same order and under the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxscript
from onnx import helper

from converter.graph.activations import activation
from converter.graph.attention import ATTENTION_SINCE, AdditiveMask, CausalMask, CausalSelfAttention
from converter.graph.module import Module, ModuleList, Parameter, name_values
from converter.graph.precision import FLOAT32, Precision
from converter.version import VERSION
from reference.config import GPT2Config

MIN_OPSET = 17  # the first with LayerNormalization
MAX_OPSET = 25

TO_THE_END = 2**63 - 1  # as Slice wants it


class LayerNorm(Module):
    """Layer normalisation over the last dimension."""

    def __init__(self, config: GPT2Config, dtype: ir.DataType) -> None:
        super().__init__()
        self.epsilon = config.layer_norm_epsilon
        self.weight = Parameter([config.n_embd], dtype)
        self.bias = Parameter([config.n_embd], dtype)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.epsilon)


class MLP(Module):
    """Two projections with the activation between them."""

    def __init__(self, config: GPT2Config, precision: Precision) -> None:
        super().__init__()
        self.c_fc = precision.linear(config.n_embd, config.inner_dim)
        self.act = activation(config.activation_function, precision.dtype)
        self.c_proj = precision.linear(config.inner_dim, config.n_embd)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.c_proj(op, self.act(op, self.c_fc(op, x)))


class Residual(Module):
    """The residual stream takes in what a branch has to add."""

    def forward(self, op: Any, x: ir.Value, branch: ir.Value) -> ir.Value:
        return op.Add(x, branch)


class Block(Module):
    """One layer: normalise, attend, add; normalise, MLP, add."""

    def __init__(self, config: GPT2Config, layer_idx: int, precision: Precision) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config, precision.dtype)
        self.attn = CausalSelfAttention(config, layer_idx, precision)
        self.attn_residual = Residual()
        self.ln_2 = LayerNorm(config, precision.dtype)
        self.mlp = MLP(config, precision)
        self.mlp_residual = Residual()

    def forward(
        self, op: Any, x: ir.Value, mask: ir.Value, past: tuple[ir.Value, ir.Value]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        attended, key, value = self.attn(op, self.ln_1(op, x), mask, past)
        x = self.attn_residual(op, x, attended)
        x = self.mlp_residual(op, x, self.mlp(op, self.ln_2(op, x)))
        return x, key, value


class LastPositions(Module):
    """The last ``count`` positions of ``[batch, new, n_embd]``; all of them for a count of 0."""

    def forward(self, op: Any, x: ir.Value, count: ir.Value) -> ir.Value:
        return op.Slice(x, op.Neg(op.Reshape(count, [1])), [TO_THE_END], [1])


class GPT2(Module):
    """The language model; ``forward`` returns the logits and, layer by layer, the cache."""

    def __init__(self, config: GPT2Config, precision: Precision) -> None:
        super().__init__()
        self.wte = precision.embed(config.vocab_size, config.n_embd)
        self.wpe = precision.embed(config.n_positions, config.n_embd)
        self.mask = CausalMask()
        self.additive_mask = AdditiveMask(precision)
        self.h = ModuleList([Block(config, i, precision) for i in range(config.n_layer)])
        self.last = LastPositions()
        self.ln_f = LayerNorm(config, precision.dtype)
        self.lm_head = precision.head(
            config.vocab_size, config.n_embd, self.wte if config.tie_word_embeddings else None
        )

    def forward(
        self,
        op: Any,
        input_ids: ir.Value,
        attention_mask: ir.Value,
        position_ids: ir.Value,
        num_logits_to_keep: ir.Value,
        past_key_values: list[tuple[ir.Value, ir.Value]],
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:
        mask = self.mask(op, input_ids, attention_mask)
        if op.version < ATTENTION_SINCE:
            mask = self.additive_mask(op, mask)
        x = op.Add(self.wte(op, input_ids), self.wpe(op, position_ids), _outputs=["drop"])
        presents = []
        for block, past in zip(self.h, past_key_values, strict=True):
            x, key, value = block(op, x, mask, past)
            presents.append((key, value))
        x = self.last(op, x, num_logits_to_keep)
        return self.lm_head(op, self.ln_f(op, x)), presents


Locate = Callable[[str], tuple[str, int, int]]  # initializer name → file beside the graph, offset, length in bytes


def build(config: GPT2Config, locate: Locate, opset: int, precision: Precision = FLOAT32) -> bytes:
    """The serialized ONNX model of a GPT-2, its weights in files beside it.

    Inputs ``input_ids [batch_size, sequence_length]``, ``attention_mask [batch_size, total_sequence_length]``,
    ``position_ids`` (int64) and ``past_key_values.{i}.key|value [batch_size, n_head, past_sequence_length, head_dim]``;
    outputs ``logits`` (float32) and ``present.{i}.key|value``. ``num_logits_to_keep``, a scalar, may be left out: its
    default of 0 asks for the logits of all positions.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="gpt2")
    builder = onnxscript.GraphBuilder(graph)
    int64 = ir.DataType.INT64
    input_ids = builder.input("input_ids", int64, ["batch_size", "sequence_length"])
    attention_mask = builder.input("attention_mask", int64, ["batch_size", "total_sequence_length"])
    position_ids = builder.input("position_ids", int64, ["batch_size", "sequence_length"])
    past = _cache(config, precision, "past_key_values", "past_sequence_length")
    graph.inputs.extend(value for pair in past for value in pair)
    keep = builder.input("num_logits_to_keep", const_value=ir.tensor(0, dtype=int64, name="num_logits_to_keep"))

    model = GPT2(config, precision)
    logits, presents = model(builder.op, input_ids, attention_mask, position_ids, keep, past)
    logits.name, logits.dtype = "logits", ir.DataType.FLOAT
    logits.shape = ir.Shape(["batch_size", "num_logits", config.vocab_size])
    graph.outputs.append(logits)
    for declared, present in zip(_cache(config, precision, "present", "total_sequence_length"), presents, strict=True):
        for as_declared, value in zip(declared, present, strict=True):
            value.name, value.type, value.shape = as_declared.name, as_declared.type, as_declared.shape
            graph.outputs.append(value)
    name_values(graph, model)
    for value in model.parameters():
        _place(value, locate)
    ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    result = ir.Model(graph, ir_version=ir_version, producer_name="gpt2onnx", producer_version=VERSION)
    return ir.to_proto(result).SerializeToString(deterministic=True)


def _cache(config: GPT2Config, precision: Precision, name: str, length: str) -> list[tuple[ir.Value, ir.Value]]:
    def value(i: int, part: str) -> ir.Value:
        shape = ["batch_size", config.n_head, length, config.head_dim]
        return ir.val(f"{name}.{i}.{part}", dtype=precision.dtype, shape=shape)

    return [(value(i, "key"), value(i, "value")) for i in range(config.n_layer)]


def _place(parameter: Parameter, locate: Locate) -> None:
    """Point an initializer at its bytes."""
    assert parameter.name
    assert parameter.dtype
    assert parameter.shape
    file, offset, length = locate(parameter.name)
    parameter.const_value = ir.ExternalTensor(
        file, offset, length, parameter.dtype, shape=parameter.shape, name=parameter.name
    )
