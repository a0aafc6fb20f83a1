"""GPT-2, in one file and in reading order.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019); parameter names are Hugging Face's.
Shapes in the comments: B batch, S new tokens, P cached tokens, T = P + S, E n_embd, H n_head, D = E / H,
I inner_dim, V vocab_size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.activations import activation
from reference.config import GPT2Config
from reference.errors import GPT2Error, WeightsError

KeyValue = tuple[Tensor, Tensor]  # keys and values of one layer, each [B, H, T, D]


class Conv1D(nn.Module):
    """``x @ weight + bias`` with the weight stored as ``[nx, nf]``, the layout of OpenAI's and Hugging Face's files.

    ``nn.Linear`` stores the transpose. The weight is drawn from N(0, 0.02); the bias is zero.
    """

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf).normal_(0.0, 0.02))  # [nx, nf]
        self.bias = nn.Parameter(torch.zeros(nf))  # [nf]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))  # [..., nx] → [N, nx]
        return torch.addmm(self.bias, rows, self.weight).view(*x.shape[:-1], self.nf)  # → [..., nf]


Projection = type[Conv1D] | type[nn.Linear]


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (Ba et al., arXiv:1607.06450), with the biased variance."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.n_embd))  # [E]
        self.bias = nn.Parameter(torch.zeros(config.n_embd))  # [E]

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ScaledDotProduct(nn.Module):
    """softmax(scale · q kᵀ + mask) v, written out (Vaswani et al., arXiv:1706.03762)."""

    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__()
        self.scale = config.attn_scale(layer_idx)
        self.upcast = config.reorder_and_upcast_attn
        self.dropout = nn.Dropout(config.attn_pdrop)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        # q [B, H, S, D]; k, v [B, H, T, D]; mask [B, 1, S, T], True where a query may look
        if self.upcast and q.dtype in (torch.float16, torch.bfloat16):
            q, k = q.float(), k.float()
        scores = (q @ k.transpose(-1, -2)) * self.scale  # [B, H, S, T]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(dim=-1).to(v.dtype))
        return (weights @ v).transpose(1, 2).flatten(2)  # [B, H, S, D] → [B, S, E]


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention that takes the cached keys and values, and returns the longer ones."""

    def __init__(self, config: GPT2Config, layer_idx: int, projection: Projection) -> None:
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.c_attn = projection(config.n_embd, 3 * config.n_embd)  # q, k and v side by side
        self.sdpa = ScaledDotProduct(config, layer_idx)
        self.c_proj = projection(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        q, k, v = (self.heads(part) for part in self.c_attn(x).chunk(3, dim=-1))  # each [B, H, S, D]
        if past is not None:
            k = torch.cat((past[0], k), dim=2)  # [B, H, T, D]
            v = torch.cat((past[1], v), dim=2)
        return self.c_proj(self.sdpa(q, k, v, mask)), (k, v)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, self.head_dim)).transpose(1, 2)  # [B, S, E] → [B, H, S, D]


class MLP(nn.Module):
    """Two projections with the activation between them."""

    def __init__(self, config: GPT2Config, projection: Projection) -> None:
        super().__init__()
        self.c_fc = projection(config.n_embd, config.inner_dim)
        self.act = activation(config.activation_function)
        self.c_proj = projection(config.inner_dim, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))  # [B, S, E] → [B, S, I] → [B, S, E]


