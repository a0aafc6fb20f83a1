"""What each client of a model folder wants beside the graph: config.json, genai_config.json, the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference.config import HEADS, GPT2Config, head_of

# transformers' GPT2Config has this where a config.json says nothing.
DEFAULT_TOKEN_ID = 50256


def token_ids(config: GPT2Config, *values: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """``bos``/``eos``/``pad`` ids, the later mapping winning, as far as the model has such tokens.

    Padding is never looked at, so that any token serves; where none is named it is the end of text, or token 0.
    """
    merged: dict[str, Any] = {"bos_token_id": DEFAULT_TOKEN_ID, "eos_token_id": DEFAULT_TOKEN_ID}
    for mapping in values:
        merged.update({key: mapping[key] for key in (*merged, "pad_token_id") if mapping.get(key) is not None})
    ids = {key: known_ids(value, config.vocab_size) for key, value in merged.items()}
    known = {key: value for key, value in ids.items() if value is not None}
    end = known.get("eos_token_id", 0)
    known.setdefault("pad_token_id", end[0] if isinstance(end, list) else end)
    return known


def known_ids(value: Any, vocab_size: int) -> int | list[int] | None:
    """A token id, or those of a list, as far as the model has such tokens; None if it has none of them."""
    ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and 0 <= i < vocab_size]
    if not ids:
        return None
    return ids if isinstance(value, list) else ids[0]


def config_json(values: Mapping[str, Any], config: GPT2Config) -> dict[str, Any]:
    """The source's ``config.json`` as it is true of the converted folder, with transformers.js's section."""
    result = dict(values)
    result.pop("torch_dtype", None)
    result["dtype"] = "float32"
    if (head_of(result.get("architectures")) or "lm") != config.head:
        result["architectures"] = [HEADS[config.head]]
    if result.get("tie_word_embeddings", True) != config.tie_word_embeddings:
        result["tie_word_embeddings"] = config.tie_word_embeddings
    # Without a dtype a browser asks for a quantized file; without the other it does not look for the data file.
    result["transformers.js_config"] = {"dtype": "fp32", "use_external_data_format": {"model": 1}}
    return result


def genai_config(config: GPT2Config, ids: Mapping[str, int | list[int]], model: str) -> dict[str, Any]:
    """onnxruntime-genai's description of the graph in ``model``.

    Its type is "decoder": what genai calls "gpt2" is a graph of another interface, with one cache tensor a layer.
    """
    end = ids.get("eos_token_id", 0)
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": ids.get("bos_token_id", end[0] if isinstance(end, list) else end),
            "eos_token_id": end,
            "pad_token_id": ids["pad_token_id"],
            "context_length": config.n_positions,
            "vocab_size": config.vocab_size,
            "decoder": {
                "filename": model,
                "head_size": config.head_dim,
                "hidden_size": config.n_embd,
                "num_attention_heads": config.n_head,
                "num_key_value_heads": config.n_head,
                "num_hidden_layers": config.n_layer,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": config.n_positions, "past_present_share_buffer": False},
    }


CARD = """\
---
library_name: onnx
pipeline_tag: {task}
tags: [gpt2, onnx]
---
# {name} for ONNX

GPT-2 with {parameters:,} parameters in float32, converted from `{name}` by gpt2onnx {version}: {n_layer} layers,
{n_head} heads, width {n_embd}, {n_positions} positions, {vocab_size:,} tokens; opset {opset}, standard operators only.

`{model}` holds the graph and `{data}` the weights, every one of them bit for bit the source's{widened}.

## Run it

{usage}

## Check it

```bash
gpt2onnx check SOURCE .
```

compares it with the source, Hugging Face transformers and a float64 reference.
"""

GENERATE = """\
```bash
gpt2onnx generate . "Once upon a time"
```

```python
from converter import load

for text in load(".").generate(["Once upon a time"], max_new_tokens=40).texts:
    print(text)
```

Any ONNX Runtime (1.23 or newer for opset 23) runs the graph itself: it takes `input_ids`, `attention_mask`,
`position_ids` and the cache `past_key_values.{i}.key|value` (empty at first), and gives `logits` and the longer
cache `present.{i}.key|value`. Pad batches on the left."""

RUN = """\
```bash
gpt2onnx run . @arguments@
```

```python
from converter import load_head

print(load_head(".").run([@text@]))
```

Any ONNX Runtime (1.23 or newer for opset 23) runs the graph itself: it takes `input_ids` and `attention_mask`, and
gives @gives@. Padding changes nothing, on either side."""

TEXT = ('"A text"', '"A text"')
ANSWER = (
    '"A text that holds the answer" --question "What is asked?"',
    '("What is asked?", "A text that holds the answer")',
)
CHOICES = ('"One ending" "Another ending"', '("One ending", "Another ending")')

# The task by its name on the Hub, what to run, and what the graph gives.
TASKS: dict[str, tuple[str, tuple[str, str], str]] = {
    "base": ("feature-extraction", TEXT, "`last_hidden_state`"),
    "sequence-classification": ("text-classification", TEXT, "`logits`, one row a text"),
    "token-classification": ("token-classification", TEXT, "`logits`, one row a token"),
    "question-answering": ("question-answering", ANSWER, "`start_logits` and `end_logits`"),
    "double-heads": ("multiple-choice", CHOICES, "`mc_logits` for choices `[batch, choices, tokens]`"),
}


def model_card(head: str, **values: Any) -> str:
    """The folder's README.md."""
    usages, task = [GENERATE], "text-generation"
    if head in TASKS:
        named, (arguments, text), gives = TASKS[head]
        run = RUN.replace("@arguments@", arguments).replace("@text@", text).replace("@gives@", gives)
        usages, task = ([GENERATE, run], task) if head == "double-heads" else ([run], named)
    return CARD.format(task=task, usage="\n\n".join(usages), **values)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """A JSON file as a person would want to read it."""
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
