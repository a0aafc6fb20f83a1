"""A graph of nothing but Gather, which puts the rows or slots of a cache into another order where the cache lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

if TYPE_CHECKING:
    import onnxruntime

    from converter.runtime.session import Model

GATHER_OPSET, GATHER_IR = 17, 8  # as old as the oldest graph that is written


def open_gather(model: Model, axis: int) -> onnxruntime.InferenceSession:
    """A session that takes ``indices`` int64 and a cache under its names as inputs, and gives it as the outputs."""
    from converter.runtime.session import open_session

    element = helper.np_dtype_to_tensor_dtype(np.dtype(model.cache_type))
    pasts, presents = model.cache_names
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
    provider = model.session.get_providers()[0]
    return open_session(Path("a graph of Gather"), provider, threads=1, graph=made.SerializeToString())
