"""The table of GPT-2's parameters.

The table alone decides what a tensor is and how it lies; no decision here or elsewhere looks at a shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from reference.config import GPT2Config
from reference.head import DOUBLE_HEADS, HEADS, MULTIPLE_CHOICE, SUMMARY


class Layout(StrEnum):
    """How a weight lies in a Hugging Face file."""

    EMBEDDING = "embedding"  # [rows, n_embd]
    CONV1D = "conv1d"  # [in, out]: MatMul's own order, torch.nn.Linear's transpose
    LINEAR = "linear"  # [out, in]
    VECTOR = "vector"


@dataclass(frozen=True)
class Weight:
    """One parameter of GPT-2: ``name`` as Hugging Face's GPT2Model spells it, ``{i}`` for the layer.

    Attributes:
        heads: those that it is part of; empty for the body, which all stand on.
        when: on what else of the config it depends.
    """

    name: str
    layout: Layout
    shape: Callable[[GPT2Config], tuple[int, ...]]
    heads: tuple[str, ...] = ()
    when: Callable[[GPT2Config], bool] = lambda config: True

    def needed(self, config: GPT2Config) -> bool:
        """Tell whether a model of this architecture has it."""
        return self.belongs_to(config) and self.when(config)

    def belongs_to(self, config: GPT2Config) -> bool:
        """Tell whether it is part of the body, or of the config's head."""
        return not self.heads or config.head in self.heads


PREDICTING = tuple(head.name for head in HEADS.values() if head.predicts)
SEQUENCE, TOKEN, ANSWER = ("sequence-classification",), ("token-classification",), ("question-answering",)
CHOICES = (DOUBLE_HEADS, MULTIPLE_CHOICE)

TABLE: tuple[Weight, ...] = (
    Weight("wte.weight", Layout.EMBEDDING, lambda c: (c.vocab_size, c.n_embd)),
    Weight("wpe.weight", Layout.EMBEDDING, lambda c: (c.n_positions, c.n_embd)),
    Weight("h.{i}.ln_1.weight", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.ln_1.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.attn.c_attn.weight", Layout.CONV1D, lambda c: (c.n_embd, 3 * c.n_embd)),
    Weight("h.{i}.attn.c_attn.bias", Layout.VECTOR, lambda c: (3 * c.n_embd,)),
    Weight("h.{i}.attn.c_proj.weight", Layout.CONV1D, lambda c: (c.n_embd, c.n_embd)),
    Weight("h.{i}.attn.c_proj.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.ln_2.weight", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.ln_2.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("h.{i}.mlp.c_fc.weight", Layout.CONV1D, lambda c: (c.n_embd, c.inner_dim)),
    Weight("h.{i}.mlp.c_fc.bias", Layout.VECTOR, lambda c: (c.inner_dim,)),
    Weight("h.{i}.mlp.act.weight", Layout.VECTOR, lambda c: (1,), when=lambda c: c.activation_function == "prelu"),
    Weight("h.{i}.mlp.c_proj.weight", Layout.CONV1D, lambda c: (c.inner_dim, c.n_embd)),
    Weight("h.{i}.mlp.c_proj.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("ln_f.weight", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight("ln_f.bias", Layout.VECTOR, lambda c: (c.n_embd,)),
    Weight(
        "lm_head.weight",
        Layout.LINEAR,
        lambda c: (c.vocab_size, c.n_embd),
        PREDICTING,
        lambda c: not c.tie_word_embeddings,
    ),
    Weight("score.weight", Layout.LINEAR, lambda c: (c.num_labels, c.n_embd), SEQUENCE),
    Weight("classifier.weight", Layout.LINEAR, lambda c: (c.num_labels, c.n_embd), TOKEN),
    Weight("classifier.bias", Layout.VECTOR, lambda c: (c.num_labels,), TOKEN),
    Weight("qa_outputs.weight", Layout.LINEAR, lambda c: (2, c.n_embd), ANSWER),
    Weight("qa_outputs.bias", Layout.VECTOR, lambda c: (2,), ANSWER),
    Weight(f"{SUMMARY}.weight", Layout.LINEAR, lambda c: (1, c.n_embd), CHOICES),
    Weight(f"{SUMMARY}.bias", Layout.VECTOR, lambda c: (1,), CHOICES),
)

# The weights by which a head is known where no config names it.
HEAD_WEIGHTS = {head.known_by: head.name for head in HEADS.values() if head.known_by}

# The matrices that turn tokens into vectors and back; one matrix where they are tied.
VOCABULARY = ("wte.weight", "lm_head.weight")

# The causal mask and its filler, which transformers once saved with the weights.
BUFFERS = ("h.{i}.attn.bias", "h.{i}.attn.masked_bias")


def parameters(config: GPT2Config) -> Iterator[tuple[str, Layout, tuple[int, ...]]]:
    """Yield the canonical name, layout and shape of every parameter of a GPT-2, in the order in which data flows."""
    needed = [weight for weight in TABLE if weight.needed(config)]
    blocks = [weight for weight in needed if "{i}" in weight.name]
    before = needed[: needed.index(blocks[0])]
    after = needed[needed.index(blocks[-1]) + 1 :]
    for weight in before:
        yield weight.name, weight.layout, weight.shape(config)
    for i in range(config.n_layer):
        for weight in blocks:
            yield weight.name.format(i=i), weight.layout, weight.shape(config)
    for weight in after:
        yield weight.name, weight.layout, weight.shape(config)
