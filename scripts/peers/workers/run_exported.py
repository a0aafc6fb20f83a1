"""Run what transformers' own exporter wrote: its runner of ONNX Runtime, one graph for the prompt, one for the rest."""

from pathlib import Path

import torch
from onnxruntime import SessionOptions
from protocol import Generate, Prompts, Stopwatch, serve
from transformers import DynamicCache
from transformers.exporters import ExportedModel


def open_model(folder: Path, variant: str, threads: int) -> Generate:  # noqa: ARG001 - there is only fp32
    torch.set_num_threads(threads)
    options = SessionOptions()
    options.intra_op_num_threads = threads
    exported = ExportedModel.from_pretrained(folder)
    exported.to(providers=["CPUExecutionProvider"], session_options=options)
    prefill, decode = exported.runners["prefill"], exported.runners["decode"]

    def generate(prompts: Prompts, new_tokens: int, watch: Stopwatch) -> Prompts:
        ids = torch.tensor(prompts)
        mask = torch.ones(len(prompts), ids.shape[1] + new_tokens, dtype=torch.int64)
        positions = torch.arange(mask.shape[1]).expand_as(mask)
        run, cache, tokens, used = prefill, DynamicCache(config=exported.config), list[torch.Tensor](), 0
        for _ in range(new_tokens):
            end = used + ids.shape[1]
            out = run(
                input_ids=ids,
                past_key_values=cache,
                attention_mask=mask[:, :end],
                position_ids=positions[:, used:end].contiguous(),
            )
            ids = out.logits[:, -1:].argmax(dim=-1)
            run, cache, used = decode, out.past_key_values, end
            tokens.append(ids)
            watch.token()
        return torch.cat(tokens, dim=1).tolist()

    return generate


if __name__ == "__main__":
    serve(open_model, "transformers", "torch", "onnxruntime")
