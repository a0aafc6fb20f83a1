"""What a folder says about its tokenizer beside the vocabulary: its class, its special tokens, its options."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import TokenizerError
from converter.files import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

TOKENIZER_CONFIG, TOKENS_MAP, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

# In the order in which transformers gives ids to those that the vocabulary lacks.
SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token

Values = Mapping[str, Any]


def read(folder: Path) -> dict[str, Any]:
    """Return the options in a folder's files, merged as transformers merges them.

    A ``tokenizer_config.json`` that lists its added tokens stands for the two older files, which are then not read.
    """
    values = json_of(folder / TOKENIZER_CONFIG)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")  # its name since transformers 5
    if "added_tokens_decoder" not in values:
        values |= json_of(folder / TOKENS_MAP)
        special = {content(value) for value in (*_standard(values).values(), *_extra(values))}
        values["added_tokens_decoder"] = {
            number: {"content": token, "normalized": token not in special, "special": token in special}
            for token, number in json_of(folder / ADDED_TOKENS).items()
        }
    return values


def class_name(folder: Path) -> str:
    """Return the tokenizer's class, from ``tokenizer_config.json`` or else ``config.json``; empty if neither has it."""
    files = (folder / TOKENIZER_CONFIG, folder / "config.json")
    names = (json_of(file).get("tokenizer_class") for file in files)
    return str(next(filter(None, names), "")).removesuffix("Fast")


def special_tokens(folder: Path) -> dict[str, str]:
    """Return ``eos_token`` and the like → token, from ``tokenizer_config.json`` or ``special_tokens_map.json``."""
    return named(read(folder))


def named(values: Values) -> dict[str, str]:
    """Return ``eos_token`` and the like → token."""
    return {key: content(value) for key, value in _named(values).items()}


def added_tokens(
    values: Values,
    extra: Iterable[AddedToken] | None = None,
    verbatim: bool = False,
    known: Collection[str] = (),
) -> list[AddedToken]:
    """Return the tokens that are found in a text before the vocabulary is used, each once, in the order of their ids.

    Args:
        extra: those that come last, unless the options list other ones; None takes the options' older list.
        verbatim: the way of transformers' tokenizers in Python: all are looked for in the text as it stands, and only
            those listed with an id keep their other flags.
        known: those that the tokenizer has already; it needs only those of them that are listed with an id.
    """
    listed = {content(token): token for _, token in _by_id(values.get("added_tokens_decoder", {}))}
    if isinstance(values.get("extra_special_tokens"), list):
        extra = values["extra_special_tokens"]
    elif extra is None:
        extra = values.get("additional_special_tokens") or ()
    others = {content(token): content(token) if verbatim else token for token in (*_named(values).values(), *extra)}
    others = {name: token for name, token in others.items() if name not in known}
    special = set(named(values).values())
    return [_added_token(token, name in special, verbatim) for name, token in (listed | (others | listed)).items()]


def refuse_renumbered(tokenizer: Tokenizer, values: Values, said: str) -> None:
    """Refuse added tokens whose id would not be the one that the model was trained with.

    Args:
        said: the beginning of the sentence, which names the file or folder.

    Raises:
        TokenizerError: it is not.
    """
    for wanted, value in values.get("added_tokens_decoder", {}).items():
        if tokenizer.token_to_id(content(value)) != int(wanted):
            raise TokenizerError(
                f"{said} {content(value)} the id {wanted}, which its vocabulary leaves no room for; list the tokens "
                f"between the two, or remove this one"
            )


def content(token: str | Mapping[str, Any] | AddedToken) -> str:
    """Return a token's text, which may stand among its flags.

    Raises:
        TokenizerError: there are flags and no text.
    """
    if isinstance(token, Mapping) and "content" not in token:
        raise TokenizerError(f"a special token is {dict(token)}; expected a text, or an object with a content")
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def json_of(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no file."""
    return read_json(file) if file.is_file() else {}


def _named(values: Values) -> dict[str, Any]:
    """Return the tokens that have a name: transformers' own names, then those of this model, such as image_token."""
    own = {key: value for key, value in values.items() if key.endswith("_token") and key not in SPECIAL_KEYS}
    own = {key: value for key, value in own.items() if isinstance(value, str) or "content" in _mapping(value)}
    return _standard(values) | own | _mapping(values.get("extra_special_tokens"))


def _standard(values: Values) -> dict[str, Any]:
    return {key: values[key] for key in SPECIAL_KEYS if values.get(key)}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _extra(values: Values) -> list[Any]:
    extra = values.get("extra_special_tokens")
    return extra if isinstance(extra, list) else []


def _by_id(tokens: Mapping[str | int, Any]) -> list[tuple[str | int, Any]]:
    return sorted(tokens.items(), key=lambda item: int(item[0]))


def _added_token(token: str | Mapping[str, Any] | AddedToken, special: bool, verbatim: bool) -> AddedToken:
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    if isinstance(token, Mapping):
        flags = {key: token[key] for key in FLAGS if key in token}
        flags |= {"normalized": False} if verbatim else {}
        return AddedToken(content(token), **flags, special=special or token.get("special", False))
    token.special = token.special or special
    return token
