"""Read ``config.json`` into a ``GPT2Config``; refuse a model that is not a GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from converter.errors import ConfigError
from reference.config import GPT2Config
from reference.head import DOUBLE_HEADS, HEADS, head_of

# The other names that transformers accepts for these keys (GPT2Config.attribute_map).
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

SIZES = frozenset(("vocab_size", "n_inner", *ALIASES.values()))
SIZE_BITS = 63  # the most that a dimension in ONNX can have

# A key that must not be set, except to null or false → why.
REFUSED = {
    "quantization_config": "its weights are quantized; convert the original checkpoint",
    "auto_map": "it runs code of its own; only the GPT-2 of transformers is converted",
    "multi_query": "it shares keys and values among heads, which GPT-2 does not (GPTBigCode)",
    "pruned_heads": "some of its attention heads were removed; convert the model as it was before it was pruned",
    "add_cross_attention": "it attends to an encoder; only decoders are converted",
    "is_encoder_decoder": "it has an encoder; only decoders are converted",
}


# Keys of transformers' GPT2Config, in this version and earlier ones, that say nothing about the architecture.
OTHER_KEYS = frozenset(
    (
        "_attn_implementation_autoset", "_name_or_path", "architectures", "bad_words_ids", "bos_token_id",
        "chunk_size_feed_forward", "do_sample", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing",
        "id2label", "label2id", "max_length", "model_type", "n_ctx", "num_labels", "output_attentions",
        "output_hidden_states", "output_past", "pad_token_id", "predict_special_tokens", "problem_type", "return_dict",
        "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
    )
)  # fmt: skip


def dead_keys(values: Mapping[str, Any]) -> list[str]:
    """Return the keys of a ``config.json`` that no GPT-2 reads, sorted: another project's keys, or mistakes."""
    known = {field.name for field in fields(GPT2Config)} | OTHER_KEYS | ALIASES.keys() | REFUSED.keys()
    return sorted(values.keys() - known)


def parse_config(values: Mapping[str, Any], file: Path, head: str | None = None) -> GPT2Config:
    """Return the architecture that a ``config.json`` describes. Keys that are not needed are ignored.

    Args:
        head: one of ``reference.head.ASKED``; it overrides ``architectures``.

    Raises:
        ConfigError: it is not a GPT-2, has a part that GPT-2 does not have, or contradicts itself.
    """
    model_type = values.get("model_type")
    architectures = values.get("architectures")
    named = isinstance(architectures, list) and any(str(a).startswith("GPT2") for a in architectures)
    if model_type != "gpt2" and not (model_type is None and named):
        names = f" and architectures is {architectures!r}" if architectures else ""
        found = f"model_type is {model_type!r}" if model_type is not None else f"it has no model_type{names}"
        raise ConfigError(f"{file} does not describe a GPT-2: {found}; expected 'gpt2'")
    for key, reason in REFUSED.items():
        if values.get(key):
            raise ConfigError(f"{file} sets {key}: {reason}")
    resolved = dict(values) | ({"architectures": [HEADS[head].class_name]} if head else {})
    for alias, name in ALIASES.items():
        if alias not in values:
            continue
        if name in values and values[name] != values[alias]:
            raise ConfigError(f"{file} contradicts itself: {name} is {values[name]!r} and {alias} is {values[alias]!r}")
        resolved[name] = values[alias]
    summary = [values.get("summary_type", "cls_index"), values.get("summary_use_proj", True)]
    if head_of(resolved.get("architectures")) == DOUBLE_HEADS and summary != ["cls_index", True]:
        raise ConfigError(
            f"{file}: summary_type is {summary[0]!r} and summary_use_proj {summary[1]!r}; expected 'cls_index' "
            f"and True, as no other multiple-choice head is converted"
        )
    for name, value in resolved.items():
        if name in SIZES and type(value) is int and value.bit_length() > SIZE_BITS:
            raise ConfigError(f"{file}: {name} is a number of {value.bit_length()} bits; no tensor is as large")
    try:
        return GPT2Config.from_dict(resolved)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
