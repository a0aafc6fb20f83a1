"""Compare lossy logits with float32's, on the bundled checkpoint's held-out text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.data import HELD_OUT
from converter.runtime.session import Model

WINDOWS = 8  # of the held-out text, on which distributions are compared


@dataclass(frozen=True)
class Quality:
    """The quality of lossy logits, compared with float32's.

    It holds the ratio of perplexities, the mean divergence in nats a token, and how often the likeliest token agrees.
    """

    ratio: float
    kl: float
    top_1: float


def windows(exact: Model) -> np.ndarray:
    """Return token ids of the held-out text, ``[WINDOWS, n_positions]``."""
    assert exact.tokenizer is not None
    size = exact.config.n_positions
    ids = exact.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8")).ids
    return np.array(ids[: size * WINDOWS]).reshape(-1, size)


def quality(exact: np.ndarray, found: np.ndarray, ids: np.ndarray) -> Quality:
    """Return the quality of ``found``, logits ``[rows, tokens, vocab_size]`` after ``ids`` ``[rows, tokens]``."""
    true, other = log_softmax(exact), log_softmax(found)
    kl = (np.exp(true) * (true - other)).sum(axis=-1).mean()
    same = (true.argmax(axis=-1) == other.argmax(axis=-1)).mean()
    surprise = [-np.take_along_axis(each[:, :-1], ids[:, 1:, None], axis=-1).mean() for each in (true, other)]
    return Quality(float(np.exp(surprise[1] - surprise[0])), float(kl), float(same))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
