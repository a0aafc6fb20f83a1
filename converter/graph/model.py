"""GPT-2 as an ONNX graph: the classes of ``reference/model.py``, in the same order and under the same names."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from converter.graph.activations import activation
from converter.graph.attention import AdditiveMask, CausalMask, CausalSelfAttention, KeyValue
from converter.graph.layers import Embedding, Layers
from converter.graph.module import Module, ModuleList, Parameter
from reference.config import GPT2Config

TO_THE_END = 2**63 - 1  # as Slice wants it


class LayerNorm(Module):
    """Layer normalisation over the last dimension."""

    def __init__(self, config: GPT2Config, dtype: ir.DataType) -> None:
        super().__init__()
        self.epsilon = float(config.layer_norm_epsilon)  # a config may have 0 or 1, and an attribute has one type
        self.weight = Parameter([config.n_embd], dtype)
        self.bias = Parameter([config.n_embd], dtype)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.epsilon)


class MLP(Module):
    """Two projections with the activation between them."""

    def __init__(self, config: GPT2Config, layers: Layers) -> None:
        super().__init__()
        self.c_fc = layers.linear(config.n_embd, config.inner_dim)
        self.act = activation(config.activation_function, layers.dtype)
        self.c_proj = layers.linear(config.inner_dim, config.n_embd)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.c_proj(op, self.act(op, self.c_fc(op, x)))


class Residual(Module):
    """Add the output of a branch to the residual stream."""

    def forward(self, op: Any, x: ir.Value, branch: ir.Value) -> ir.Value:
        return op.Add(x, branch)


class Block(Module):
    """One layer: normalise, attend, add; normalise, MLP, add."""

    def __init__(self, config: GPT2Config, layer_idx: int, layers: Layers) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config, layers.dtype)
        self.attn = CausalSelfAttention(config, layer_idx, layers)
        self.attn_residual = Residual()
        self.ln_2 = LayerNorm(config, layers.dtype)
        self.mlp = MLP(config, layers)
        self.mlp_residual = Residual()

    def forward(self, op: Any, x: ir.Value, mask: ir.Value, past: KeyValue | None) -> tuple[ir.Value, KeyValue | None]:
        attended, present = self.attn(op, self.ln_1(op, x), mask, past)
        x = self.attn_residual(op, x, attended)
        x = self.mlp_residual(op, x, self.mlp(op, self.ln_2(op, x)))
        return x, present


class Body(Module):
    """Embeddings, blocks, and the last normalisation, which the heads apply."""

    def __init__(self, config: GPT2Config, layers: Layers) -> None:
        super().__init__()
        self.wte = layers.embed(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd, layers.dtype)
        self.mask = CausalMask()
        self.additive_mask = AdditiveMask()
        self.h = ModuleList([Block(config, i, layers) for i in range(config.n_layer)])
        self.ln_f = LayerNorm(config, layers.dtype)

    def hidden(
        self,
        op: Any,
        input_ids: ir.Value,
        attention_mask: ir.Value,
        position_ids: ir.Value,
        past_key_values: list[KeyValue] | None = None,
    ) -> tuple[ir.Value, list[KeyValue]]:
        """Return the output of the blocks, ``[batch, new, n_embd]``, not normalised, and the cache of each layer."""
        mask = self.mask(op, input_ids, attention_mask)
        spelled_out = [block.attn.sdpa.is_spelled_out(op) for block in self.h]
        additive = self.additive_mask(op, mask) if any(spelled_out) else None
        x = op.Add(self.wte(op, input_ids), self.wpe(op, position_ids), _outputs=["drop"])
        presents = []
        for i, block in enumerate(self.h):
            seen = additive if spelled_out[i] else mask
            x, present = block(op, x, seen, past_key_values[i] if past_key_values else None)
            presents.append(present)
        return x, presents


class LastPositions(Module):
    """The last ``count`` positions of ``[batch, new, n_embd]``; all of them for a count of 0."""

    def forward(self, op: Any, x: ir.Value, count: ir.Value) -> ir.Value:
        return op.Slice(x, op.Neg(op.Reshape(count, [1])), [TO_THE_END], [1])


class GPT2(Body):
    """The language model; ``forward`` returns the logits and the cache."""

    def __init__(self, config: GPT2Config, layers: Layers) -> None:
        super().__init__(config, layers)
        self.last = LastPositions()
        self.lm_head = layers.head(config.vocab_size, config.n_embd, self.wte if config.tie_word_embeddings else None)

    def forward(
        self,
        op: Any,
        input_ids: ir.Value,
        attention_mask: ir.Value,
        position_ids: ir.Value,
        num_logits_to_keep: ir.Value,
        past_key_values: list[KeyValue],
    ) -> tuple[ir.Value, list[KeyValue]]:
        x, presents = self.hidden(op, input_ids, attention_mask, position_ids, past_key_values)
        x = self.last(op, x, num_logits_to_keep)
        return self.lm_head(op, self.ln_f(op, x)), presents
