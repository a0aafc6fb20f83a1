"""ONNX Runtime's own tool for GPT-2, step by step as its ``main`` takes them, without its tests of speed."""

from pathlib import Path

import torch
from exporting import serve, torchscript
from onnxruntime.transformers.models.gpt2.gpt2_helper import MODEL_CLASSES, Gpt2Helper
from onnxruntime.transformers.quantize_helper import QuantizeHelper


def export(
    source: Path,
    out: Path,
    model_class: str = "GPT2LMHeadModel",
    integers: str = "int32",
    optimize: bool = False,
    quantize: bool = False,
) -> None:
    torchscript()
    kind, _, padded = MODEL_CLASSES[model_class]
    model = kind.from_pretrained(source).eval()
    out.mkdir(parents=True)
    graph, dtype = str(out / "model.onnx"), getattr(torch, integers)
    Gpt2Helper.export_onnx(
        model,
        torch.device("cpu"),
        graph,
        has_position_ids=padded,
        has_attention_mask=padded,
        input_ids_dtype=dtype,
        position_ids_dtype=dtype,
        attention_mask_dtype=dtype,
    )
    if optimize:
        Gpt2Helper.optimize_onnx(graph, graph, False, model.config.n_head, model.config.n_embd)
    if quantize:
        QuantizeHelper.quantize_onnx_model(graph, graph, False)


if __name__ == "__main__":
    serve(export)
