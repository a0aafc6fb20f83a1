"""What people do to an export that is right before they use it, by the tools that they use: it stays right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import shape_inference, version_converter
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.optimizer import optimize_model

from tests.clients.surgery import Surgery

Treatment = Callable[[Path, Path, dict[str, Any]], None]  # file, where the new one goes, the config of the source


def changed(change: Callable[[onnx.ModelProto], onnx.ModelProto | None], **saving: Any) -> Treatment:
    """A treatment of a model in memory: what ``change`` returns, or the model that it has changed."""

    def treat(file: Path, out: Path, config: dict[str, Any]) -> None:
        model = onnx.load(file)
        onnx.save(change(model) or model, out, **saving)

    return treat


def optimized(level: str) -> Treatment:
    """As ONNX Runtime writes a graph that it has optimized for this machine."""

    def treat(file: Path, out: Path, config: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        options.optimized_model_filepath = str(out)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    return treat


def fused(**options: Any) -> Treatment:
    """As ONNX Runtime's tool for transformers joins operators."""

    def treat(file: Path, out: Path, config: dict[str, Any]) -> None:
        sizes = {"num_heads": config["n_head"], "hidden_size": config["n_embd"]}
        optimize_model(str(file), model_type="gpt2", **sizes, **options).save_model_to_file(str(out))

    return treat


def dynamic(**options: Any) -> Treatment:
    return lambda file, out, config: quantize_dynamic(file, out, **options)


def blocks(bits: int, size: int, symmetric: bool) -> Treatment:
    def treat(file: Path, out: Path, config: dict[str, Any]) -> None:
        settings = DefaultWeightOnlyQuantConfig(block_size=size, is_symmetric=symmetric, bits=bits)
        quantizer = MatMulNBitsQuantizer(onnx.load(file), algo_config=settings)
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))

    return treat


def opset(version: int) -> Treatment:
    return changed(lambda model: version_converter.convert_version(model, version))


def renamed(file: Path, out: Path, config: dict[str, Any]) -> None:
    """Weights and values are called something else, inputs and outputs are not."""
    model = onnx.load(file)
    outer = {value.name for value in (*model.graph.input, *model.graph.output)}
    inner = [tensor.name for tensor in model.graph.initializer]
    inner += [name for node in model.graph.node for name in node.output if name and name not in outer]
    names = {name: f"v{at}" for at, name in enumerate(inner)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for at, node in enumerate(model.graph.node):
        node.name = f"n{at}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    onnx.save(model, out)


def int32(file: Path, out: Path, config: dict[str, Any]) -> None:
    """Token ids are taken as int32."""
    model = onnx.load(file)
    Surgery(model, config).feed("input_ids", lambda write, x: write.Cast(x, to=onnx.TensorProto.INT64))
    ids = next(value for value in model.graph.input if value.name == "input_ids")
    ids.type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(model, out)


def two_rows(model: onnx.ModelProto) -> None:
    """The batch is always of two rows."""
    ids = next(value for value in model.graph.input if value.name == "input_ids")
    make_dim_param_fixed(model.graph, ids.type.tensor_type.shape.dim[0].dim_param, 2)


def halves(**options: Any) -> Treatment:
    return changed(lambda model: convert_float_to_float16(model, **options))


# ONNX Runtime needs shapes and axes in the graph itself.
OUTSIDE = {"save_as_external_data": True, "size_threshold": 1024}

TREATMENTS: dict[str, Treatment] = {
    "optimized offline, basic": optimized("ENABLE_BASIC"),
    "optimized offline, extended": optimized("ENABLE_EXTENDED"),
    "optimized offline, all": optimized("ENABLE_ALL"),
    "fused": fused(opt_level=0),
    "fused and optimized": fused(opt_level=1),
    "shapes inferred": changed(shape_inference.infer_shapes),
    "weights in a file": changed(lambda model: model, location="weights.bin", **OUTSIDE),
    "weights in many files": changed(lambda model: model, all_tensors_to_one_file=False, **OUTSIDE),
    "opset 19": opset(19),
    "opset 21": opset(21),
    "opset 23": opset(23),
    "renamed": renamed,
    "int32 ids": int32,
    "2 rows": changed(two_rows),
    "float16": halves(),
    "float16 inside": halves(keep_io_types=True),
    "float16 but for norms": halves(keep_io_types=True, op_block_list=["LayerNormalization", "Softmax"]),
    "int8": dynamic(weight_type=QuantType.QInt8),
    "uint8": dynamic(weight_type=QuantType.QUInt8),
    "int8 by channel": dynamic(weight_type=QuantType.QInt8, per_channel=True),
    "int8 of 7 bits": dynamic(weight_type=QuantType.QInt8, reduce_range=True),
    "blocks of 16, 4 bits": blocks(4, 16, True),
    "blocks of 32, 4 bits, zero points": blocks(4, 32, False),
    "blocks of 16, 8 bits": blocks(8, 16, True),
}
