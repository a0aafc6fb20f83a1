"""Run transformers' ``generate``, which Optimum uses too, with a clock on each step."""

from typing import Any

import torch
from protocol import Generate, Prompts, Stopwatch


class Steps:
    """A streamer. It receives the prompt first, then each step's tokens."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self.seen_prompt = watch, False

    def put(self, _: Any) -> None:
        if self.seen_prompt:
            self.watch.token()
        self.seen_prompt = True

    def end(self) -> None:
        pass


def generator(model: Any) -> Generate:
    model.generation_config.eos_token_id = None  # so that all rows have the same length

    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        ids = torch.tensor(prompts, device=model.device)
        with torch.inference_mode():
            done = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=Steps(watch),
            )
        return done[:, ids.shape[1] :].tolist()

    return generate
