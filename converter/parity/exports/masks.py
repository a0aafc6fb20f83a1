"""Look at the causal masks that a file holds as tensors: a cell that is wrong may show in long texts only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from converter.parity.exports.tensors import Held

# A square tensor is a causal mask if each of its sides has one value in this share of its cells.
SAME_SHARE = 0.9


def faults_of_masks(tensors: Sequence[Held]) -> Iterator[str]:
    """Yield a sentence for each causal mask of which some cells are on the wrong side."""
    for held in tensors:
        shape = [size for size in held.shape if size != 1]
        if len(shape) == 2 and shape[0] == shape[1]:
            yield from _faults(held.name, held.array().reshape(shape))


def _faults(name: str, cells: np.ndarray) -> Iterator[str]:
    sees = np.tri(len(cells), dtype=bool)
    sides = [(side, *_usual(cells[side])) for side in (sees, ~sees)]
    if sides[0][1] == sides[1][1] or any(share < SAME_SHARE for *_, share in sides):
        return
    for side, usual, share in sides:
        if share < 1:
            at = tuple(int(i) for i in np.argwhere(side & (cells != usual))[0])
            yield f"the causal mask {name} has {cells[at]} at {list(at)}, where every other cell has {usual}"


def _usual(cells: np.ndarray) -> tuple[np.generic, float]:
    """Return the value that most cells have, and their share."""
    found, counts = np.unique(cells, return_counts=True)
    return found[counts.argmax()], float(counts.max() / cells.size)
