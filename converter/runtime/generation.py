"""The generation loop: prompts of any lengths as one batch, padded on the left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from converter import tokenizer
from converter.errors import PromptError
from converter.runtime.sampling import Sampling
from converter.runtime.session import Model, refuse_ids

# Why a row ended.
END_OF_TEXT, MAX_NEW_TOKENS, POSITIONS_FULL = "end of text", "max_new_tokens", "n_positions"

OnText = Callable[[int, str], None]  # the row, and the text that its newest token completes


@dataclass(frozen=True)
class Generation:
    """What was generated, row by row in the order of the prompts.

    Attributes:
        prompt_ids: the tokens of each prompt.
        new_ids: the tokens that follow it, without the end-of-text token.
        texts: the new tokens as text; empty without a tokenizer.
        ended: why each row ended.
        prefill_seconds: until the first token.
        decode_seconds: for all others.
    """

    prompt_ids: list[list[int]]
    new_ids: list[list[int]]
    texts: list[str]
    ended: list[str]
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all rows, after the first of each, by the time they took; 0 if there were none."""
        later = sum(max(0, len(ids) - 1) for ids in self.new_ids)
        return later / self.decode_seconds if self.decode_seconds else 0.0


def generate(
    model: Model,
    prompts: str | Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    on_text: OnText | None = None,
) -> Generation:
    """Continue each of ``prompts`` until the end of text, ``max_new_tokens``, or the model's last position.

    Args:
        prompts: a text, several texts, or lists of token ids.
        max_new_tokens: as many as there are positions by default.
        temperature, top_k, top_p: see ``Sampling``; greedy by default.
        seed: the same seed draws the same tokens.
        on_text: called with each piece of text as it is completed.

    Raises:
        PromptError: a prompt is empty, leaves no room for a new token, or holds ids that the model does not have; or
            it is a text and the folder has no tokenizer; or an option is out of range.
        TokenizerError: the folder's tokenizer is damaged.
    """
    sampling = Sampling(temperature, top_k, top_p)
    if max_new_tokens is not None and (not isinstance(max_new_tokens, int) or max_new_tokens < 1):
        raise PromptError(f"max_new_tokens is {max_new_tokens}; expected 1 or more")
    if seed is not None and seed < 0:
        raise PromptError(f"seed is {seed}; expected 0 or more")
    rows = [Row(model, ids, max_new_tokens) for ids in encode(model, prompts)]
    prefill_seconds, decode_seconds = _run(model, rows, sampling, np.random.default_rng(seed), on_text)
    return Generation(
        prompt_ids=[row.prompt_ids for row in rows],
        new_ids=[row.new_ids for row in rows],
        texts=[row.text for row in rows],
        ended=[row.ended for row in rows],
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
    )


def _run(
    model: Model, rows: list[Row], sampling: Sampling, rng: np.random.Generator, on_text: OnText | None
) -> tuple[float, float]:
    """Run the batch until every row has ended; the seconds until the first token, and those after it."""
    end_ids = _end_ids(model)
    began = time.perf_counter()
    input_ids, attention_mask = _left_pad([row.prompt_ids for row in rows], _pad_id(model))
    positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)
    cache = model.empty_cache(len(rows))
    prefill_seconds = 0.0
    while True:
        logits, cache = model.step(input_ids, attention_mask, positions, cache, keep=1)
        chosen = sampling.choose(logits[:, -1], rng)
        prefill_seconds = prefill_seconds or time.perf_counter() - began
        for number, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            text = row.take(token, end_ids)
            if text and on_text is not None:
                on_text(number, text)
        if all(row.ended for row in rows):
            return prefill_seconds, time.perf_counter() - began - prefill_seconds
        # A row that has ended goes along, its tokens unseen by the others, until the last one ends.
        input_ids = chosen[:, None]
        attention_mask = np.concatenate((attention_mask, np.ones_like(input_ids)), axis=1)
        positions = np.minimum(positions[:, -1:] + 1, model.config.n_positions - 1)


class Row:
    """One prompt on its way."""

    def __init__(self, model: Model, prompt_ids: list[int], max_new_tokens: int | None) -> None:
        room = model.config.n_positions - len(prompt_ids)
        if room < 1:
            raise PromptError(
                f"a prompt has {len(prompt_ids)} tokens; the model's {model.config.n_positions} positions leave no "
                f"room for a new one: shorten it"
            )
        self.prompt_ids, self.new_ids, self.text, self.ended = prompt_ids, list[int](), "", ""
        self.limit = room if max_new_tokens is None else min(room, max_new_tokens)
        self.limited_by = MAX_NEW_TOKENS if self.limit == max_new_tokens else POSITIONS_FULL
        self.tokenizer: Tokenizer | None = model.tokenizer
        # Text before the first new token decides whether that one begins with a space.
        self.stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)

    def take(self, token: int, end_ids: frozenset[int]) -> str:
        """Add a token, and return the text that it completes: none while a character's bytes are still to come."""
        if self.ended:
            return ""
        text = ""
        if token in end_ids:
            self.ended = END_OF_TEXT
        else:
            self.new_ids.append(token)
            if len(self.new_ids) >= self.limit:
                self.ended = self.limited_by
            text = (self.stream.step(self.tokenizer, token) or "") if self.tokenizer is not None else ""
        self.text += text
        if self.ended:
            text += self.unfinished()
        return text

    def unfinished(self) -> str:
        """What the stream still held back when the row ended: a character cut off in the middle."""
        if self.tokenizer is None:
            return ""
        before = self.tokenizer.decode(self.prompt_ids)
        whole = self.tokenizer.decode(self.prompt_ids + self.new_ids).removeprefix(before)
        rest = whole.removeprefix(self.text) if whole.startswith(self.text) else ""
        self.text += rest
        return rest


def encode(model: Model, prompts: str | Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts as lists of token ids; an empty text is the beginning-of-text token.

    Raises:
        PromptError, TokenizerError: see ``generate``.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not prompts:
        raise PromptError("there is no prompt; give one or more texts")
    encoded = []
    for prompt in prompts:
        if not isinstance(prompt, Sequence | np.ndarray):
            raise PromptError(f"a prompt is {prompt!r}; expected a text, or a list of token ids")
        ids = encode_text(model, prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        if not ids:
            raise PromptError("a prompt is empty; give at least one token to start from")
        refuse_ids(np.asarray(ids), model.config)
        encoded.append(ids)
    return encoded


def encode_text(model: Model, text: str) -> list[int]:
    """A text's token ids, without the special tokens that say that it is over.

    Raises:
        PromptError: the folder has no tokenizer, or the text is not Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # what was no UTF-8 on the command line or in a pipe
        raise PromptError(f"a prompt is not UTF-8 text ({error.reason} at character {error.start})") from error
    if model.tokenizer is None:
        why = tokenizer.unavailable(model.folder)
        raise PromptError(
            f"{model.folder} has no tokenizer{f', as {why}' if why else ''}; give the prompt as token ids (--ids)"
        )
    start = model.token_ids.get("bos_token_id")
    start = start if isinstance(start, int) else None
    return tokenizer.prompt_ids(model.tokenizer, text, start) or ([] if start is None else [start])


def _left_pad(rows: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask, ``[batch, longest]`` int64."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    return ids, mask


def _end_ids(model: Model) -> frozenset[int]:
    ids = model.token_ids.get("eos_token_id", [])
    return frozenset(ids if isinstance(ids, list) else [ids])


def _pad_id(model: Model) -> int:
    pad = model.token_ids["pad_token_id"]
    return pad[0] if isinstance(pad, list) else pad
