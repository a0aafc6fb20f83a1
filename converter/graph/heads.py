"""The heads on GPT-2's body other than the language model: the classes of ``reference/heads.py``.

Their graphs take ``input_ids`` and ``attention_mask`` alone and count positions over the mask, so that padding, on
either side, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import onnx_ir as ir

from converter.graph.activations import activation
from converter.graph.layers import Head, Layers
from converter.graph.model import Body
from converter.graph.module import Module, Parameter
from reference.config import GPT2Config
from reference.head import MULTIPLE_CHOICE

Shape = tuple[str, ...]  # dimensions, by their names in the graph or, where the model fixes them, in its config
TOKENS: Shape = ("batch_size", "sequence_length")


class Positions(Module):
    """Positions counted over the tokens: 0 for the first, whatever padding is before it."""

    def forward(self, op: Any, attention_mask: ir.Value) -> ir.Value:
        return op.Max(op.Sub(op.CumSum(attention_mask, 1), 1), 0)


class LastToken(Module):
    """The rightmost position that holds a token, not padding: ``[batch, tokens, n_embd]`` → ``[batch, 1, n_embd]``."""

    def __init__(self, pad_token_id: int | None) -> None:
        super().__init__()
        self.pad_token_id = pad_token_id

    def forward(self, op: Any, x: ir.Value, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        token = op.Cast(attention_mask, to=ir.DataType.BOOL)
        if self.pad_token_id is not None:
            token = op.And(token, op.Not(op.Equal(input_ids, self.pad_token_id)))
        counted = op.CumSum(op.Cast(token, to=ir.DataType.INT64), 1)
        place = op.ArgMax(counted, axis=1, keepdims=1)  # [batch, 1]: of equal sums the first, which is the last token's
        return op.Unsqueeze(op.GatherND(x, place, batch_dims=1), [1])


class HeadModel(Body):
    """A body with a head; ``forward`` returns the graph's outputs.

    Attributes:
        pools: whether the last token answers for the sequence.
        takes: the shape of both inputs.
        gives: the outputs and their shapes.
    """

    pools = False
    takes: Shape = TOKENS
    gives: ClassVar[Mapping[str, Shape]]

    def __init__(self, config: GPT2Config, layers: Layers) -> None:
        super().__init__(config, layers)
        self.dtype = layers.dtype
        self.positions = Positions()
        if self.pools:
            self.pool = LastToken(config.pad_token_id)
        self.add_head(config)

    def add_head(self, config: GPT2Config) -> None:
        pass

    def classifier_of(self, config: GPT2Config, labels: int, bias: bool = True) -> Head:
        """Return a projection to ``labels`` numbers."""
        weight = Parameter([labels, config.n_embd], self.dtype)
        return Head(weight, Parameter([labels], self.dtype) if bias else None)

    def normalised(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return the input of the head: all positions, or the one that answers."""
        x, _ = self.hidden(op, input_ids, attention_mask, self.positions(op, attention_mask))
        return self.ln_f(op, self.pool(op, x, input_ids, attention_mask) if self.pools else x)

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ...]:
        raise NotImplementedError


class Base(HeadModel):
    """No head: the hidden states themselves."""

    gives: ClassVar = {"last_hidden_state": (*TOKENS, "n_embd")}

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ...]:
        x = self.normalised(op, input_ids, attention_mask)
        return (x if self.dtype == ir.DataType.FLOAT else op.Cast(x, to=ir.DataType.FLOAT),)


class SequenceClassification(HeadModel):
    """Labels for a text."""

    pools = True
    gives: ClassVar = {"logits": ("batch_size", "num_labels")}

    def add_head(self, config: GPT2Config) -> None:
        self.score = self.classifier_of(config, config.num_labels, bias=False)

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ...]:
        return (op.Squeeze(self.score(op, self.normalised(op, input_ids, attention_mask)), [1]),)


class TokenClassification(HeadModel):
    """Labels for every token."""

    gives: ClassVar = {"logits": (*TOKENS, "num_labels")}

    def add_head(self, config: GPT2Config) -> None:
        self.classifier = self.classifier_of(config, config.num_labels)

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ...]:
        return (self.classifier(op, self.normalised(op, input_ids, attention_mask)),)


class QuestionAnswering(HeadModel):
    """For every token, a score that the answer starts there and a score that it ends there."""

    gives: ClassVar = {"start_logits": TOKENS, "end_logits": TOKENS}

    def add_head(self, config: GPT2Config) -> None:
        self.qa_outputs = self.classifier_of(config, 2)

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ...]:
        scores = self.qa_outputs(op, self.normalised(op, input_ids, attention_mask))
        return op.Gather(scores, 0, axis=2), op.Gather(scores, 1, axis=2)


class SequenceSummary(Module):
    """One number for a text, with an activation if the config names one."""

    def __init__(self, config: GPT2Config, summary: Head) -> None:
        super().__init__()
        self.summary = summary
        self.activation = activation(config.summary_activation or "linear", ir.DataType.FLOAT)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.activation(op, self.summary(op, x))


class MultipleChoice(HeadModel):
    """A score for each of several texts, ``[batch, choices, tokens]`` → ``[batch, choices]``."""

    pools = True
    takes = ("batch_size", "num_choices", "sequence_length")
    gives: ClassVar = {"mc_logits": ("batch_size", "num_choices")}

    def add_head(self, config: GPT2Config) -> None:
        self.multiple_choice_head = SequenceSummary(config, self.classifier_of(config, 1))

    def forward(self, op: Any, input_ids: ir.Value, attention_mask: ir.Value) -> tuple[ir.Value, ...]:
        rows = op.Concat([-1], op.Shape(input_ids, start=2, end=3), axis=0)
        flat = (op.Reshape(x, rows) for x in (input_ids, attention_mask))
        scores = self.multiple_choice_head(op, self.normalised(op, *flat))
        return (op.Reshape(scores, op.Shape(input_ids, start=0, end=2)),)


# The class for a ``GPT2Config.head`` other than the language model's.
CLASSES: dict[str, type[HeadModel]] = {
    "base": Base,
    "sequence-classification": SequenceClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    MULTIPLE_CHOICE: MultipleChoice,
}
