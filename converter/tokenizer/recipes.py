"""Models of the sentencepiece library, unigram or BPE, as transformers' tokenizer classes read them.

Each class has its own notion of the same file: what it does to a text before the model sees it, which id unknown
characters get, which special tokens it adds. What a model file asks for itself counts in GPTSw3Tokenizer, and where no
class is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from converter.errors import TokenizerError
from converter.tokenizer.frame import Frame, ends, put
from converter.tokenizer.sentencepiece_model import (
    BPE,
    CHARACTER,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    WORD,
    Proto,
    charsmap,
    listed,
    merges_of,
    model_file,
    open_model,
    pieces,
    spaces,
    unigram,
    words,
)
from converter.tokenizer.settings import Values, added_tokens, named, read, refuse_renumbered

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.normalizers import Normalizer


class Recipe(NamedTuple):
    """How a class reads a model.

    Attributes:
        tokens: its special tokens where a folder names no other ones.
        build: model and options → the tokenizer, without special tokens.
        frame: what it puts around a text, according to the options.
        extra: the tokens that the model and the options give it, to be found in a text before anything else.
        unknown_id: what transformers 5 makes of unknown characters whatever the model says; here the model has its say.
        verbatim: whether added tokens are those of a tokenizer in Python: see ``added_tokens``.
    """

    tokens: Mapping[str, Any]
    build: Callable[[Proto, Values], Tokenizer]
    frame: Callable[[Values], Frame | None]
    extra: Callable[[Proto, Values], Sequence[AddedToken]] | None
    unknown_id: int | None = None
    verbatim: bool = False


def build(recipe: Recipe, folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder's model.

    Raises:
        TokenizerError: the model is damaged, or an added token cannot have its id.
    """
    proto, values = open_model(model_file(folder)), {**recipe.tokens, **read(folder)}
    for key, default in recipe.tokens.items():
        if isinstance(default, Mapping) and isinstance(values[key], str):
            values[key] = {**default, "content": values[key]}
    tokenizer = recipe.build(proto, values)
    extra = recipe.extra(proto, values) if recipe.extra else None  # noqa: S610 - no database is here
    tokenizer.add_tokens(added_tokens(values, extra, recipe.verbatim))
    if recipe.verbatim:  # the others number them as the library does, whatever the folder says
        refuse_renumbered(tokenizer, values, f"{folder} gives the added token")
    frame = recipe.frame(values)
    if frame is not None:
        put(frame, tokenizer, named(values))
    return tokenizer


def remark(name: str, recipe: Recipe, folder: Path) -> str | None:
    """Return a sentence if a class of transformers 5 reads unknown characters otherwise than the model was trained to.

    Its T5Tokenizer, for one, takes token 2 for all of them, which is the end of text in models that are numbered as the
    sentencepiece library does; transformers 4 read them as the library does, and so were such models trained.
    """
    file = model_file(folder)
    trainer = open_model(file).trainer_spec
    if recipe.unknown_id is None or (trainer.unk_id == recipe.unknown_id and not trainer.byte_fallback):
        return None
    trained = "bytes" if trainer.byte_fallback else f"token {trainer.unk_id}"
    return (
        f"{file.name} makes unknown characters {trained}, and so does tokenizer.json; {name} of transformers 5 makes "
        f"them token {recipe.unknown_id}"
    )


def _t5(proto: Proto, values: Values) -> Tokenizer:
    sentinels = [(token, 0.0) for token in reversed(_sentinels(values))]
    tokenizer = words(_as_numbered(proto, pieces(proto) + sentinels))
    if table := charsmap(proto):
        tokenizer.normalizer = table[0]
    return tokenizer


