"""Every activation in the graph against transformers' own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest
import torch
from transformers.activations import ACT2FN

from converter.graph.activations import ACTIVATIONS, activation
from converter.graph.module import name_values
from reference.config import ACTIVATION_NAMES

# Wide enough to reach every bend: clipping at ±10, hardswish at ±3, both tails.
X = np.linspace(-13, 13, 521, dtype=np.float32)


def test_the_graph_has_the_activations_of_the_reference() -> None:
    assert sorted([*ACTIVATIONS, "prelu"]) == sorted(ACTIVATION_NAMES)


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_an_activation_is_transformers_own(name: str, opset: int) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="activation")
    builder = onnxscript.GraphBuilder(graph)
    x = builder.input("x", ir.DataType.FLOAT, ["n"])
    module = activation(name, ir.DataType.FLOAT)
    if name == "prelu":
        module.weight.const_value = ir.tensor(np.array([0.25], np.float32), name="weight")
    graph.outputs.append(module(builder.op, x))
    name_values(graph, module)
    graph.outputs[0].dtype = ir.DataType.FLOAT
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    ours = onnxruntime.InferenceSession(model).run(None, {"x": X})[0]
    theirs = ACT2FN[name].double()(torch.tensor(X, dtype=torch.float64)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
