"""Single tokens: their names and bytes, and how likely they were."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.runtime.likelihood import likelihoods
from converter.runtime.scoring import CHUNK_TOKENS
from converter.runtime.session import Model
from converter.runtime.tokens import Token

# The characters by which byte-level BPE writes bytes: printable ones stand for themselves, the others for those after.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = {chr(byte): byte for byte in PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(sorted({*range(0x100)} - {*PRINTABLE}))
}
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # as sentencepiece writes a byte
CUT = "\ufffd"  # what a decoder shows for a character that lacks bytes


@dataclass(frozen=True)
class Likely:
    """How likely a token was.

    Attributes:
        id: of the token.
        log_prob: None for the first of a prompt, before which there is nothing.
        best: the likeliest tokens in its place and their log-probabilities, the likeliest first.
        text: that it completed; None for tokens of a prompt.
    """

    id: int
    log_prob: float | None
    best: tuple[tuple[int, float], ...] = ()
    text: str | None = None


def likely_of(token: Token) -> Likely:
    """Return how likely a token was that the engine chose."""
    return Likely(token.id, token.log_prob, token.best, token.text)


def prompt_likelihoods(model: Model, ids: Sequence[int], best: int) -> list[Likely]:
    """Return how likely each token of a prompt is after those before it, and the ``best`` likeliest in its place."""
    cache, found = model.empty_cache(1), [Likely(ids[0], None)]
    for begin in range(0, len(ids) - 1, CHUNK_TOKENS):
        part = np.array([ids[begin : min(begin + CHUNK_TOKENS, len(ids) - 1)]])
        end = begin + part.shape[1]
        logits = model.step(part, np.ones((1, end), np.int64), np.arange(begin, end)[None], cache)[0]
        for scores, following in zip(logits, ids[begin + 1 : end + 1], strict=True):
            found.append(Likely(following, *likelihoods(scores, following, best)))
    return found


def bytes_of(model: Model, token: int) -> bytes:
    """Return the bytes that a token stands for; none without a tokenizer."""
    piece = model.piece(token)
    if CUT not in piece or model.tokenizer is None:
        return piece.encode()
    written = model.tokenizer.id_to_token(token) or ""
    if single := BYTE.fullmatch(written):
        return bytes.fromhex(single[1])
    return bytes(BYTES[each] for each in written) if set(written) <= BYTES.keys() else piece.encode()


def name_of(model: Model, token: int) -> str:
    """Return a token as OpenAI names it: its text, or its bytes if these are no whole characters."""
    if model.tokenizer is None:
        return f"token_id:{token}"
    found = bytes_of(model, token)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