def _as_numbered(proto: Proto, known: list[tuple[str, float]]) -> Tokenizer:
    """The most likely pieces, unknown characters as the model was trained with them."""
    return unigram(known, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _sentinels(values: Values) -> list[str]:
    return [f"<extra_id_{i}>" for i in range(values.get("extra_ids", 100))]


def _t5_extra(proto: Proto, values: Values) -> list[AddedToken]:
    from tokenizers import AddedToken

    return _listed(proto, values) + [AddedToken(token, special=True) for token in _sentinels(values)]


def _albert(proto: Proto, values: Values) -> Tokenizer:
    tokenizer = words(_as_numbered(proto, pieces(proto)), values.get("add_prefix_space", True))
    keep, lower = values.get("keep_accents", False), values.get("do_lower_case", True)
    _as_in_albert(tokenizer, proto, keep_accents=keep, lower=lower)
    return tokenizer


def _xlnet(proto: Proto, values: Values) -> Tokenizer:
    tokenizer = words(unigram(pieces(proto), proto.trainer_spec.unk_id))
    _as_in_albert(tokenizer, proto, keep_accents=False, lower=values.get("do_lower_case", False))
    return tokenizer


def _as_in_albert(tokenizer: Tokenizer, proto: Proto, *, keep_accents: bool, lower: bool) -> None:
    """Before the model's own table: plain quotation marks, no accents, small letters."""
    from tokenizers import normalizers

    steps: list[Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    steps += [] if keep_accents else [normalizers.NFKD(), normalizers.StripAccents()]
    steps += [normalizers.Lowercase()] if lower else []
    tokenizer.normalizer = normalizers.Sequence(steps + charsmap(proto))


def _llama(proto: Proto, values: Values) -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    tokenizer = Tokenizer(models.BPE(ids, merges_of(ids), fuse_unk=True, byte_fallback=True))
    prefix = values.get("add_prefix_space")
    prefix = True if prefix is None else prefix
    scheme: Any = ("always" if values.get("legacy", False) else "first") if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    spaces(tokenizer, prefix)
    return tokenizer


def _gpt_sw3(proto: Proto, values: Values) -> Tokenizer:
    """Without characters that do not print, every width of space alike, composed: as the model's texts were."""
    from tokenizers import Regex, normalizers

    unprinted = "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u00a0\\u00ad\\u200b]"
    blank = "[\\u2002\\u2003\\u2005\\u2008-\\u200a\\u202f\\u3000\\ufffc]"
    steps = [normalizers.Replace(Regex(unprinted), ""), normalizers.Replace(Regex(blank), " "), normalizers.NFC()]
    return _as_trained(proto, values, steps, values.get("legacy", True))


def _as_trained(proto: Proto, values: Values, before: Sequence[Normalizer] = (), prefix: bool = True) -> Tokenizer:
    """As sentencepiece itself reads a text, which splits it into no words beforehand.

    Raises:
        TokenizerError: the model knows whole words only, or has the space after a word.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    del values
    if proto.trainer_spec.model_type == WORD or proto.trainer_spec.treat_whitespace_as_suffix:
        raise TokenizerError("a sentencepiece model of whole words, or with the space after a word, is not read here")
    spec = proto.normalizer_spec
    prefix = prefix and spec.add_dummy_prefix
    tokenizer, symbols = _untouched_model(proto), _symbols(proto)
    steps = [*before, *charsmap(proto)]
    if spec.remove_extra_whitespaces:  # at the ends of the text, which ^ and $ are not to every client
        steps += [normalizers.Replace(Regex(f"(?<![\\s\\S]) +|[ {SPACE}]+(?![\\s\\S])"), "")]
        steps += [normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if symbols:  # found after the normalisation, unlike added tokens
        pattern = "|".join(map(re.escape, symbols))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    spaces(tokenizer, prefix)
    return tokenizer


def _untouched_model(proto: Proto) -> Tokenizer:
    from tokenizers import Tokenizer, models

    trainer = proto.trainer_spec
    if trainer.model_type not in (BPE, CHARACTER):
        return unigram(pieces(proto), trainer.unk_id, trainer.byte_fallback)
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    normal = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type == NORMAL}
    options: dict[str, Any] = {"byte_fallback": trainer.byte_fallback, "ignore_merges": bool(_symbols(proto))}
    unknown = proto.pieces[trainer.unk_id].piece
    return Tokenizer(models.BPE(ids, merges_of(normal), unk_token=unknown, fuse_unk=True, **options))


def _symbols(proto: Proto) -> list[str]:
    """The pieces that the model's user defined, which always stay whole, the longest first."""
    return sorted((piece.piece for piece in proto.pieces if piece.type == USER_DEFINED), key=len, reverse=True)


def _listed(proto: Proto, values: Values) -> list[AddedToken]:
    del values
    return listed(proto, (CONTROL, USER_DEFINED))


def _known(proto: Proto, values: Values) -> list[AddedToken]:
    del values
    return listed(proto, (CONTROL, UNKNOWN))


def _unframed(values: Values) -> None:
    del values


T5_UNKNOWN, ALBERT_UNKNOWN = 2, 1  # fixed in transformers 5

T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
ALBERT_TOKENS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "<unk>",
    "sep_token": "[SEP]",
    "pad_token": "<pad>",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
XLNET_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "<sep>",
    "pad_token": "<pad>",
    "cls_token": "<cls>",
    "mask_token": {"content": "<mask>", "lstrip": True},
}
LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GPT_SW3_TOKENS = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<pad>"}

T5_FRAME = Frame("$A {eos_token}", "$A {eos_token} $B {eos_token}")
ALBERT_FRAME = Frame("{cls_token} $A {sep_token}", "{cls_token} $A {sep_token} $B:1 {sep_token}:1")
XLNET_FRAME = Frame("$A {sep_token} {cls_token}:2", "$A {sep_token} $B:1 {sep_token}:1 {cls_token}:2")

RECIPES = {
    "T5Tokenizer": Recipe(T5_TOKENS, _t5, lambda values: T5_FRAME, _t5_extra, T5_UNKNOWN),
    "AlbertTokenizer": Recipe(ALBERT_TOKENS, _albert, lambda values: ALBERT_FRAME, _listed, ALBERT_UNKNOWN),
    "XLNetTokenizer": Recipe(XLNET_TOKENS, _xlnet, lambda values: XLNET_FRAME, _listed),
    "LlamaTokenizer": Recipe(LLAMA_TOKENS, _llama, ends, _listed),
    "GPTSw3Tokenizer": Recipe(GPT_SW3_TOKENS, _gpt_sw3, _unframed, None, verbatim=True),
}
PLAIN = Recipe({}, _as_trained, _unframed, _known)
