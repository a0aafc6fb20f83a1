"""Bring the outputs of all heads but the language model's into one form: ``[batch, positions, numbers]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from reference.head import HEADS, MULTIPLE_CHOICE

STACKED: dict[str, Callable[[Any], np.ndarray]] = {
    "base": lambda outputs: outputs["last_hidden_state"],
    "sequence-classification": lambda outputs: outputs["logits"][:, None],
    "token-classification": lambda outputs: outputs["logits"],
    "question-answering": lambda outputs: np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1),
    MULTIPLE_CHOICE: lambda outputs: outputs["mc_logits"].reshape(-1, 1, 1),
}


def choices(head: str, array: np.ndarray) -> np.ndarray:
    """Return the rows of a batch as the choices of one question, if the head compares choices."""
    return array[None] if HEADS[head].compares else array
