"""Know the element types in which the weights of an export may be written."""

from __future__ import annotations

import ml_dtypes
import numpy as np

TYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}

# The types to which a weight may have been rounded before it was written in a type. Some converters round and widen
# again.
ROUNDED = {
    "float32": ("float32", "float16", "bfloat16"),
    "float64": ("float32", "float16", "bfloat16"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}


def as_type(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers in an element type, rounded if it holds fewer digits."""
    with np.errstate(over="ignore"):  # beyond float16 it is infinite
        return numbers.astype(TYPES[dtype], copy=False)
