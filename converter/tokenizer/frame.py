"""The special tokens that a tokenizer puts around a text, and which of them belong to a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Frame(NamedTuple):
    """What stands around one text and around two: ``{eos_token}`` and the like for tokens; ``:1`` is a type."""

    single: str
    pair: str


def ends(values: Mapping[str, Any]) -> Frame:
    """Return one of the two ends, both or none, as the options ``add_bos_token`` and ``add_eos_token`` ask."""
    first = " ".join(_between_ends(values, "$A", 0))
    return Frame(first, " ".join((first, *_between_ends(values, "$B", 1))))


def _between_ends(values: Mapping[str, Any], text: str, number: int) -> list[str]:
    begin = [f"{{bos_token}}:{number}"] if values.get("add_bos_token") else []
    end = [f"{{eos_token}}:{number}"] if values.get("add_eos_token") else []
    return [*begin, f"{text}:{number}", *end]


def put(frame: Frame, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> None:
    """Make a tokenizer put its special tokens around a text, except those that a folder removes."""
    from tokenizers import processors

    fills = {f"{{{key}}}": token for key, token in tokens.items()}
    single, pair = (_filled(parts, fills) for parts in frame)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for key, token in fills.items() if key in frame.single],
    )


def _filled(parts: str, fills: Mapping[str, str]) -> list[str]:
    """Fill in a template: each ``{eos_token}`` becomes its token, or is omitted if there is none."""
    named = ((name, colon + kind) for name, colon, kind in (part.partition(":") for part in parts.split()))
    return [fills.get(name, name) + kind for name, kind in named if name in fills or not name.startswith("{")]


def prompt_ids(tokenizer: Tokenizer, text: str, start: int | None) -> list[int]:
    """Return the token ids of a text that a model is to continue.

    Tokenizers made for encoders put a frame around a text: BERT's ``[CLS] … [SEP]``, T5's ``… </s>``. A model that
    reads the closing token takes the text for finished, so a prompt goes without it; without the opening one too,
    unless that is the model's own beginning of text. Models with such tokenizers are documented to be used so
    (``add_special_tokens=False``). A tokenizer that only opens a text, as with Llama's ``<s>``, does so for a prompt.

    Args:
        start: the model's ``bos_token_id``.
    """
    encoding = tokenizer.encode(text)
    bare = tokenizer.encode(text, add_special_tokens=False).ids
    before = encoding.special_tokens_mask.index(0) if bare else 0  # the mask knows the frame from the text's own tokens
    opening, closed = encoding.ids[:before], len(encoding.ids) > before + len(bare)
    return [token for token in opening if not closed or token == start] + bare
