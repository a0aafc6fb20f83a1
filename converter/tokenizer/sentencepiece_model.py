"""The model files of the sentencepiece library, and the parts of a tokenizer that are made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.normalizers import Normalizer

FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "sentencepiece.model")

SPACE = "▁"  # what stands for a space in a piece
BPE, WORD, CHARACTER = 2, 3, 4  # a model's model_type, beside unigram
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # a piece's type

Proto = Any  # sentencepiece's ModelProto


def model_file(folder: Path) -> Path:
    """Return the model file of a folder."""
    return next(folder / name for name in FILES if (folder / name).is_file())


def open_model(file: Path) -> Proto:
    """Return the content of a model file.

    Raises:
        TokenizerError: it is damaged.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    data = file.read_bytes()
    try:
        SentencePieceProcessor().LoadFromSerializedProto(data)  # looks closer than the parser of the message alone
    except RuntimeError as error:
        raise TokenizerError(
            f"{file} is no sentencepiece model, or damaged; fetch it again, or remove it to go without a tokenizer"
        ) from error
    return sentencepiece_model_pb2.ModelProto.FromString(data)


def unigram(pieces: Sequence[tuple[str, float]], unknown: int, byte_fallback: bool = False) -> Tokenizer:
    """The most likely pieces."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=byte_fallback))


def pieces(proto: Proto) -> list[tuple[str, float]]:
    """Return every piece and its score, in the order of the ids."""
    return [(piece.piece, piece.score) for piece in proto.pieces]


def charsmap(proto: Proto) -> list[Normalizer]:
    """Return the model's own table of characters, such as NFKC's, if it has one."""
    from tokenizers import normalizers

    table = proto.normalizer_spec.precompiled_charsmap
    return [normalizers.Precompiled(table)] if table else []


def merges_of(pieces: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, in the order of these; the model file has only the pieces."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=pieces.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def words(tokenizer: Tokenizer, prefix: bool = True) -> Tokenizer:
    """Make a tokenizer see words, each with its space before it."""
    from tokenizers import decoders, pre_tokenizers

    scheme: Any = "always" if prefix else "never"
    metaspace = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return tokenizer


def spaces(tokenizer: Tokenizer, prefix: bool) -> None:
    """Make a tokenizer write spaces and bytes as text."""
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefix else [])])


def listed(proto: Proto, types: Sequence[int]) -> list[AddedToken]:
    """Return the model's pieces of certain types as added tokens; all but the user's own are special."""
    from tokenizers import AddedToken

    found = [piece for piece in proto.pieces if piece.type in types]
    return [AddedToken(piece.piece, normalized=False, special=piece.type != USER_DEFINED) for piece in found]
