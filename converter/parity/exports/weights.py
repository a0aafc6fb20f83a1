"""Find the weights of a source in ONNX files of other programs, by their numbers.

Names tell nothing there: a weight may be called ``onnx::MatMul_512``. It may be transposed, doubled, or split into
queries, keys and values. So every tensor of the files is compared with every weight of its size, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.parity.exports.matching import Match, match, orientations
from converter.parity.exports.quantized import quantized_of
from converter.parity.exports.tensors import Held, tensors_of
from converter.parity.verdict.found import Weights
from converter.weights.ledger import Ledger

# The element types in which a float32 weight may be written.
TYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}

# The types to which it may have been rounded before it was written in a type. Some converters round and widen again.
ROUNDED = {
    "float32": ("float32", "float16", "bfloat16"),
    "float64": ("float32", "float16", "bfloat16"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}

# A tensor with this share of a weight's numbers is that weight with some numbers changed, not another one.
EDITED_SHARE = 0.5

# A tensor whose median error is this small a share of a weight's spread is that weight, rounded or scaled.
NEAR = 0.02

# A tensor is a multiple of a weight if this is the largest error that is left, as a share of the largest number.
MULTIPLE = 1e-5

THIRDS = ("q", "k", "v")


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
    search = _Search([held for file in files for held in tensors_of(file)], ledger.weights)
    found, rounding, missing = dict[str, str](), dict[str, str](), list[str]()
    for name, weight in ledger.weights.items():
        how, rounding_type = search.find(name, weight)
        if how:
            found[name] = how
        else:
            missing.append(name)
        if how and rounding_type:
            rounding[name] = rounding_type
    matched = match([one for file in files for one in quantized_of(file)], ledger.weights)
    rounded = {name: f"{held[0].quantized.name}{held[0].how}" for name, held in matched.exact().items()}
    missing = [name for name in missing if name not in rounded]
    faults, notes, explained = search.left_over(missing, ledger.weights)
    missing = [name for name in missing if name not in explained]
    faults, notes = [*faults, *matched.faults], [*notes, *matched.notes]
    weights = Weights(found | explained, rounding, rounded, tuple(missing), tuple(notes), tuple(faults))
    complete = not matched.strangers and all(name in matched.by_weight for name in missing)
    return Found(weights, matched.by_weight, complete)


class _Search:
    """The tensors of some files, by size, type and a sum that does not depend on their order."""

    def __init__(self, tensors: Sequence[Held], weights: Mapping[str, LazyTensor]) -> None:
        sizes = {weight.size for weight in weights.values()}
        sizes |= {size // len(THIRDS) for size in sizes if size % len(THIRDS) == 0}
        self.tensors = [held for held in tensors if held.size in sizes and held.dtype in TYPES]
        self.types = [name for name in TYPES if any(held.dtype == name for held in self.tensors)]
        self.used: set[int] = set()
        self.index: dict[tuple[str, int, int, int], list[int]] = {}
        for at, held in enumerate(self.tensors):
            self.index.setdefault(_key(held.dtype, held.array()), []).append(at)

    def find(self, name: str, weight: LazyTensor) -> tuple[str, str]:
        """Return which tensor a weight is and how it lies, and the type to which it was rounded, if there is one."""
        numbers = to_float32(weight.memmap(), weight.dtype)
        whole = self._equal(numbers)
        if whole[0] or ".attn.c_attn." not in name:
            return whole
        parts = [self._equal(part) for part in np.split(numbers, len(THIRDS), axis=-1)]
        if not all(how for how, _ in parts):
            return "", ""
        return f"split into {', '.join(how for how, _ in parts)}", parts[0][1]

    def _equal(self, numbers: np.ndarray) -> tuple[str, str]:
        """Return which tensor has these numbers, in rows or in columns, and to which type they were rounded."""
        first = "", ""
        for kept, rounded in [(kind, rounding) for kind in self.types for rounding in ROUNDED[kind]]:
            expected = _as(_as(numbers, rounded), kept)
            for at in self.index.get(_key(kept, expected), []):
                how = _lies(self.tensors[at].array(), expected)
                if how is None:
                    continue
                self.used.add(at)
                if not first[0]:
                    first = f"{self.tensors[at].name}{how}", "" if rounded == "float32" else rounded
        return first

    def left_over(
        self, missing: Sequence[str], weights: Mapping[str, LazyTensor]
    ) -> tuple[list[str], list[str], dict[str, str]]:
        """Compare the tensors that are no weight with weights of their size.

        Returns:
            Sentences about weights with other numbers, sentences about multiples, and what the latter are.
        """
        faults, notes, explained = list[str](), list[str](), dict[str, str]()
        for at, held in enumerate(self.tensors):
            if at in self.used or held.size == 1:
                continue
            array = held.array().astype(np.float64)
            for name in sorted(weights, key=lambda name: name not in missing):
                if weights[name].size != held.size or name in explained:
                    continue
                numbers = _as(to_float32(weights[name].memmap(), weights[name].dtype), held.dtype).astype(np.float64)
                factor = _factor(array, numbers) if name in missing else 0.0
                if factor:
                    notes.append(f"{held.name} is {name} times {factor:.9g}; the legs judge whether that is right")
                    explained[name] = f"{held.name}, {factor:.9g} times the source's"
                    break
                fault = _changed(held.name, array, name, numbers, name in missing)
                if fault:
                    faults.append(fault)
                    break
        return faults, notes, explained


def _key(dtype: str, array: np.ndarray) -> tuple[str, int, int, int]:
    """Return what two tensors with the same numbers have in common, in whatever order these lie."""
    bits = np.ascontiguousarray(array).ravel().view(f"u{array.dtype.itemsize}")
    return dtype, array.size, int(bits.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(bits))


def _as(numbers: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float16 it is infinite
        return numbers.astype(TYPES[dtype], copy=False)


def _lies(found: np.ndarray, expected: np.ndarray) -> str | None:
    """Return how a tensor lies that has the expected numbers; None if they lie in neither orientation."""
    bits = f"u{expected.dtype.itemsize}"
    for how, array in orientations(expected):
        if np.array_equal(found.ravel().view(bits), np.ascontiguousarray(array).ravel().view(bits)):
            return how
    return None


def _factor(array: np.ndarray, numbers: np.ndarray) -> float:
    """Return by what a tensor is a multiple of a weight; 0 if it is none."""
    for _, expected in orientations(numbers):
        flat, found = np.ascontiguousarray(expected).ravel(), array.ravel()
        square = float(flat @ flat)
        factor = float(flat @ found) / square if square else 0.0
        changed = abs(factor - 1) > NEAR  # else some numbers differ, and the others are the same
        if factor and changed and np.abs(found - factor * flat).max() <= MULTIPLE * np.abs(found).max():
            return factor
    return 0.0


def _changed(name: str, array: np.ndarray, weight: str, numbers: np.ndarray, missing: bool) -> str:
    """Return what differs between a tensor and the weight that it is; empty if it is another one."""
    for _, expected in orientations(numbers):
        flat, found = np.ascontiguousarray(expected).ravel(), array.ravel()
        differs = found != flat
        near = missing and float(np.median(np.abs(found - flat))) <= NEAR * float(flat.std())
        if 1 - differs.mean() >= EDITED_SHARE or near:
            at = int(differs.argmax())
            where = [int(i) for i in np.unravel_index(at, expected.shape)]
            return (
                f"{weight} has other numbers in {name}: {found[at]:.9g} at {where}; the source has {flat[at]:.9g} "
                f"({int(differs.sum())} of {len(flat)} numbers differ)"
            )
    return ""
