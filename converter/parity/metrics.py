"""How far one leg's logits are from the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Positions looked at together; keeps the float64 copies of wide vocabularies small.
BLOCK_POSITIONS = 64

FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


@dataclass
class Error:
    """The difference between a leg and the truth over a case or several, in units of the logits.

    Attributes:
        square_sum, count: of the differences.
        maximum: of their absolute values; infinite if a logit is NaN or infinite.
        flips: positions whose likeliest token differs, each as the truth's margin between the two candidates.
        positions: how many were compared.
        misshapen: whether the logits are not even of the truth's shape.
    """

    square_sum: float = 0.0
    count: int = 0
    maximum: float = 0.0
    flips: list[float] = field(default_factory=list)
    positions: int = 0
    misshapen: bool = False

    @property
    def rms(self) -> float:
        """The root of the mean square."""
        return math.sqrt(self.square_sum / self.count) if self.count else 0.0

    def __add__(self, other: Error) -> Error:
        return Error(
            self.square_sum + other.square_sum,
            self.count + other.count,
            max(self.maximum, other.maximum),
            self.flips + other.flips,
            self.positions + other.positions,
            self.misshapen or other.misshapen,
        )


def compare(truth: np.ndarray, logits: np.ndarray, real: np.ndarray) -> Error:
    """The error of ``logits`` at the ``real`` positions; all ``[batch, tokens, …]``."""
    if logits.shape != truth.shape:
        return Error(math.inf, 1, math.inf, [math.inf], 1, misshapen=True)
    total = Error()
    true_rows, rows = truth[real], logits[real]
    for begin in range(0, len(rows), BLOCK_POSITIONS):
        true_block = true_rows[begin : begin + BLOCK_POSITIONS]
        block = rows[begin : begin + BLOCK_POSITIONS].astype(np.float64)
        if not np.isfinite(block).all():
            total += Error(math.inf, block.size, math.inf, [math.inf], len(block))
            continue
        difference = np.abs(block - true_block)
        best, chosen = true_block.argmax(axis=-1), block.argmax(axis=-1)
        at = np.arange(len(block))
        margins = (true_block[at, best] - true_block[at, chosen])[best != chosen]
        total += Error(
            float((difference**2).sum()), difference.size, float(difference.max()), margins.tolist(), len(block)
        )
    return total


def scale(truths: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> float:
    """The yardstick: RMS over positions of the logits' standard deviation over the vocabulary.

    Not their size: real GPT-2 logits share a large offset that softmax does not see.
    """
    variances = np.concatenate([truth[real[name]].var(axis=-1) for name, truth in truths.items()])
    return max(math.sqrt(float(variances.mean())), FLOAT32_EPSILON)
