"""What clients need beside the graph: config.json and genai_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.weights.precisions import Precision
from reference.config import GPT2Config
from reference.head import LM, head_of

# transformers' GPT2Config has this where a config.json says nothing.
DEFAULT_TOKEN_ID = 50256

# onnxruntime-genai takes its padding token for padding wherever it ends a prompt, also a single one. Were it a token of
# the model, the end of text would go unseen that ends each of DialoGPT's prompts. No token of a text is -1, and ONNX's
# Gather reads some row for it, at which the mask lets nobody look.
GENAI_PADDING = -1

# (client, precision) → why it does not run there; tests/clients sees that it does not, and that all others do.
UNSUPPORTED = {
    ("transformers", "int8"): "it opens the folder for its weights and quantizes them itself",
    ("transformers", "int4"): "it opens the folder for its weights and quantizes them itself",
}


def runs(client: str, precision: str) -> bool:
    """Tell whether a client runs a precision; ``client`` is its name on the model card."""
    return (client, precision) not in UNSUPPORTED


def token_ids(config: GPT2Config, *values: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """Return the ids of the ``bos``, ``eos`` and ``pad`` tokens that the model has. Later mappings win.

    A null says that there is no such token. Padding is never looked at, so that any token serves; where none is named
    it is the end of text, or token 0.
    """
    merged: dict[str, Any] = {"bos_token_id": DEFAULT_TOKEN_ID, "eos_token_id": DEFAULT_TOKEN_ID}
    for mapping in values:
        merged.update({key: mapping[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in mapping})
    ids = {key: known_ids(value, config.vocab_size) for key, value in merged.items()}
    known = {key: value for key, value in ids.items() if value is not None}
    known.setdefault("pad_token_id", _first(known.get("eos_token_id", 0)))
    return known


def known_ids(value: Any, vocab_size: int) -> int | list[int] | None:
    """Return a token id, or the ids of a list, as far as the model has them; None if it has none."""
    ids = [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and 0 <= i < vocab_size]
    if not ids:
        return None
    return ids if isinstance(value, list) else ids[0]


def _first(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids


def config_json(values: Mapping[str, Any], config: GPT2Config, precisions: Sequence[Precision]) -> dict[str, Any]:
    """Return the source's ``config.json`` as it holds for the converted folder, with transformers.js's section."""
    result = dict(values)
    result.pop("torch_dtype", None)
    result["dtype"] = "float32"
    if (head_of(result.get("architectures")) or LM) != config.head:
        result["architectures"] = [config.head_spec.class_name]
    if result.get("tie_word_embeddings", True) != config.tie_word_embeddings:
        result["tie_word_embeddings"] = config.tie_word_embeddings
    # Without a dtype a browser asks for a quantized file. "model" stands for every precision's file: each has its
    # weights in one other, for which a browser does not look by itself.
    section: dict[str, Any] = {"dtype": precisions[0].js_dtype, "use_external_data_format": {"model": 1}}
    if any(row.dtype == "float16" for row in precisions):
        section["kv_cache_dtype"] = {"fp16": "float16"}
    result["transformers.js_config"] = section
    return result


def genai_config(config: GPT2Config, ids: Mapping[str, int | list[int]], model: str) -> dict[str, Any]:
    """Return onnxruntime-genai's description of the graph in ``model``.

    Its type is "decoder": what genai calls "gpt2" is a graph of another interface, with one cache tensor a layer.
    """
    end = ids.get("eos_token_id", _rarest(config))
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": _first(ids.get("bos_token_id", end)),
            "eos_token_id": end,
            "pad_token_id": GENAI_PADDING,
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


def genai_remarks(config: GPT2Config, ids: Mapping[str, int | list[int]]) -> tuple[str, ...]:
    """Return sentences for the user, on what onnxruntime-genai cannot but do otherwise than the model asks."""
    if "eos_token_id" in ids:
        return ()
    return (
        f"the model has no end-of-text token, and onnxruntime-genai demands one: genai_config.json names token "
        f"{_rarest(config)}, the last one, so that genai alone ends a text there",
    )


def _rarest(config: GPT2Config) -> int:
    """Return the last token. Vocabularies begin with what is frequent, or a newline, and end with what is rare, or with
    padding that no text has.
    """
    return config.vocab_size - 1
