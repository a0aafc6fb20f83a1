"""How likely tokens are by a model's logits, before options change anything."""

from __future__ import annotations

import numpy as np


def likelihoods(logits: np.ndarray, token: int, best: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the log-probability of a token, and the ``best`` likeliest tokens with theirs, the likeliest first."""
    scores = log_softmax(logits)
    some = np.argpartition(-scores, min(best, len(scores)) - 1)[:best] if best else np.array([], np.int64)
    some = some[np.lexsort((some, -scores[some]))]
    return float(scores[token]), tuple(zip(some.tolist(), scores[some].tolist(), strict=True))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of softmax over the last dimension, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
