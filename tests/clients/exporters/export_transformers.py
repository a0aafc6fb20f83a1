"""transformers' own exporter: a graph for the prompt and one for each token after it, or one of a whole call."""

from pathlib import Path
from typing import Any

import torch
from exporting import serve
from transformers import GenerationConfig, GPT2LMHeadModel
from transformers.exporters import OnnxConfig, OnnxExporter

ROWS, LENGTH, PADDING = 2, 5, 2


def export(
    source: Path,
    out: Path,
    generation: bool = True,
    padded: bool = True,
    dtype: str = "float32",
    static_cache: int = 0,
    multi_token_decode: bool = False,
    **config: Any,
) -> None:
    model = GPT2LMHeadModel.from_pretrained(source, dtype=getattr(torch, dtype)).eval()
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    if padded:  # generate() leaves a mask out that masks nothing, and so does the graph
        mask[1:, :PADDING] = 0
    example = {"input_ids": torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH), "attention_mask": mask}
    config = OnnxConfig(**{"dynamic": True} | config)
    if generation:
        cache = {"cache_implementation": "static", "max_cache_len": static_cache} if static_cache else {}
        settings = GenerationConfig(**cache, eos_token_id=model.config.eos_token_id)
        exported = OnnxExporter().export_for_generation(
            model, example, config, generation_config=settings, multi_token_decode=multi_token_decode
        )
    else:
        exported = OnnxExporter().export(model, example, config)
    exported.save_pretrained(out)


if __name__ == "__main__":
    serve(export)
