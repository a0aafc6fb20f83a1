"""What the head of a model can say of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Labels:
    """Labels and their probabilities, or of a regression its values; the largest first."""

    scores: dict[str, float]
    probabilities: bool = True


@dataclass(frozen=True)
class TokenLabels:
    """For each token where it stands in the text, its likeliest label and that label's probability.

    Attributes:
        tokens: ``(first character, end, text, label, probability)``; of token ids the places are those of the ids.
    """

    tokens: tuple[tuple[int, int, str, str, float], ...]


@dataclass(frozen=True)
class Span:
    """A part of the text that answers the question, where it stands there, and how probable it is."""

    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True)
class Choice:
    """How probable a text is among those that it was given with, and its score."""

    probability: float
    score: float


@dataclass(frozen=True)
class Embedding:
    """The hidden states of a text, ``[tokens, n_embd]`` float32."""

    tokens: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over the tokens, ``[n_embd]``."""
        return self.tokens.mean(axis=0)


Answer = Labels | TokenLabels | Span | Choice | Embedding
