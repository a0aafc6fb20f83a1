"""The loop that a user writes who has a runtime and no library around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from protocol import Prompts

Arrays = dict[str, np.ndarray]
Step = Callable[[Arrays], Mapping[str, np.ndarray]]  # the graph's inputs → its outputs
Empty = Callable[[int], Arrays]  # the size of a batch → ``past_key_values.*`` without a position


def greedy(step: Step, empty: Empty, prompts: Prompts, new_tokens: int) -> Prompts:
    """The likeliest tokens after each prompt, which are padded on the left."""
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(row)) + row for row in prompts])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    cache, chosen = empty(len(prompts)), []
    for _ in range(new_tokens):
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        outputs = step({"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache})
        ids = outputs["logits"][:, -1:].argmax(-1)
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in cache}
        chosen.append(ids)
    return np.concatenate(chosen, 1).tolist()
