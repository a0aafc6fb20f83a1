"""Run optimum-onnx: transformers' loop, on a graph in ONNX Runtime."""

from pathlib import Path

import torch
from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTModelForCausalLM
from protocol import Generate, serve
from torch_steps import generator


def open_model(folder: Path, variant: str, threads: int) -> Generate:  # noqa: ARG001 - there is only fp32
    torch.set_num_threads(threads)
    options = SessionOptions()
    options.intra_op_num_threads = threads
    return generator(ORTModelForCausalLM.from_pretrained(folder, session_options=options, use_io_binding=True))


if __name__ == "__main__":
    serve(open_model, "optimum-onnx", "transformers", "torch", "onnxruntime")
