"""Make a folder's tokenizer files what clients need: each of them, and those that know transformers 4 only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.files import write_json
from converter.tokenizer.byte_level import END_OF_TEXT
from converter.tokenizer.kinds import BYTE_LEVEL, Found, find
from converter.tokenizer.opening import TOKENIZER, Change, follow, open_file
from converter.tokenizer.settings import TOKENIZER_CONFIG, class_name, json_of, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLEAN_UP = "clean_up_tokenization_spaces"

# What every version of transformers calls a tokenizer that is its tokenizer.json and nothing more.
GENERIC = "PreTrainedTokenizerFast"

# The names that only transformers 5 has for it. Optimum, which needs transformers 4, cannot open a folder with them.
SINCE_5 = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend")


def complete(
    folder: Path, n_positions: int, keep: Iterable[str] = (), vocab_size: int | None = None
) -> tuple[str, ...]:
    """Add to the tokenizer files in ``folder`` what clients need: a whole ``tokenizer.json``, and padding.

    A tokenizer that pads on the right makes every batch wrong; clients take side and token from here.
    A tokenizer whose library is not installed stays as it is: see ``unavailable``.

    Args:
        n_positions: of the model.
        keep: names of files that may be added but not changed.
        vocab_size: of the model; by default that of the vocabulary, without added tokens.

    Returns:
        Sentences for the user, on what the tokenizer does otherwise than its files ask.

    Raises:
        CheckpointError, TokenizerError: a file is damaged.
    """
    keep = frozenset(keep)
    tokenizer, remarks = _whole(folder, keep)
    if tokenizer is None:
        return ()
    if TOKENIZER_CONFIG in keep:
        return remarks + _unknown_before(folder)
    settings = json_of(folder / TOKENIZER_CONFIG) or _default_settings(folder, tokenizer, n_positions)
    size = tokenizer.get_vocab_size(with_added_tokens=False) if vocab_size is None else vocab_size
    added = {**_padding(folder, tokenizer, size), **_spaces(folder, settings), "padding_side": "left"}
    write_json(folder / TOKENIZER_CONFIG, {**_known_before(folder, settings), **added})
    return remarks


def _whole(folder: Path, keep: Collection[str]) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """Write or complete ``tokenizer.json``; return what it holds, and sentences for the user."""
    file = folder / TOKENIZER
    if not file.is_file():
        found = find(folder)
        if not isinstance(found, Found):
            return None, ()
        tokenizer = found.build()
        file.write_text(tokenizer.to_str(), encoding="utf-8")
        remark = found.kind.remark(folder)
        return tokenizer, (remark,) if remark else ()
    tokenizer = open_file(file)
    change = follow(tokenizer, folder)
    if not any(change):
        return tokenizer, ()
    if TOKENIZER in keep:
        return tokenizer, (_left_behind(change),)
    file.write_text(tokenizer.to_str(), encoding="utf-8")
    return tokenizer, ()


def _left_behind(change: Change) -> str:
    lacks = f"lacks {', '.join(change.tokens)}" if change.tokens else "begins texts in another way"
    return (
        f"{TOKENIZER} {lacks}: the files beside it ask for that, transformers and gpt2onnx follow them, and other "
        f"clients do not; convert to a folder of its own (OUT), which gets a whole {TOKENIZER}"
    )


def _known_before(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in the words of transformers 4, which transformers 5 understands too."""
    result = dict(settings)
    if _class(folder, settings) in SINCE_5:
        result["tokenizer_class"] = GENERIC
    if isinstance(result.get("extra_special_tokens"), list):
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    return result


def _unknown_before(folder: Path) -> tuple[str, ...]:
    """Return a sentence for the user on settings that only transformers 5 knows and that stay as they are."""
    settings = json_of(folder / TOKENIZER_CONFIG)
    name = _class(folder, settings)
    if name not in SINCE_5:
        return ()
    return (
        f"{TOKENIZER_CONFIG} names the class {name}, which Optimum (transformers 4) does not know; write {GENERIC} "
        f"there, or convert to a folder of its own (OUT)",
    )


def _class(folder: Path, settings: Mapping[str, Any]) -> str:
    return str(settings.get("tokenizer_class") or class_name(folder))


def _padding(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> dict[str, str]:
    """Make the end of text the padding token if there is none: transformers and Optimum make no batch without one."""
    tokens = special_tokens(folder)
    if not tokens and class_name(folder) in ("", BYTE_LEVEL.class_name):
        tokens = {"eos_token": END_OF_TEXT}  # transformers' default for this class
    end = tokens.get("eos_token", "")
    number = tokenizer.token_to_id(end)
    fits = number is not None and number < vocab_size  # a model has no embedding for others
    return {"pad_token": end} if fits and "pad_token" not in tokens else {}


def _spaces(folder: Path, settings: Mapping[str, Any]) -> dict[str, bool]:
    """Whether spaces before punctuation are taken out of texts: what is no request to transformers, which never does it
    to a BPE's texts, must not be one to transformers.js, which does it unless it is told not to."""
    asked = bool(settings.get(CLEAN_UP))
    return {CLEAN_UP: asked and "merges" not in json_of(folder / TOKENIZER).get("model", {})}


def _default_settings(folder: Path, tokenizer: Tokenizer, n_positions: int) -> dict[str, Any]:
    found = find(folder)
    name = found.kind.class_name if isinstance(found, Found) else GENERIC
    settings: dict[str, Any] = {"tokenizer_class": name}
    bare = not special_tokens(folder) and (name == BYTE_LEVEL.class_name or not isinstance(found, Found))
    if bare and tokenizer.token_to_id(END_OF_TEXT) is not None:
        settings.update(dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT))
    return settings | {"model_max_length": n_positions}
