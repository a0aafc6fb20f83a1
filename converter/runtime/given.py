"""Initializers of a graph whose numbers are handed to the session in memory, as a protobuf holds 2 GB at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from converter.runtime.ort import OrtValue, SessionOptions


def outside(name: str, dtype: np.dtype[Any], shape: Sequence[int], there: str) -> TensorProto:
    """Return an initializer without its numbers.

    Args:
        there: any data file beside the graph: ONNX Runtime does not read it, but wants one that is there.
    """
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=there)
    return tensor


def give(options: SessionOptions, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """Hand the numbers of initializers over; return what must live as long as the session may read them."""
    values = [OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    for name, value in zip(arrays, values, strict=True):
        options.add_initializer(name, value)
    return values
