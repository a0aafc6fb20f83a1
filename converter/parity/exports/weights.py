"""Find the weights of a source in ONNX files of other programs, by their numbers.

Names tell nothing there: a weight may be called ``onnx::MatMul_512``. It may be transposed, doubled, or split into
queries, keys and values. So every tensor of the files is compared with every weight of its size, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.parity.exports.left_over import POSITIONS, QUERIES_KEYS_VALUES, THIRDS, explain
from converter.parity.exports.masks import faults_of_masks
from converter.parity.exports.matching import Match, match, orientations
from converter.parity.exports.quantized import quantized_of
from converter.parity.exports.tensors import Held, tensors_of
from converter.parity.exports.types import ROUNDED, TYPES, as_type
from converter.parity.verdict.found import Weights
from converter.weights.ledger import Ledger


@dataclass(frozen=True)
class Found:
    """The weights of a source in some files, and the numbers of those that are quantized.

    Attributes:
        weights: what was found.
        quantized: the name of each weight that is quantized → its numbers in the files.
        complete: whether it is known of each weight with which numbers the files compute.
    """

    weights: Weights
    quantized: Mapping[str, tuple[Match, ...]]
    complete: bool


def find_weights(files: Sequence[Path], ledger: Ledger) -> Found:
    """Look for each weight of a source among all tensors of some ONNX files.

    Raises:
        ModelFolderError: the numbers of a tensor are missing, or outside the folder.
    """
    tensors = [held for file in files for held in tensors_of(file)]
    search = _Search(tensors, ledger.weights)
    places = {name: search.find(name, weight) for name, weight in ledger.weights.items()}
    found = {name: place for name, place in places.items() if place is not None}
    matched = match([one for file in files for one in quantized_of(file)], ledger.weights)
    rounded = {name: f"{held[0].quantized.name}{held[0].how}" for name, held in matched.exact().items()}
    missing = [name for name in places if name not in found and name not in rounded]
    rest = explain(search.left_over, ledger.weights, missing)
    missing = [name for name in missing if name not in rest.explained and name not in rest.partly]
    weights = Weights(
        {name: place.how for name, place in found.items()} | rest.explained,
        {name: place.rounding for name, place in found.items() if place.rounding},
        rounded,
        rest.partly,
        tuple(missing),
        (*rest.notes, *matched.notes),
        (*rest.faults, *matched.faults, *_rounded_alone(found, ledger.weights), *faults_of_masks(tensors)),
    )
    complete = not matched.strangers and all(name in matched.by_weight for name in missing)
    return Found(weights, matched.by_weight, complete)


@dataclass(frozen=True)
class Place:
    """Where a weight is.

    Attributes:
        how: the tensor, and how it lies.
        kept: the element type in which it is written.
        rounding: the type to which it was rounded; empty if it was not.
    """

    how: str
    kept: str
    rounding: str


def _rounded_alone(found: Mapping[str, Place], weights: Mapping[str, LazyTensor]) -> list[str]:
    """Return a sentence for each weight that was rounded and widened again although others of its type were not."""
    widened = {name: place for name, place in found.items() if place.rounding not in ("", place.kept)}
    if not widened:
        return []
    whole = [name for name, place in found.items() if not place.rounding and _needs_float32(weights[name])]
    kinds = {found[name].kept for name in whole}
    return [
        f"{name} has other numbers in {place.how}: they were rounded to {place.rounding}, those of others were not"
        for name, place in widened.items()
        if place.kept in kinds
    ]


def _needs_float32(weight: LazyTensor) -> bool:
    """Tell whether a weight has numbers that shorter types do not hold."""
    numbers = to_float32(weight.memmap(), weight.dtype)
    shorter = (as_type(numbers, kind).astype(np.float32) for kind in ROUNDED["float32"][1:])
    return not any(np.array_equal(rounded, numbers) for rounded in shorter)


class _Search:
    """The tensors of some files, by size, type and a sum that does not depend on their order."""

    def __init__(self, tensors: Sequence[Held], weights: Mapping[str, LazyTensor]) -> None:
        sizes = {weight.size for weight in weights.values()}
        sizes |= {weight.size // len(THIRDS) for name, weight in weights.items() if QUERIES_KEYS_VALUES in name}
        rows, written = weights.get(POSITIONS), [held for held in tensors if held.dtype in TYPES]
        self.tensors = [held for held in written if held.size in sizes or _is_part(held, rows)]
        self.types = [name for name in TYPES if any(held.dtype == name for held in self.tensors)]
        self.used: set[int] = set()
        self.index: dict[tuple[str, int, int, int], list[int]] = {}
        for at, held in enumerate(self.tensors):
            self.index.setdefault(_key(held.dtype, held.array()), []).append(at)

    def find(self, name: str, weight: LazyTensor) -> Place | None:
        """Return which tensor a weight is, or which three are its queries, keys and values; None if none is."""
        numbers = to_float32(weight.memmap(), weight.dtype)
        whole = self._equal(numbers)
        if whole is not None or QUERIES_KEYS_VALUES not in name:
            return whole
        parts = [self._equal(part) for part in np.split(numbers, len(THIRDS), axis=-1)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        rounding = next((part.rounding for part in known if part.rounding), "")
        return Place(f"split into {', '.join(part.how for part in known)}", known[0].kept, rounding)

    def _equal(self, numbers: np.ndarray) -> Place | None:
        """Return which tensor has these numbers, in rows or in columns."""
        first: Place | None = None
        for kept, rounded in [(kind, rounding) for kind in self.types for rounding in ROUNDED[kind]]:
            expected = as_type(as_type(numbers, rounded), kept)
            for at in self.index.get(_key(kept, expected), []):
                how = _lies(self.tensors[at].array(), expected)
                if how is not None:
                    self.used.add(at)
                    place = Place(f"{self.tensors[at].name}{how}", kept, "" if rounded == "float32" else rounded)
                    first = first or place
        return first

    @property
    def left_over(self) -> list[Held]:
        """Return the tensors that are no weight."""
        return [held for at, held in enumerate(self.tensors) if at not in self.used and held.size > 1]


def _is_part(held: Held, rows: LazyTensor | None) -> bool:
    """Tell whether a tensor may be the first rows of a weight."""
    return rows is not None and held.shape[-1:] == rows.shape[-1:] and held.size < rows.size


def _key(dtype: str, array: np.ndarray) -> tuple[str, int, int, int]:
    """Return what two tensors with the same numbers have in common, in whatever order these lie."""
    bits = np.ascontiguousarray(array).ravel().view(f"u{array.dtype.itemsize}")
    return dtype, array.size, int(bits.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(bits))


def _lies(found: np.ndarray, expected: np.ndarray) -> str | None:
    """Return how a tensor lies that has the expected numbers; None if they lie in neither orientation."""
    bits = f"u{expected.dtype.itemsize}"
    for how, array in orientations(expected):
        if np.array_equal(found.ravel().view(bits), np.ascontiguousarray(array).ravel().view(bits)):
            return how
    return None
