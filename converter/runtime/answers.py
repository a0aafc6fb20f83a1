"""What the head of a model says of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Labels:
    """Labels and their probabilities, or the values of a regression; the largest first."""

    scores: dict[str, float]
    probabilities: bool = True


@dataclass(frozen=True)
class TokenLabels:
    """The likeliest label of each token, its probability, and where the token stands in the text.

    Attributes:
        tokens: ``(first character, end, text, label, probability)``; of token ids the places are those of the ids.
    """

    tokens: tuple[tuple[int, int, str, str, float], ...]


@dataclass(frozen=True)
class Span:
    """The part of the text that answers the question, its place, and its probability."""

    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True)
class Choice:
    """The probability of a text among the choices it was given with, and its score."""

    probability: float
    score: float


@dataclass(frozen=True)
class Embedding:
    """The hidden states of a text, ``[tokens, n_embd]`` float32."""

    tokens: np.ndarray

    def __repr__(self) -> str:
        return f"Embedding({self.tokens.shape[0]} tokens, width {self.tokens.shape[1]})"

    @property
    def mean(self) -> np.ndarray:
        """Return the mean over the tokens, ``[n_embd]``."""
        return self.tokens.mean(axis=0)


Answer = Labels | TokenLabels | Span | Choice | Embedding
