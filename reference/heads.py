"""The heads on GPT-2's body other than the language model: one class each, as in ``transformers``.

They read all tokens at once and generate nothing, so there is no cache. Padding changes nothing, on either side. Shapes
are as in ``model.py``; K is the number of labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference.activations import activation
from reference.config import GPT2Config
from reference.head import LM, MULTIPLE_CHOICE
from reference.model import GPT2, Body, Head, Projection


class LastToken(nn.Module):
    """The rightmost position that holds a token, ``[B, S, E]`` → ``[B, 1, E]``; the first position if all are padding.

    Padding is ``pad_token_id``, as in transformers, and every position that the mask leaves out.
    """

    def __init__(self, pad_token_id: int | None) -> None:
        super().__init__()
        self.pad_token_id = pad_token_id

    def forward(self, x: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        token = attention_mask.bool()
        if self.pad_token_id is not None:
            token = token & (input_ids != self.pad_token_id)
        places = token.long().cumsum(dim=-1).argmax(dim=-1)  # [B]: the first of equal sums is the last token's
        return x.gather(1, places[:, None, None].expand(-1, 1, x.size(-1)))


class HeadModel(Body):
    """A body with a head. ``forward`` returns ``[B, S, …]``, or ``[B, 1, …]`` if the head pools."""

    pools = False  # whether the last token answers for the sequence

    def __init__(self, config: GPT2Config, projection: Projection = nn.Linear) -> None:
        super().__init__(config, projection)
        if self.pools:
            self.pool = LastToken(config.pad_token_id)
        self.add_head(config)
        self.initialise()

    def add_head(self, config: GPT2Config) -> None:
        pass

    def head(self, x: Tensor) -> Tensor:
        return x

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the head's output for ``input_ids [B, S]``.

        ``attention_mask [B, S]`` is 0 for padding; the default is all ones.

        Raises:
            GPT2Error: there are more tokens than ``n_positions``.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x, _ = self.hidden(input_ids, None, attention_mask)
        return self.head(self.ln_f(self.select(x, input_ids, attention_mask)))

    def select(self, x: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the positions of ``[B, S, E]`` for which the head answers."""
        return self.pool(x, input_ids, attention_mask) if self.pools else x


class Base(HeadModel):
    """No head: the output is the hidden states ``[B, S, E]``."""


class SequenceClassification(HeadModel):
    """Scores of the labels for a text, ``[B, 1, K]``."""

    pools = True

    def add_head(self, config: GPT2Config) -> None:
        self.score = Head(config.n_embd, config.num_labels, bias=False)

    def head(self, x: Tensor) -> Tensor:
        return self.score(x)


class TokenClassification(HeadModel):
    """Scores of the labels for every token, ``[B, S, K]``."""

    def add_head(self, config: GPT2Config) -> None:
        self.classifier = Head(config.n_embd, config.num_labels)

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(x)


class QuestionAnswering(HeadModel):
    """Two scores for every token, ``[B, S, 2]``: that the answer starts there, and that it ends there."""

    def add_head(self, config: GPT2Config) -> None:
        self.qa_outputs = Head(config.n_embd, 2)

    def head(self, x: Tensor) -> Tensor:
        return self.qa_outputs(x)


class SequenceSummary(nn.Module):
    """One number for a text. It passes through an activation if the config names one."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.summary = Head(config.n_embd, 1)
        self.activation = activation(config.summary_activation or "linear")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.summary(x))


class MultipleChoice(HeadModel):
    """A score for a text that is one of several choices, ``[B, 1, 1]``.

    This is the second head of ``GPT2DoubleHeadsModel``.
    """

    pools = True

    def add_head(self, config: GPT2Config) -> None:
        self.multiple_choice_head = SequenceSummary(config)

    def head(self, x: Tensor) -> Tensor:
        return self.multiple_choice_head(x)


# ``GPT2Config.head`` → class. A model with double heads consists of the first and the last.
CLASSES: dict[str, type[Body]] = {
    LM: GPT2,
    "base": Base,
    "sequence-classification": SequenceClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    MULTIPLE_CHOICE: MultipleChoice,
}
