"""Tokens that may not come next, by the rules of transformers' logits processors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def repeating(ids: np.ndarray, size: int) -> np.ndarray:
    """Return the tokens that would end a run of ``size`` tokens which stands in the text already."""
    if len(ids) < size:
        return np.array([], np.int64)
    runs = np.lib.stride_tricks.sliding_window_view(ids, size)
    same = (runs[:, :-1] == ids[len(ids) - size + 1 :]).all(axis=1)
    return runs[same, -1]


def completing(ids: np.ndarray, words: Sequence[Sequence[int]], end_ids: Collection[int]) -> list[int]:
    """Return the tokens that would complete one of ``words``. The end of text is no word."""

    def follows(before: Sequence[int]) -> bool:
        return len(before) <= len(ids) and ids[len(ids) - len(before) :].tolist() == list(before)

    return [last for *before, last in words if follows(before) and (before or last not in end_ids)]
