"""What else than the language model stands on GPT-2's body: one class a head, as ``transformers`` has them.

They answer for all tokens at once: there is nothing to generate, and so no cache. Padding, on either side, changes
nothing. Shapes as in ``model.py``; K is the number of labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference.activations import activation
from reference.config import GPT2Config
from reference.head import LM, MULTIPLE_CHOICE
from reference.model import GPT2, Body, Head, Projection


class LastToken(nn.Module):
    """The rightmost position that is a token and not padding, ``[B, S, E]`` → ``[B, 1, E]``; the first if none is.

    Padding is ``pad_token_id``, as for transformers, and what the mask leaves out.
    """

    def __init__(self, pad_token_id: int | None) -> None:
        super().__init__()
        self.pad_token_id = pad_token_id

    def forward(self, x: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        token = attention_mask.bool()
        if self.pad_token_id is not None:
            token = token & (input_ids != self.pad_token_id)
        places = token.long().cumsum(dim=-1).argmax(dim=-1)  # [B]: of equal sums the first, which is the last token's
        return x.gather(1, places[:, None, None].expand(-1, 1, x.size(-1)))


class HeadModel(Body):
    """A body with a head; ``forward`` gives ``[B, S, …]``, or ``[B, 1, …]`` where the head pools."""

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
        """Answer for ``input_ids [B, S]``; ``attention_mask [B, S]`` is 0 for padding, all ones by default.

        Raises:
            GPT2Error: there are more tokens than ``n_positions``.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x, _ = self.hidden(input_ids, None, attention_mask)
        return self.head(self.ln_f(self.select(x, input_ids, attention_mask)))

    def select(self, x: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The positions that answer, of ``[B, S, E]``."""
        return self.pool(x, input_ids, attention_mask) if self.pools else x


class Base(HeadModel):
    """No head: the hidden states ``[B, S, E]`` themselves."""


class SequenceClassification(HeadModel):
    """Labels for a text, ``[B, 1, K]``."""

    pools = True

    def add_head(self, config: GPT2Config) -> None:
        self.score = Head(config.n_embd, config.num_labels, bias=False)

    def head(self, x: Tensor) -> Tensor:
        return self.score(x)


class TokenClassification(HeadModel):
    """Labels for every token, ``[B, S, K]``."""

    def add_head(self, config: GPT2Config) -> None:
        self.classifier = Head(config.n_embd, config.num_labels)

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(x)


class QuestionAnswering(HeadModel):
    """For every token a score that the answer starts there and one that it ends there, ``[B, S, 2]``."""

    def add_head(self, config: GPT2Config) -> None:
        self.qa_outputs = Head(config.n_embd, 2)

    def head(self, x: Tensor) -> Tensor:
        return self.qa_outputs(x)


class SequenceSummary(nn.Module):
    """One number for a text, with an activation if the config names one."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.summary = Head(config.n_embd, 1)
        self.activation = activation(config.summary_activation or "linear")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.summary(x))


class MultipleChoice(HeadModel):
    """A score for a text that is one of several choices, ``[B, 1, 1]``: the second head of ``GPT2DoubleHeadsModel``."""

    pools = True

    def add_head(self, config: GPT2Config) -> None:
        self.multiple_choice_head = SequenceSummary(config)

    def head(self, x: Tensor) -> Tensor:
        return self.multiple_choice_head(x)


# The class for a ``GPT2Config.head``; a model of double heads is the first and the last of these.
CLASSES: dict[str, type[Body]] = {
    LM: GPT2,
    "base": Base,
    "sequence-classification": SequenceClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    MULTIPLE_CHOICE: MultipleChoice,
}
