"""transformers' ``generate``, which Optimum uses too; the folder's own tokenizer pads."""

from __future__ import annotations

from typing import Any

import torch
from protocol import Generate, Prompts


def generator(model: Any, tokenizer: Any, new_tokens: int) -> Generate:
    def generate(prompts: Prompts, beams: int) -> Prompts:
        if len(prompts) == 1:
            fed = {
                "input_ids": torch.tensor(prompts),
                "attention_mask": torch.ones(1, len(prompts[0]), dtype=torch.long),
            }
        else:
            fed = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        done = model.generate(**fed, max_new_tokens=new_tokens, num_beams=beams, do_sample=False)
        return done[:, fed["input_ids"].shape[1] :].tolist()

    return generate
