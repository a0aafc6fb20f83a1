"""Optimum of several ages, and the precisions and the layout that transformers.js's script gives to what it exports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
from exporting import serve, torchscript
from optimum.exporters.onnx import main_export


def export(source: Path, out: Path, precisions: Sequence[str] = (), hub: bool = False, **options: Any) -> None:
    torchscript()
    main_export(str(source), str(out), do_validation=False, **options)
    for graph in list(out.glob("*.onnx")):
        for precision in precisions:
            PRECISIONS[precision](graph, graph.with_name(f"{graph.stem}_{precision}.onnx"))
    if hub:  # graphs in a folder of their own, the rest beside it
        (out / "onnx").mkdir()
        for graph in list(out.glob("*.onnx")):
            graph.rename(out / "onnx" / graph.name)


def fp16(graph: Path, out: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), out)


def quantized(graph: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # the weights of a merged decoder's matrix products are outside of its branches
    quantize_dynamic(graph, out, weight_type=QuantType.QInt8, extra_options={"EnableSubgraph": True})


def q4(graph: Path, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(graph), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


PRECISIONS: dict[str, Callable[[Path, Path], None]] = {"fp16": fp16, "quantized": quantized, "q4": q4}

if __name__ == "__main__":
    serve(export)
