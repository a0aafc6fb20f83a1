"""Recompute each operation of a graph from its own input.

The inputs are the graph's own taps. So an earlier error does not count against the operations after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from converter.checkpoint.tensor import LazyTensor
from converter.parity.diagnosis.taps import Taps, layer_of, module_of, tap_names
from converter.parity.legs.cases import Case
from converter.parity.legs.truth import to_torch
from converter.weights.ledger import Ledger
from reference.activations import FUNCTIONS
from reference.config import GPT2Config
from reference.head import SUMMARY
from reference.model import causal_mask


class Sort(StrEnum):
    """Kinds of operations."""

    EMBEDDING = "embedding"
    SUM = "sum"
    NORM = "layer normalisation"
    LINEAR = "projection"
    SPLIT = "split into q, k and v"
    ATTENTION = "attention"
    ACTIVATION = "activation"
    HEAD = "output head"
    POOL = "choice of the position that answers"


# The last part of a tap's name → its sort, and the taps that are its inputs. A name with a dot in front is in the same
# layer; "stream" is the output of the layer before.
SORTS: dict[str, tuple[Sort, tuple[str, ...]]] = {
    "wte": (Sort.EMBEDDING, ()),
    "wpe": (Sort.EMBEDDING, ()),
    "drop": (Sort.SUM, ("wte", "wpe")),
    "ln_1": (Sort.NORM, ("stream",)),
    "attn.c_attn": (Sort.LINEAR, (".ln_1",)),
    "attn.q": (Sort.SPLIT, (".attn.c_attn",)),
    "attn.k": (Sort.SPLIT, (".attn.c_attn",)),
    "attn.v": (Sort.SPLIT, (".attn.c_attn",)),
    "attn.sdpa": (Sort.ATTENTION, (".attn.q", ".attn.k", ".attn.v")),
    "attn.c_proj": (Sort.LINEAR, (".attn.sdpa",)),
    "attn_residual": (Sort.SUM, ("stream", ".attn.c_proj")),
    "ln_2": (Sort.NORM, (".attn_residual",)),
    "mlp.c_fc": (Sort.LINEAR, (".ln_2",)),
    "mlp.act": (Sort.ACTIVATION, (".mlp.c_fc",)),
    "mlp.c_proj": (Sort.LINEAR, (".mlp.act",)),
    "mlp_residual": (Sort.SUM, (".attn_residual", ".mlp.c_proj")),
    "ln_f": (Sort.NORM, ("stream",)),
    "pool": (Sort.POOL, ("stream",)),
    "last_hidden_state": (Sort.NORM, ("stream",)),
    "logits": (Sort.HEAD, ("ln_f",)),
    "score": (Sort.HEAD, ("ln_f",)),
    "qa_outputs": (Sort.HEAD, ("ln_f",)),
    SUMMARY: (Sort.HEAD, ("ln_f",)),
    "multiple_choice_head.activation": (Sort.ACTIVATION, (SUMMARY,)),
}


@dataclass(frozen=True)
class Operation:
    """One operation: its inputs, its output, and the parameters it should use.

    Attributes:
        tap, layer, sort: which operation it is.
        inputs: ``[batch, tokens, width]`` float64.
        output: what the graph gave, ``[batch, tokens, width]`` float64.
        real: ``[batch, tokens]`` bool, False for padding.
        ids: the rows that an embedding takes, ``[batch, tokens]``.
        weight, bias: the source's, float64, in the layout of the file.
        epsilon, scale, mask, activation: as the sort needs them.
        part, order: for a split or an attention, which of q, k, v (0, 1, 2), and in which order they lie.
        last: for a pool, the position that it picks in each row.
    """

    tap: str
    layer: int | None
    sort: Sort
    inputs: tuple[Tensor, ...]
    output: Tensor
    real: Tensor
    config: GPT2Config
    ids: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    epsilon: float = 0.0
    scale: float = 1.0
    mask: Tensor | None = None
    activation: str = ""
    part: int = 0
    order: tuple[int, int, int] = (0, 1, 2)
    last: Tensor | None = None

    def but(self, **changes: Any) -> Operation:
        """Return a copy with something changed: a hypothesis."""
        return replace(self, **changes)

    def compute(self) -> Tensor:
        """Compute the output from ``inputs``."""
        return COMPUTE[self.sort](self)

    def misshapen(self, expected: Tensor) -> bool:
        """Tell whether ``output`` has another shape than ``expected``."""
        return expected.shape != self.output.shape or expected.shape[:2] != self.real.shape

    def error(self) -> float:
        """Return the largest difference between ``output`` and ``compute()``, as a share of the RMS of the latter."""
        expected, found = self.compute(), self.output
        if self.misshapen(expected):
            return float("inf")
        expected, found = expected[self.real], found[self.real]
        if not bool(found.isfinite().all()):
            return float("inf")
        size = expected.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return float((expected - found).abs().max() / size)


def _embedding(op: Operation) -> Tensor:
    assert op.weight is not None and op.ids is not None  # noqa: PT018 - for the type checker
    return op.weight[op.ids]


def _norm(op: Operation) -> Tensor:
    return F.layer_norm(op.inputs[0], op.inputs[0].shape[-1:], op.weight, op.bias, op.epsilon)


def _linear(op: Operation) -> Tensor:
    assert op.weight is not None
    product = op.inputs[0] @ op.weight
    return product if op.bias is None else product + op.bias


def _split(op: Operation) -> Tensor:
    return op.inputs[0].chunk(3, dim=-1)[op.order[op.part]]


def _attention(op: Operation) -> Tensor:
    q, k, v = (op.inputs[at].unflatten(-1, (op.config.n_head, -1)).transpose(1, 2) for at in op.order)
    scores = (q @ k.transpose(-1, -2)) * op.scale
    assert op.mask is not None
    scores = scores.masked_fill(~op.mask[:, :, -q.size(2) :], torch.finfo(scores.dtype).min)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def _activation(op: Operation) -> Tensor:
    if op.activation == "prelu":
        assert op.weight is not None
        return torch.where(op.inputs[0] < 0, op.inputs[0] * op.weight, op.inputs[0])
    return FUNCTIONS[op.activation](op.inputs[0])


def _head(op: Operation) -> Tensor:
    assert op.weight is not None
    product = op.inputs[0] @ op.weight.T
    return product if op.bias is None else product + op.bias


def _pool(op: Operation) -> Tensor:
    assert op.last is not None
    return op.inputs[0][torch.arange(len(op.last)), op.last][:, None]


COMPUTE: dict[Sort, Callable[[Operation], Tensor]] = {
    Sort.EMBEDDING: _embedding,
    Sort.SUM: lambda op: torch.stack(op.inputs).sum(dim=0),
    Sort.NORM: _norm,
    Sort.LINEAR: _linear,
    Sort.SPLIT: _split,
    Sort.ATTENTION: _attention,
    Sort.ACTIVATION: _activation,
    Sort.HEAD: _head,
    Sort.POOL: _pool,
}


class Operations:
    """The operations of one case, by their tap. An operation's weights are read when it is asked for."""

    def __init__(self, ledger: Ledger, case: Case, taps: Taps) -> None:
        self.ledger, self.config, self.case, self.taps = ledger, ledger.config, case, taps
        self.mask = causal_mask(torch.tensor(case.attention_mask), case.input_ids.shape[1])

    def names(self) -> list[str]:
        """Return the taps whose inputs and output are known."""
        return [tap for tap in tap_names(self.config) if all(name in self.taps for name in (tap, *self.inputs_of(tap)))]

    def inputs_of(self, tap: str) -> list[str]:
        """Return the taps that are the inputs of ``tap``."""
        layer = layer_of(tap)
        before = f"h.{(self.config.n_layer if layer is None else layer) - 1}.mlp_residual" if layer != 0 else "drop"
        _, inputs = SORTS[short_name(tap)]
        if tap == "ln_f" and self.case.last is not None:
            return ["pool"]
        return [before if name == "stream" else f"h.{layer}{name}" if name[0] == "." else name for name in inputs]

    def weight(self, name: str) -> Tensor | None:
        """Return a parameter in float64; None if the model does not have it."""
        weights: Mapping[str, LazyTensor] = self.ledger.weights
        return to_torch(weights[name]).double() if name in weights else None

    def __getitem__(self, tap: str) -> Operation:
        layer, name = layer_of(tap), short_name(tap)
        sort, _ = SORTS[name]
        owner = owner_of(tap, self.config)
        inputs = tuple(torch.from_numpy(self.taps[given]) for given in self.inputs_of(tap))
        output = torch.from_numpy(self.taps[tap])
        if sort is Sort.SPLIT:  # keys and values cover all positions, also if the case keeps the last ones only
            output = output[:, -inputs[0].shape[1] :]
        ids = {"wte": self.case.kept_ids, "wpe": self.case.kept(self.case.position_ids)}.get(tap)
        return Operation(
            tap=tap,
            layer=layer,
            sort=sort,
            inputs=inputs,
            output=output,
            config=self.config,
            ids=None if ids is None else torch.tensor(ids),
            weight=self.weight(f"{owner}.weight"),
            bias=self.weight(f"{owner}.bias"),
            epsilon=self.config.layer_norm_epsilon,
            scale=self.config.attn_scale(layer) if layer is not None else 1.0,
            mask=self.mask,
            activation=self.activation_of(tap),
            part="qkv".find(name[-1]) if sort is Sort.SPLIT else 0,
            real=torch.tensor(self.case.real_of(output.shape[1])),
            last=None if self.case.last is None else torch.tensor(self.case.last),
        )

    def activation_of(self, tap: str) -> str:
        """Return the activation at ``tap``: the one of the blocks, or the one of a summary."""
        blocks, summary = self.config.activation_function, self.config.summary_activation
        return blocks if layer_of(tap) is not None else summary or "linear"


def owner_of(tap: str, config: GPT2Config) -> str:
    """Return the name of the module whose weights compute ``tap``."""
    module = module_of(tap, config.head)
    return "wte" if module == "lm_head" and config.tie_word_embeddings else module


def short_name(tap: str) -> str:
    """Return a tap's name without its layer: ``h.3.mlp.act`` → ``mlp.act``."""
    return tap.split(".", 2)[2] if tap.startswith("h.") else tap
