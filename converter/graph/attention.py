"""Causal self-attention with a cache, and the mask that says which positions a query sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from converter.graph.layers import Layers
from converter.graph.module import Module
from reference.config import GPT2Config

ATTENTION_SINCE = 23  # the opset that brought Attention


class CausalMask(Module):
    """Make the mask bool ``[batch, 1, new, total]`` from ``attention_mask [batch, total]`` and the new tokens.

    Back in time and not at padding. The diagonal is allowed always: a row with nothing in it, that of a padding
    token, is NaN on ONNX Runtime 1.23. The shape is spelled out in full because ``[batch, 1, 1, total]`` is silently
    misread by some runtimes.
    """

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        total = op.Squeeze(op.Shape(attention_mask, start=1, end=2))
        new = op.Squeeze(op.Shape(input_ids, start=1, end=2))
        key = op.Range(0, total, 1)  # [total]
        query = op.Unsqueeze(op.Range(op.Sub(total, new), total, 1), [1])  # [new, 1]
        token = op.Cast(op.Unsqueeze(attention_mask, [1, 2]), to=ir.DataType.BOOL)  # [batch, 1, 1, total]
        seen = op.And(op.LessOrEqual(key, query), token)  # [batch, 1, new, total]
        return op.Or(seen, op.Equal(key, query))


class AdditiveMask(Module):
    """Turn the mask into what is added to the scores, float32: 0 where a query may look, else the lowest number."""

    def forward(self, op: Any, mask: ir.Value) -> ir.Value:
        lowest = float(np.finfo(np.float32).min)
        zero, masked = (ir.tensor(value, dtype=ir.DataType.FLOAT) for value in (0.0, lowest))
        return op.Where(mask, op.Constant(value=zero), op.Constant(value=masked))


KeyValue = tuple[ir.Value, ir.Value]  # keys and values of one layer, each [batch, n_head, tokens, head_dim]


class ScaledDotProduct(Module):
    """softmax(scale · q kᵀ + mask) v over the cached and the new tokens; it returns the longer cache, too.

    ``q``, ``k``, ``v`` and the result are ``[batch, new, n_embd]``. Without a cache there is none to return either.

    Attributes:
        returns_weights: whether the graph returns what softmax gives, ``[batch, n_head, new, total]``.
        weights: this, once the nodes are written.
    """

    returns_weights = False
    weights: ir.Value | None = None

    def __init__(self, config: GPT2Config, layer_idx: int, layers: Layers) -> None:
        super().__init__()
        self.dtype = layers.dtype
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.scale = config.attn_scale(layer_idx)

    def forward(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, past: KeyValue | None
    ) -> tuple[ir.Value, KeyValue | None]:
        if not self.is_spelled_out(op):
            heads = {"q_num_heads": self.n_head, "kv_num_heads": self.n_head, "scale": self.scale}
            if self.dtype != ir.DataType.FLOAT:
                heads["softmax_precision"] = ir.DataType.FLOAT
            if past is None:
                return op.Attention(q, k, v, mask, **heads), None
            attended, key, value = op.Attention(q, k, v, mask, *past, **heads, _outputs=3)
            return attended, (key, value)
        query, key, value = (self.heads(op, x) for x in (q, k, v))
        if past is not None:
            key = op.Concat(past[0], key, axis=2)
            value = op.Concat(past[1], value, axis=2)
        if self.dtype != ir.DataType.FLOAT:  # q·k in float16 may be beyond it, and softmax adds many numbers up
            query, wide = op.Cast(query, to=ir.DataType.FLOAT), op.Cast(key, to=ir.DataType.FLOAT)
        else:
            wide = key
        scores = op.Mul(op.MatMul(query, op.Transpose(wide, perm=[0, 1, 3, 2])), self.scale)
        weights = op.Softmax(op.Add(scores, mask), axis=-1)
        if self.dtype != ir.DataType.FLOAT:
            weights = op.Cast(weights, to=self.dtype)
        self.weights = weights
        attended = op.Transpose(op.MatMul(weights, value), perm=[0, 2, 1, 3])
        return op.Reshape(attended, [0, 0, self.n_head * self.head_dim]), None if past is None else (key, value)

    def is_spelled_out(self, op: Any) -> bool:
        """Tell whether attention is written as single operations, which take an additive mask.

        The operator Attention could return its probabilities, too. But onnx infers a last dimension of 0 for them,
        which runtimes believe, and ONNX Runtime's CUDA kernel does not return them.
        """
        return self.returns_weights or op.version < ATTENTION_SINCE

    def heads(self, op: Any, x: ir.Value) -> ir.Value:
        """Reshape ``[batch, new, n_embd]`` to ``[batch, n_head, new, head_dim]``."""
        return op.Transpose(op.Reshape(x, [0, 0, self.n_head, self.head_dim]), perm=[0, 2, 1, 3])


class CausalSelfAttention(Module):
    """One projection for q, k and v side by side, attention, one projection back."""

    def __init__(self, config: GPT2Config, layer_idx: int, layers: Layers) -> None:
        super().__init__()
        self.n_embd = config.n_embd
        self.c_attn = layers.linear(config.n_embd, 3 * config.n_embd)
        self.sdpa = ScaledDotProduct(config, layer_idx, layers)
        self.c_proj = layers.linear(config.n_embd, config.n_embd)

    def forward(self, op: Any, x: ir.Value, mask: ir.Value, past: KeyValue | None) -> tuple[ir.Value, KeyValue | None]:
        q, k, v = op.Split(self.c_attn(op, x), [self.n_embd] * 3, axis=-1, _outputs=["q", "k", "v"])
        attended, present = self.sdpa(op, q, k, v, mask, past)
        return self.c_proj(op, attended), present
