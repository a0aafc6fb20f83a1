"""The modules of quantized graphs, each for itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest
from onnx.reference import ReferenceEvaluator

from converter.graph.build import MIN_OPSET
from converter.graph.layers import QuantizedEmbedding
from converter.weights.precisions import Blocks
from converter.weights.quantize import dequantize, quantize_rows

ROWS = 7


@pytest.mark.parametrize("width", [12, 40, 64])  # narrower than a block; the last block is filled up; whole blocks
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("opset", [MIN_OPSET, 23])
def test_an_embedding_dequantizes_the_rows_that_ids_name(opset: int, bits: int, symmetric: bool, width: int) -> None:
    blocks = Blocks(bits, 32, symmetric)
    made = quantize_rows(np.random.default_rng(0).standard_normal((ROWS, width), np.float32), blocks)
    arrays = {"weight": made.numbers.reshape(ROWS, blocks.count(width), -1), "scales": made.scales}
    if made.zero_points is not None:
        arrays["zero_points"] = made.zero_points
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="embedding")
    builder = onnxscript.GraphBuilder(graph)
    module = QuantizedEmbedding(ROWS, width, blocks)
    graph.outputs.append(module(builder.op, builder.input("ids", ir.DataType.INT64, ["batch", "tokens"])))
    for value in module.parameters():
        value.const_value = ir.tensor(arrays[value.name], name=value.name)
    model = ir.to_proto(ir.Model(graph, ir_version=8))

    ids = np.array([[3, 1, 6], [0, 2, 2]])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for runtime in (session, ReferenceEvaluator(model)):
        assert np.array_equal(runtime.run(None, {"ids": ids})[0], dequantize(made, blocks, width)[ids])
