"""Say what the tensors of a file are that are no weight of the source: one with other numbers, a multiple, a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.parity.exports.matching import orientations
from converter.parity.exports.tensors import Held
from converter.parity.exports.types import as_type

# A tensor with this share of a weight's numbers is that weight with some numbers changed, not another one.
EDITED_SHARE = 0.5

# A tensor whose median error is this small a share of a weight's spread is that weight, rounded or scaled.
NEAR = 0.02

# A tensor is a multiple of a weight if this is the largest error that is left, as a share of the largest number.
MULTIPLE = 1e-5

QUERIES_KEYS_VALUES = ".attn.c_attn."
THIRDS = ("q", "k", "v")
POSITIONS = "wpe.weight"  # whose first rows alone are used by a file of a fixed size


@dataclass
class LeftOver:
    """What is known of the tensors that are no weight of the source as it is.

    Attributes:
        faults: a sentence for each that is a weight with other numbers.
        notes: a sentence for each that is a multiple of a weight.
        explained: the names of the weights of which there is a multiple → which.
        partly: the names of the weights of which there is a part → which.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    explained: dict[str, str] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A weight or a piece of it that a tensor may be.

    Attributes:
        weight: the name of the weight.
        part: which part of it; empty for all of it.
        numbers: float32.
    """

    weight: str
    part: str
    numbers: np.ndarray

    @property
    def name(self) -> str:
        """Return what it is called in a sentence."""
        return f"{self.part} of {self.weight}" if self.part else self.weight


def explain(tensors: Sequence[Held], weights: Mapping[str, LazyTensor], missing: Sequence[str]) -> LeftOver:
    """Compare tensors that are no weight with the weights whose size they have.

    Args:
        missing: the names of the weights that were not found. A tensor is one of these rather than another.
    """
    found = LeftOver()
    for held in tensors:
        array = held.array().astype(np.float64)
        for piece in _pieces(held, weights, missing):
            if piece.weight not in found.explained and _tell(held.name, array, piece, missing, found):
                break
    return found


def _pieces(held: Held, weights: Mapping[str, LazyTensor], missing: Sequence[str]) -> Iterator[Piece]:
    """Yield the weights and pieces of a tensor's size, missing ones first, rounded to its type."""
    for name in sorted(weights, key=lambda name: name not in missing):
        weight = weights[name]
        rows, rest = divmod(held.size, weight.shape[-1])
        first_rows = name == POSITIONS and name in missing and not rest and 0 < rows < weight.shape[0]
        thirds = QUERIES_KEYS_VALUES in name and held.size * len(THIRDS) == weight.size
        if not (weight.size == held.size or first_rows or thirds):
            continue
        numbers = as_type(to_float32(weight.memmap(), weight.dtype), held.dtype)
        if weight.size == held.size:
            yield Piece(name, "", numbers)
        elif first_rows:
            yield Piece(name, f"the first {rows} of {weight.shape[0]} rows", numbers[:rows])
        else:
            thirds_of_it = np.split(numbers, len(THIRDS), axis=-1)
            yield from (Piece(name, part, third) for part, third in zip(THIRDS, thirds_of_it, strict=True))


def _tell(name: str, array: np.ndarray, piece: Piece, missing: Sequence[str], found: LeftOver) -> bool:
    """Write down what a tensor is of a piece of a weight; tell whether it is anything."""
    is_missing, numbers = piece.weight in missing, piece.numbers.astype(np.float64)
    if piece.part and np.array_equal(array.ravel(), numbers.ravel()):
        found.partly |= {piece.weight: piece.part} if piece.weight == POSITIONS else {}
        return True
    factors = _factors(array, numbers, piece) if is_missing else ""
    if factors:
        found.notes.append(f"{name} is {piece.name} times {factors}; the legs judge whether that is right")
        found.explained[piece.weight] = f"{name}, {factors} times the source's"
        return True
    fault = _changed(name, array, piece.name, numbers, is_missing)
    found.faults += [fault] if fault else []
    return bool(fault)


def _factors(array: np.ndarray, numbers: np.ndarray, piece: Piece) -> str:
    """Return by what a tensor is a multiple of a weight, or its queries, keys and values are; empty if it is none.

    Some exporters multiply the queries' weights by the attention scale.
    """
    whole = _factor(array, numbers)
    if whole not in (0.0, 1.0):
        return f"{whole:.9g}"
    if piece.part or QUERIES_KEYS_VALUES not in piece.weight or array.shape != numbers.shape:
        return ""
    pairs = [np.split(each, len(THIRDS), axis=-1) for each in (array, numbers)]
    thirds = [_factor(third, expected) for third, expected in zip(*pairs, strict=True)]
    if not all(thirds) or set(thirds) == {1.0}:
        return ""
    return f"{', '.join(f'{third:.9g}' for third in thirds)} (q, k, v)"


def _factor(array: np.ndarray, numbers: np.ndarray) -> float:
    """Return by what a tensor is a multiple of a weight: 1 if it has its numbers, 0 if it is no multiple."""
    for _, expected in orientations(numbers):
        flat, found = np.ascontiguousarray(expected).ravel(), array.ravel()
        if np.array_equal(flat, found):
            return 1.0
        square = float(flat @ flat)
        factor = float(flat @ found) / square if square else 0.0
        changed = abs(factor - 1) > NEAR  # else some numbers differ, and the others are the same
        if factor and changed and np.abs(found - factor * flat).max() <= MULTIPLE * np.abs(found).max():
            return factor
    return 0.0


def _changed(name: str, array: np.ndarray, weight: str, numbers: np.ndarray, missing: bool) -> str:
    """Return what differs between a tensor and the weight that it is; empty if it is another one."""
    for how, expected in orientations(numbers):
        flat, found = np.ascontiguousarray(expected).ravel(), array.ravel()
        differs = found != flat
        near = missing and float(np.median(np.abs(found - flat))) <= NEAR * float(flat.std())
        if differs.any() and (1 - differs.mean() >= EDITED_SHARE or near):
            at = int(differs.argmax())
            place = [int(i) for i in np.unravel_index(at, expected.shape)]
            return (
                f"{weight} has other numbers in {name}: {found[at]:.9g} at {place[::-1] if how else place}; the source "
                f"has {flat[at]:.9g} ({int(differs.sum())} of {len(flat)} numbers differ)"
            )
    return ""
