"""Convert with transformers' own exporter: a graph for the prompt and one for each token after it.

python convert_transformers.py SOURCE OUT
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel
from transformers.exporters import OnnxConfig, OnnxExporter

ROWS, LENGTH = 2, 5  # of the example; one row of it is padded, else the graphs would take no mask


def main(source: Path, out: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(source, dtype="float32").eval()
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[1, 0] = 0
    example = {"input_ids": torch.ones(ROWS, LENGTH, dtype=torch.int64), "attention_mask": mask}
    OnnxExporter().export_for_generation(model, example, OnnxConfig(dynamic=True)).save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
