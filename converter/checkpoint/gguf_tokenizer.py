"""Make a tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.gguf_header import Metadata
from converter.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Values of tokenizer.ggml.pre that split words as GPT-2 does. Files from before May 2024 have none.
GPT2_WORDS = ("gpt-2", "phi-2", None)
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # in tokenizer.ggml.token_type
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def no_tokenizer(values: Metadata) -> str | None:
    """Return why the metadata gives no tokenizer of GPT-2's kind; None if it gives one."""
    model, words = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if model != "gpt2":
        return f"tokenizer.ggml.model is {model!r}; expected 'gpt2'"
    if words not in GPT2_WORDS:
        return f"tokenizer.ggml.pre is {words!r}, which does not split words as GPT-2 does"
    missing = [key for key in ("tokens", "merges") if f"tokenizer.ggml.{key}" not in values]
    return f"tokenizer.ggml.{missing[0]} is missing" if missing else None


def write_tokenizer(file: Path, values: Metadata, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder, made from the metadata.

    Raises:
        TokenizerError: the metadata is damaged.
    """
    from converter.files import write_json

    try:
        tokenizer = _tokenizer(values)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{file}: the tokenizer in its header cannot be used ({error})") from error
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    named = {name: _special(values, key) for name, key in SPECIAL_TOKENS.items()}
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": values["gpt2.context_length"]}
    settings |= {name: token for name, token in named.items() if token is not None}
    template = values.get("tokenizer.chat_template")
    write_json(folder / "tokenizer_config.json", settings | ({"chat_template": template} if template else {}))


def _tokenizer(values: Metadata) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = (_texts(values, f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    kinds = values.get("tokenizer.ggml.token_type", (1,) * len(tokens))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(set(tokens))} of them different, and {len(kinds)} types")
    vocabulary = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    pairs = [_pair(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    prefix_space = bool(values.get("tokenizer.ggml.add_space_prefix", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(values)
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    for token, kind in added:  # in the order of their ids
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)])
    return tokenizer


def _post_processor(values: Metadata) -> Any:
    """Return the post-processor, which adds tokens before and after every text. Most GPT-2s add none."""
    from tokenizers import processors

    byte_level = processors.ByteLevel(trim_offsets=False)
    asked = {key: values.get(f"tokenizer.ggml.add_{key}_token") is True for key in ("bos", "eos")}
    tokens = {key: _special(values, key) for key in asked if asked[key]}
    if not any(tokens.values()):
        return byte_level
    before, after = ([token] if (token := tokens.get(key)) else [] for key in ("bos", "eos"))
    ids = {token: values[f"tokenizer.ggml.{key}_token_id"] for key, token in tokens.items() if token}
    template = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=list(ids.items())
    )
    return processors.Sequence([byte_level, template])


def _texts(values: Metadata, key: str) -> tuple[str, ...]:
    found = values[key]
    if not isinstance(found, tuple) or not all(isinstance(text, str) for text in found):
        raise TypeError(f"{key} is not an array of texts")
    return found


def _pair(merge: str) -> tuple[str, str]:
    """Split a merge such as ``Ġ t`` into its halves. In a byte-level vocabulary neither half holds a space."""
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ValueError(f"the merge {merge!r} is not a pair")
    return left, right


def _special(values: Metadata, key: str) -> str | None:
    """Return the token that ``tokenizer.ggml.<key>_token_id`` names; None if there is none."""
    tokens, index = values.get("tokenizer.ggml.tokens", ()), values.get(f"tokenizer.ggml.{key}_token_id")
    return tokens[index] if type(index) is int and 0 <= index < len(tokens) else None
