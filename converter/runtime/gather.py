"""A graph of nothing but Gather, which puts the rows or slots of a cache into another order where the cache lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from converter.runtime.ort import InferenceSession, open_session

GATHER_OPSET, GATHER_IR = 17, 8  # as old as the oldest graph that is written


def open_gather(
    pasts: Sequence[str], presents: Sequence[str], cache_type: Any, axis: int, provider: str
) -> InferenceSession:
    """Open a session that takes ``indices`` int64 and a cache named ``pasts``, and returns it as ``presents``.

    Args:
        cache_type: the cache's element type, numpy's.
        axis: 0 to take rows, 2 to take slots.
        provider: ONNX Runtime's name of the execution provider.
    """
    element = helper.np_dtype_to_tensor_dtype(np.dtype(cache_type))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [past, "indices"], [present], axis=axis)
            for past, present in zip(pasts, presents, strict=True)
        ],
        "take",
        [
            helper.make_tensor_value_info("indices", TensorProto.INT64, ["kept"]),
            *(helper.make_tensor_value_info(past, element, [None] * 4) for past in pasts),
        ],
        [helper.make_tensor_value_info(present, element, [None] * 4) for present in presents],
    )
    opset = [helper.make_opsetid("", GATHER_OPSET)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=GATHER_IR)
    return open_session(Path("a graph of Gather"), provider, threads=1, graph=made.SerializeToString())
