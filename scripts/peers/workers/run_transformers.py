"""Run transformers, without a conversion."""

from pathlib import Path

import torch
from protocol import Generate, serve
from torch_steps import generator
from transformers import GPT2LMHeadModel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def open_model(folder: Path, variant: str, threads: int) -> Generate:
    torch.set_num_threads(threads)
    precision, *device = variant.split()
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=DTYPES[precision]).eval()
    return generator(model.to(*device) if device else model)


if __name__ == "__main__":
    serve(open_model, "transformers", "torch")
