"""What each operation should put out, given what went into it: one layer of one graph, looked at by itself.

The inputs are a graph's own taps, so that an error made earlier is not charged to what comes after it.
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


# By the last part of a tap's name: what it is, and the taps that it takes in. A name with a dot in front is in the same
# layer; "stream" is what the layer before it left.
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
    "multiple_choice_head.summary": (Sort.HEAD, ("ln_f",)),
    "multiple_choice_head.activation": (Sort.ACTIVATION, ("multiple_choice_head.summary",)),
}


@dataclass(frozen=True)
class Operation:
    """One operation, with what it was given and what it should compute with.

    Attributes:
        tap, layer, sort: which.
        inputs: what went in, ``[batch, tokens, width]`` float64.
        output: what came out.
        real: ``[batch, tokens]`` bool, where it counts.
        ids: of an embedding, the rows to gather.
        weight, bias: in the layout of the file, float64.
        epsilon, scale, mask, n_head, activation, part: what else the sort needs; ``part`` is 0, 1, 2 for q, k, v;
            ``last`` is the position in each row that a pool picks.
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
        """The same with something changed: a hypothesis."""
        return replace(self, **changes)

    def compute(self) -> Tensor:
        """What comes out of ``inputs``."""
        return COMPUTE[self.sort](self)

    def misshapen(self, expected: Tensor) -> bool:
        """Whether ``output`` is not of the shape that it should be."""
        return expected.shape != self.output.shape or expected.shape[:2] != self.real.shape

    def error(self) -> float:
        """How far ``output`` is from that: the largest difference as a share of the RMS of what should come out."""
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
    """The operations of one case, as a graph's taps show them; weights are read when one is asked for."""

    def __init__(self, ledger: Ledger, case: Case, taps: Taps) -> None:
        self.ledger, self.config, self.case, self.taps = ledger, ledger.config, case, taps
        self.mask = causal_mask(torch.tensor(case.attention_mask), case.input_ids.shape[1])

    def names(self) -> list[str]:
        """Those whose inputs and output the graph shows."""
        return [tap for tap in tap_names(self.config) if all(name in self.taps for name in (tap, *self.inputs_of(tap)))]

    def inputs_of(self, tap: str) -> list[str]:
        """The taps that go into one."""
        layer = layer_of(tap)
        before = f"h.{(self.config.n_layer if layer is None else layer) - 1}.mlp_residual" if layer != 0 else "drop"
        _, inputs = SORTS[short_name(tap)]
        if tap == "ln_f" and self.case.last is not None:
            return ["pool"]
        return [before if name == "stream" else f"h.{layer}{name}" if name[0] == "." else name for name in inputs]

    def weight(self, name: str) -> Tensor | None:
        """A parameter in float64, if the model has it."""
        weights: Mapping[str, LazyTensor] = self.ledger.weights
        return to_torch(weights[name]).double() if name in weights else None

    def __getitem__(self, tap: str) -> Operation:
        layer, name = layer_of(tap), short_name(tap)
        sort, _ = SORTS[name]
        owner = owner_of(tap, self.config)
        inputs = tuple(torch.from_numpy(self.taps[given]) for given in self.inputs_of(tap))
        output = torch.from_numpy(self.taps[tap])
        if sort is Sort.SPLIT:  # of a case that is cut, keys and values are there for all positions
            output = output[:, -inputs[0].shape[1] :]
        ids = {"wte": self.case.kept_ids, "wpe": self.case.position_ids[:, -self.case.keep :]}.get(tap)
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
        """The activation there, if one is: that of the blocks, or that of a summary."""
        blocks, summary = self.config.activation_function, self.config.summary_activation
        return blocks if layer_of(tap) is not None else summary or "linear"


def owner_of(tap: str, config: GPT2Config) -> str:
    """The module whose weights a tap was computed with."""
    module = module_of(tap, config.head)
    return "wte" if module == "lm_head" and config.tie_word_embeddings else module


def short_name(tap: str) -> str:
    """A tap's name without its layer: ``h.3.mlp.act`` → ``mlp.act``."""
    return tap.split(".", 2)[2] if tap.startswith("h.") else tap
