"""Tell which weight of a source each quantized weight of a file is, by the numbers that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.parity.exports.quantized import Quantized
from converter.parity.legs.unquantize import Dequantized

# Most quantizers take the nearest number. Some round the zero point too, which shifts all numbers by up to half a step.
# Both with what float32 rounds off.
HALF_STEP, STEP = 0.501, 1.001

# A weight with this share of its numbers within a step of the source's is that weight. Some quantizers move more than a
# step to lower the error of a whole product.
SAME_SHARE = 0.5

# Whatever a quantizer does, it does to many numbers. Where no more than this share are others than those of the rest's
# rule, they were changed.
EDITED_SHARE = 0.01

SAMPLED = 257  # rows that are compared before all are; a prime, so that no dimension divides it


@dataclass(frozen=True)
class Match:
    """A quantized weight, and how it lies.

    Attributes:
        quantized: the weight.
        how: empty, or " transposed": it lies the other way round than the source's.
        exact: whether all of its numbers are as its quantizer's rule gives them.
    """

    quantized: Quantized
    how: str
    exact: bool

    def numbers(self) -> np.ndarray:
        """Return the numbers that it stands for, as the source has them lie."""
        values = self.quantized.read().values
        return values.T if self.how else values


@dataclass
class Matches:
    """What was found out about the quantized weights of some files.

    Attributes:
        by_weight: the name of each weight that is quantized → its numbers in the files.
        faults: a sentence for each weight in which a few numbers are others.
        notes: a sentence for each that was quantized by another rule, or is no weight.
        strangers: the names of those that are no weight.
    """

    by_weight: dict[str, tuple[Match, ...]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def exact(self) -> dict[str, list[Match]]:
        """Return the weights whose numbers are as a quantizer's rule gives them."""
        found = {name: [match for match in held if match.exact] for name, held in self.by_weight.items()}
        return {name: held for name, held in found.items() if held}


def match(quantized: Sequence[Quantized], weights: Mapping[str, LazyTensor]) -> Matches:
    """Look for the weight that each quantized weight is."""
    found = Matches()
    for one in quantized:
        _look_for(one, weights, found)
    return found


def orientations(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield an array as it lies, and transposed if it is a matrix."""
    yield "", array
    if array.ndim == 2:
        yield " transposed", array.T


def _look_for(one: Quantized, weights: Mapping[str, LazyTensor], found: Matches) -> None:
    """Look for the weight that a quantized weight is, and write down what was found."""
    held = one.read()
    steps = np.broadcast_to(np.abs(held.step), held.values.shape)
    there = [name for name, weight in weights.items() if weight.size == held.values.size]
    best, nearest, how = 0.0, "", ""
    for name in sorted(there, key=lambda name: name in found.by_weight):
        numbers = to_float32(weights[name].memmap(), weights[name].dtype)
        for lies, array in orientations(numbers):
            share = _share(held.values, steps, array) if array.shape == held.values.shape else 0.0
            best, nearest, how = (share, name, lies) if share > best else (best, nearest, how)
        if best == 1:
            break
    if best < SAME_SHARE:
        found.strangers.append(one.name)
        found.notes.append(f"the quantized weight {one.name} is none of the source's")
        return
    source = to_float32(weights[nearest].memmap(), weights[nearest].dtype)
    others = _others(held, steps, source.T if how else source)
    edited = 0 < others.mean() <= EDITED_SHARE
    match = Match(one, how, not others.any())
    found.by_weight[nearest] = (*found.by_weight.get(nearest, ()), match)
    if not match.exact:
        said = _differs(match, held, nearest, source.T if how else source, others)
        (found.faults if edited else found.notes).append(said)


def _share(values: np.ndarray, steps: np.ndarray, numbers: np.ndarray) -> float:
    """Return the share of numbers that are within a step; 0 if some rows show that most are not."""
    some = np.s_[:: max(1, len(numbers) // SAMPLED)]
    for part in (some, np.s_[:]):
        share = float((np.abs(values[part] - numbers[part]) <= STEP * steps[part]).mean())
        if share < SAME_SHARE:
            return 0.0
    return share


def _others(held: Dequantized, steps: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Tell which numbers are others than the quantizer's rule gives: the nearest, or for nearly all within a step."""
    off = held.values - source
    low, high = np.minimum(*held.ends), np.maximum(*held.ends)
    room = np.where(off > 0, held.values - steps >= low - steps / 2, held.values + steps <= high + steps / 2)
    nearer = (np.abs(off) > HALF_STEP * steps) & room
    return nearer if nearer.mean() <= EDITED_SHARE else np.abs(off) > STEP * steps


def _differs(match: Match, held: Dequantized, name: str, source: np.ndarray, others: np.ndarray) -> str:
    """Return where a quantized weight has another number than the source's quantized."""
    place = np.unravel_index(int(others.argmax()), others.shape)
    where = [int(at) for at in (place[::-1] if match.how else place)]
    return (
        f"{name} has other numbers in {match.quantized.name}: {held.values[place]:.6g} at {where}, the source has "
        f"{source[place]:.6g} ({int(others.sum())} of {others.size} numbers are not the nearest)"
    )
