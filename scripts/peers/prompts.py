"""Make the prompts that every candidate is given."""

from __future__ import annotations

import random

VOCABULARY = 50257
SANITY_PROMPTS, SANITY_LENGTH, SANITY_NEW = 32, 16, 4


def random_prompts(batch: int, length: int, seed: int) -> list[list[int]]:
    """Return random prompts, the same for every candidate."""
    rng = random.Random(f"{batch} {length} {seed}")
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for _ in range(batch)]


# A text that every model writes before it is measured, so that the runtime has prepared everything.
WARM = random_prompts(1, SANITY_LENGTH, seed=0), 96