class Residual(nn.Module):
    """Adds the output of a branch to the residual stream."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + self.dropout(branch)


class Block(nn.Module):
    """One layer: normalise, attend, add; normalise, MLP, add."""

    def __init__(self, config: GPT2Config, layer_idx: int, projection: Projection) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = CausalSelfAttention(config, layer_idx, projection)
        self.attn_residual = Residual(config)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config, projection)
        self.mlp_residual = Residual(config)

    def forward(self, x: Tensor, mask: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        attended, present = self.attn(self.ln_1(x), mask, past)
        x = self.attn_residual(x, attended)
        x = self.mlp_residual(x, self.mlp(self.ln_2(x)))
        return x, present


class Head(nn.Linear):
    """The output layer, ``[out, in]`` in the file and here. It has its own type because it is never transposed."""


class Body(nn.Module):
    """GPT-2 without a head: embeddings, blocks, and the last normalisation, which the heads apply.

    Args:
        config: the architecture.
        projection: ``nn.Linear`` (weights ``[out, in]``) or ``Conv1D`` (``[in, out]``); the results are the same.
    """

    def __init__(self, config: GPT2Config, projection: Projection = nn.Linear) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # [V, E]
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)  # [n_positions, E]
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, i, projection) for i in range(config.n_layer))
        self.ln_f = LayerNorm(config)

    def hidden(
        self,
        input_ids: Tensor,
        past_key_values: Sequence[KeyValue] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Return the blocks' output, ``[B, S, E]``, not yet normalised, and the longer cache; see ``GPT2.forward``.

        Raises:
            GPT2Error: there are more tokens than ``n_positions``.
        """
        batch, new = input_ids.shape
        past = past_key_values[0][0].size(2) if past_key_values else 0
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, past + new)  # [B, T]
        if position_ids is None:
            position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)[:, past:]  # [B, S]
            if past + new > self.config.n_positions and int(position_ids.max()) >= self.config.n_positions:
                raise GPT2Error(f"{past + new} tokens are more than the model's {self.config.n_positions} positions")
        mask = causal_mask(attention_mask, new)  # [B, 1, S, T]

        x = self.drop(self.wte(input_ids) + self.wpe(position_ids))  # [B, S, E]
        presents = []
        for i, block in enumerate(self.h):
            x, present = block(x, mask, past_key_values[i] if past_key_values else None)
            presents.append(present)
        return x, presents

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights from N(0, 0.02).

        The two residual projections of a layer are narrower by sqrt(2 · n_layer).
        """
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(0.0, std / (2 * self.config.n_layer) ** 0.5)
            elif parameter.dim() == 2:
                parameter.normal_(0.0, std)
            elif name.endswith(".bias"):
                parameter.zero_()

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> Self:
        """Load Hugging Face's weights, canonical name → tensor in the file's layout; return the model.

        A projection of type ``nn.Linear`` takes the transposed view of its Conv1D weight. The type of the module
        decides this, never a shape, and nothing is copied. Parameters take the dtypes of ``weights``.

        Raises:
            WeightsError: a weight is missing, surplus or of the wrong shape.
        """
        left = dict(weights)
        taken = []
        for path, module in self.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{key}"
                if name == "lm_head.weight" and self.config.tie_word_embeddings:
                    continue
                transposed = key == "weight" and type(module) is nn.Linear
                expected = parameter.shape[::-1] if transposed else parameter.shape
                weight = left.pop(name, None)
                if weight is None:
                    raise WeightsError(f"weight {name} is missing; expected shape {list(expected)}")
                if weight.shape != expected:
                    raise WeightsError(f"weight {name} is {list(weight.shape)}; expected {list(expected)}")
                if not weight.is_floating_point():
                    raise WeightsError(f"weight {name} is {weight.dtype}; expected a floating-point type")
                taken.append((module, key, weight.T if transposed else weight, parameter.requires_grad))
        if left:
            raise WeightsError(f"weight {min(left)} has no place in this GPT-2")
        for module, key, weight, requires_grad in taken:
            setattr(module, key, nn.Parameter(weight, requires_grad))
        self.tie()
        return self

    def tie(self) -> None:
        """Tie the parameters that are one tensor in the file; a body without a head has none."""

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], dtype: torch.dtype | None = None, projection: Projection = nn.Linear
    ) -> Self:
        """Open a Hugging Face folder (``config.json``; safetensors or ``pytorch_model.bin``, single or sharded).

        A folder with ``reference.safetensors``, as ``gpt2onnx convert --to reference`` writes it, can be opened too.

        The model is in evaluation mode. Its weights stay in the memory-mapped files unless ``dtype`` asks for another.
        """
        from reference.pretrained import read_folder

        config, weights = read_folder(path)
        return cls.from_weights(config, weights, dtype, projection)

    @classmethod
    def from_weights(
        cls,
        config: GPT2Config,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        projection: Projection = nn.Linear,
    ) -> Self:
        """Return a model with these weights, in evaluation mode.

        The model is never initialised, so that no memory is spent on weights that are replaced.
        """
        with torch.device("meta"):
            model = cls(config, projection)
        return model.load(weights).to(dtype).eval()


class GPT2Output(NamedTuple):
    """The result of ``GPT2.forward``."""

    logits: Tensor  # [B, S, V]
    past_key_values: list[KeyValue]  # one pair for each layer
    loss: Tensor | None  # mean cross-entropy, when labels were given


class GPT2(Body):
    """The language model: the body, and a head that scores every token of the vocabulary."""

    def __init__(self, config: GPT2Config, projection: Projection = nn.Linear) -> None:
        super().__init__(config, projection)
        self.lm_head = Head(config.n_embd, config.vocab_size, bias=False)  # [V, E]
        self.tie()
        self.initialise()

    def tie(self) -> None:
        """Make the output head the embedding itself, unless the config says otherwise."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Sequence[KeyValue] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> GPT2Output:
        """Predict the token after each of ``input_ids``.

        Args:
            input_ids: ``[B, S]`` int64, each below ``vocab_size``.
            past_key_values: the cache that an earlier call returned; its P tokens come before these.
            attention_mask: ``[B, T]``, 1 for tokens and 0 for padding; all ones by default.
            position_ids: ``[B, S]``, each below ``n_positions``; by default tokens are counted without padding.
            labels: ``[B, S]`` int64; position s is scored on label s + 1, and -100 is ignored.
            logits_to_keep: the number of last positions that need logits; 0 for all, as ``labels`` require.

        Raises:
            GPT2Error: there are more tokens than ``n_positions``.
        """
        x, presents = self.hidden(input_ids, past_key_values, attention_mask, position_ids)
        logits = self.lm_head(self.ln_f(x[:, -logits_to_keep:]))  # [B, S, V]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return GPT2Output(logits, presents, loss)

    def generate(self, input_ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue ``input_ids``; see ``reference.generate.generate`` for the options."""
        from reference.generate import generate

        return generate(self, input_ids, max_new_tokens, **options)


def causal_mask(attention_mask: Tensor, new: int) -> Tensor:
    """Return where each of the ``new`` last tokens may look: ``[B, T]`` → bool ``[B, 1, S, T]``.

    A token sees earlier tokens but no padding. It always sees itself, so that no row of a softmax is empty.
    """
    total = attention_mask.size(1)
    key = torch.arange(total, device=attention_mask.device)  # [T]
    query = key[total - new :, None]  # [S, 1]
    return ((key <= query) & attention_mask[:, None, None, :].bool()) | (key == query)
