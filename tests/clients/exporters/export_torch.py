"""torch.onnx.export, both of them, around the wrapper that everybody writes by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from exporting import serve
from transformers import DynamicCache, GPT2LMHeadModel

ROWS, LENGTH, PAST = 2, 5, 4
AXES = {  # which are free
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "total"},
    "position_ids": {0: "batch", 1: "sequence"},
}
CACHE_AXES = {0: "batch", 2: "past"}


class Flat(torch.nn.Module):
    """transformers' model with tensors in a row as inputs and outputs: some of its arguments, then keys and values."""

    def __init__(self, model: GPT2LMHeadModel, arguments: Sequence[str], cached: bool) -> None:
        super().__init__()
        self.model, self.arguments, self.cached = model, arguments, cached

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = dict(zip(self.arguments, tensors, strict=False))
        if not self.cached:
            return self.model(**given, use_cache=False).logits
        cache, past = DynamicCache(config=self.model.config), tensors[len(given) :]
        for layer in range(self.model.config.n_layer):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        done = self.model(**given, past_key_values=cache, use_cache=True)
        return (done.logits, *(kept for layer in done.past_key_values.layers for kept in (layer.keys, layer.values)))


def export(
    source: Path,
    out: Path,
    arguments: Sequence[str] = ("input_ids", "attention_mask", "position_ids"),
    names: Sequence[str] = (),
    logits: str = "logits",
    cached: bool = False,
    integers: str = "int64",
    attention: str = "eager",
    dynamo: bool = True,
    fixed: Sequence[int] = (),
    **options: Any,
) -> None:
    model = GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32, attn_implementation=attention)
    config = model.config
    rows, length = fixed or (ROWS, LENGTH)
    example = examples(config.vocab_size, rows, length, PAST if cached else 0)
    tensors = [example[argument].to(getattr(torch, integers)) for argument in arguments]
    layers = range(config.n_layer if cached else 0)
    past = [f"past_key_values.{layer}.{part}" for layer in layers for part in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    tensors += [torch.randn(rows, config.n_head, PAST, config.n_embd // config.n_head) for _ in past]
    inputs, outputs = [*(names or arguments), *past], [logits, *present]
    axes = [*(AXES[argument] for argument in arguments), *(CACHE_AXES for _ in past)]
    if dynamo and not fixed:
        options["dynamic_shapes"] = (tuple(dict.fromkeys(free, torch.export.Dim.DYNAMIC) for free in axes),)
    elif not fixed:
        cache_axes = {name: {0: "batch", 2: "total"} for name in present}
        options["dynamic_axes"] = {**dict(zip(inputs, axes, strict=True)), logits: AXES["input_ids"], **cache_axes}
    out.mkdir(parents=True)
    torch.onnx.export(
        Flat(model, arguments, cached).eval(),
        tuple(tensors),
        str(out / "model.onnx"),
        input_names=inputs,
        output_names=outputs,
        dynamo=dynamo,
        **options,
    )


def examples(vocabulary: int, rows: int, length: int, past: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.arange(rows * length).reshape(rows, length) % vocabulary,
        "attention_mask": torch.ones(rows, past + length),
        "position_ids": torch.arange(past, past + length).expand(rows, length),
    }


if __name__ == "__main__":
    serve(export)
