"""Run transformers on a GPU with a static cache and ``torch.compile``, which captures the steps as CUDA graphs."""

from pathlib import Path
from typing import Any

import torch
from protocol import Generate, Prompts, Stopwatch, serve
from transformers import GPT2LMHeadModel, StaticCache

DEVICE, DTYPES = "cuda", {"fp16": torch.float16, "bf16": torch.bfloat16}
LENGTH_MULTIPLE = 128  # of a cache, so that few are compiled


def open_model(folder: Path, variant: str, threads: int) -> Generate:
    torch.set_num_threads(threads)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=DTYPES[variant]).eval().to(DEVICE)
    caches = dict[tuple[int, int], Any]()

    def forward(ids: torch.Tensor, positions: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        out = model(input_ids=ids, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        return out.logits[:, -1:].argmax(dim=-1)

    step = torch.compile(forward, mode="reduce-overhead", fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        ids = torch.tensor(prompts, device=DEVICE)
        rows, length = ids.shape
        whole = length + new_tokens
        shape = rows, whole + -whole % LENGTH_MULTIPLE
        if shape not in caches:
            caches[shape] = StaticCache(model.config, max_cache_len=shape[1])
        cache = caches[shape]
        cache.reset()
        positions = torch.arange(length, device=DEVICE).expand(rows, length)
        token = forward(ids, positions, cache)
        torch.cuda.synchronize()
        watch.token()
        tokens = [token]
        position = positions[:, -1:].clone()
        for _ in range(new_tokens - 1):
            position = position + 1
            token = step(token, position, cache).clone()
            tokens.append(token)
        torch.cuda.synchronize()
        watch.token()
        return torch.cat(tokens, dim=1).tolist()

    return generate


if __name__ == "__main__":
    serve(open_model, "transformers", "torch")
