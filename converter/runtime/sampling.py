"""From logits to a token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.errors import PromptError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above it logits are divided by it and a token is drawn.
        top_k: draw among the k likeliest (0: among all).
        top_p: draw among the fewest likeliest tokens whose probabilities reach p (Holtzman et al., arXiv:1904.09751).

    Raises:
        PromptError: a number is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not sound:
                raise PromptError(f"{name} is {getattr(self, name)}; expected {expected}")

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One token for each row of ``[batch, vocab_size]`` logits."""
        if self.temperature == 0:
            return logits.argmax(axis=-1)
        probabilities = self.probabilities(logits)
        thresholds = rng.random(len(logits))[:, None] * probabilities.sum(axis=-1, keepdims=True)
        return (probabilities.cumsum(axis=-1) <= thresholds).sum(axis=-1).clip(max=logits.shape[-1] - 1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """What ``choose`` draws from: ``[batch, vocab_size]`` float64, zero for what is left out."""
        scaled = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # the likeliest token is at 0 however small the temperature
            scaled = (scaled - scaled.max(axis=-1, keepdims=True)) / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            kth = np.partition(scaled, -self.top_k, axis=-1)[:, -self.top_k, None]
            scaled = np.where(scaled < kth, -np.inf, scaled)
        probabilities = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        if self.top_p < 1:
            order = np.argsort(-probabilities, axis=-1, kind="stable")
            ordered = np.take_along_axis(probabilities, order, axis=-1)
            ordered[ordered.cumsum(axis=-1) - ordered >= self.top_p] = 0  # the token that crosses p is kept
            np.put_along_axis(probabilities, order, ordered, axis=-1)
            probabilities /= probabilities.sum(axis=-1, keepdims=True)
        return probabilities
