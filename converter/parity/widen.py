"""The shipped graph with every float32 made float64: the same nodes, computed without float32's rounding.

What is left of an error then is not rounding but meaning: a wrong GELU, a wrong epsilon, a wrong scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, numpy_helper

from converter.runtime.session import ortvalue, session_options

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


# Where ONNX Runtime looks for data files of a graph that it is handed as bytes.
DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Widened:
    """A session of the widened graph, and its weights, which the session uses where they are and does not own."""

    session: onnxruntime.InferenceSession
    weights: list[Any]


def widened_session(file: Path) -> Widened:
    """The graph in ``file``, widened, on the CPU."""
    model = onnx.load(file, load_external_data=False)
    options = session_options()
    options.add_session_config_entry(DATA_FOLDER, str(file.parent))
    weights: list[Any] = []
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOATS:
            continue
        array = numpy_helper.to_array(tensor, base_dir=str(file.parent)).astype(np.float64)
        if external_data_helper.uses_external_data(tensor):
            weights.append(ortvalue(array))
            options.add_initializer(tensor.name, weights[-1])
            tensor.data_type = TensorProto.DOUBLE
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            if attribute.HasField("t") and attribute.t.data_type in FLOATS:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    _scale_outside_attention(model.graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Widened(session, weights)


def _scale_outside_attention(graph: onnx.GraphProto) -> None:
    """Multiply q by Attention's ``scale`` before it: the operator itself takes scale's square root in float32, in
    every precision, and the error of that would stand in for errors of meaning."""
    nodes = []
    for node in graph.node:
        scale = next((a for a in node.attribute if node.op_type == "Attention" and a.name == "scale"), None)
        if scale is not None:
            scaled, factor = f"{node.input[0]}.scaled", f"{node.output[0]}.scale"
            graph.initializer.append(numpy_helper.from_array(np.array(float(scale.f)), factor))
            nodes.append(onnx.helper.make_node("Mul", [node.input[0], factor], [scaled]))
            node.input[0], scale.f = scaled, 1.0
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
