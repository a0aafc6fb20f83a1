"""A language model with the tokenizer of its folder: it reads prompts, as texts or as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from converter import tokenizer
from converter.errors import PromptError
from converter.files import read_json
from converter.folder.clients import token_ids
from converter.runtime.decoder import Decoder
from converter.runtime.generation_config import GenerationConfig
from reference.config import GPT2Config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]  # one or several, as texts or as token ids


@dataclass(frozen=True)
class Reader(Decoder):
    """A language model that reads texts."""

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Return the folder's tokenizer; None if it has none."""
        return tokenizer.load(self.folder)

    @cached_property
    def token_ids(self) -> dict[str, int | list[int]]:
        """Return ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as far as the model has such tokens."""
        generation = self.folder / "generation_config.json"
        values = [read_json(self.folder / "config.json")]
        return token_ids(self.config, *values, *([read_json(generation)] if generation.is_file() else []))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Return the tokens that end a text."""
        ids = self.token_ids.get("eos_token_id", [])
        return frozenset(ids if isinstance(ids, list) else [ids])

    @cached_property
    def pad_id(self) -> int:
        """Return the token that fills up short rows."""
        pad = self.token_ids["pad_token_id"]
        return pad[0] if isinstance(pad, list) else pad

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """Return what the folder says of generation."""
        return GenerationConfig.read(self.folder)

    @cached_property
    def said(self) -> set[str]:
        """Return the warnings that were given already."""
        return set()

    def encode(self, prompts: Prompts) -> list[list[int]]:
        """Return prompts as lists of token ids. An empty text becomes the beginning-of-text token.

        Args:
            prompts: a text, the token ids of one, or several of either.

        Raises:
            PromptError: there is none, one is empty, or it holds ids that the model does not have; or it is a text, and
                the folder has no tokenizer.
            TokenizerError: the folder's tokenizer is damaged.
        """
        several = _several(prompts)
        if not several:
            raise PromptError("there is no prompt; give one or more texts")
        return [self._encode_one(prompt) for prompt in several]

    def piece(self, token: int) -> str:
        """Return the text of a single token, special ones too; empty without a tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode([token], skip_special_tokens=False)

    def _encode_one(self, prompt: Any) -> list[int]:
        ids = self._encode_text(prompt) if isinstance(prompt, str) else _ids(prompt)
        if not ids:
            raise PromptError("a prompt is empty; give at least one token to start from")
        refuse_ids(np.asarray(ids), self)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        """Return a text's token ids, without the special tokens that end a text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:  # what was no UTF-8 on the command line or in a pipe
            raise PromptError(f"a prompt is not UTF-8 text ({error.reason} at character {error.start})") from error
        if self.tokenizer is None:
            why = tokenizer.unavailable(self.folder)
            raise PromptError(
                f"{self.folder} has no tokenizer{f', as {why}' if why else ''}; give the prompt as token ids (--ids)"
            )
        start = self.token_ids.get("bos_token_id")
        start = start if isinstance(start, int) else None
        return tokenizer.prompt_ids(self.tokenizer, text, start) or ([] if start is None else [start])


def _several(prompts: Any) -> list[Any]:
    """Return a list of prompts; a text, or the token ids of one, is a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if hasattr(prompts, "__array__"):  # numpy's, and torch's
        prompts = np.asarray(prompts).tolist()
    if not isinstance(prompts, Sequence):
        raise PromptError(f"prompts are {prompts!r}; expected a text, a list of token ids, or several of either")
    return [list(prompts)] if len(prompts) and all(isinstance(item, Integral) for item in prompts) else list(prompts)


def _ids(prompt: Any) -> list[int]:
    ids = np.asarray(prompt).tolist() if hasattr(prompt, "__array__") else prompt
    if not isinstance(ids, Sequence) or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
        raise PromptError(f"a prompt is {prompt!r}; expected a text, or a list of token ids")
    return [int(i) for i in ids]


class Tokens(Protocol):
    """A model with a vocabulary, and the tokenizer that names it."""

    @property
    def config(self) -> GPT2Config:
        """Return the architecture."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer; None if there is none."""


def refuse_ids(ids: np.ndarray, model: Tokens) -> None:
    """Refuse token ids that the embedding has no row for.

    Raises:
        PromptError: one has none.
    """
    size = model.config.vocab_size
    outside = ids[(ids < 0) | (ids >= size)]
    if outside.size:
        first = int(outside[0])
        token = model.tokenizer.id_to_token(first) if model.tokenizer is not None and first >= 0 else None
        raise PromptError(
            f"token id {first}{f', {token!r},' if token else ''} is not one of the model's {size} tokens "
            f"(0 to {size - 1})"
        )
