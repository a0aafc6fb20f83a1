"""One text as it grows: its tokens, the part of it that may be shown, and what ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

from converter.errors import LongPromptError, PromptError
from converter.runtime.history import History
from converter.runtime.likelihood import likelihoods
from converter.runtime.options import GenerationOptions
from converter.runtime.stopping import StopStrings
from converter.runtime.tokens import OnText, Token

if TYPE_CHECKING:
    import numpy as np

    from converter.runtime.session import Model

# Why a row ended.
END_OF_TEXT, MAX_NEW_TOKENS, MAX_LENGTH, POSITIONS_FULL = "end of text", "max_new_tokens", "max_length", "n_positions"
STOP_STRING = "stop string"


class Row:
    """A prompt and the text that follows it.

    Args:
        model: whose positions and tokens they are.
        prompt_ids: the prompt.
        options: what ends the text.
        number: of the row, for ``on_text``.
        history: what is penalised and drawn; by default that of seed 0.
        on_text: called with each piece of text once it is decided.

    Attributes:
        new_ids: the tokens that followed, without the end-of-text token.
        tokens: all that followed, each with the text that it completed.
        text: as much of them as may be shown.
        ended: why there are no more; empty until then.

    Raises:
        PromptError: the prompt leaves no room for a new token.
    """

    def __init__(
        self,
        model: Model,
        prompt_ids: list[int],
        options: GenerationOptions,
        *,
        number: int = 0,
        history: History | None = None,
        on_text: OnText | None = None,
    ) -> None:
        self.prompt_ids, self.new_ids, self.text, self.ended = prompt_ids, list[int](), "", ""
        self.tokens = list[Token]()
        self.limit = room(model, prompt_ids, options)
        self.limited_by = limit_of(prompt_ids, self.limit, options)
        self.history = history or History(prompt_ids, self.limit, end_ids=model.end_ids)
        self.end_ids, self.tokenizer, self.logprobs = model.end_ids, model.tokenizer, options.logprobs
        # Text before the first new token decides whether that one begins with a space.
        self.stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
        self.decoded, self.stop = "", StopStrings(options.stop)
        self.number, self.on_text = number, on_text

    def take(self, token: int, logits: np.ndarray | None = None) -> str:
        """Add a token; return the text that it completes, empty while a character still lacks bytes.

        Args:
            token: the next.
            logits: ``[vocab_size]``, which it was chosen from.
        """
        if self.ended:
            return ""
        shown = ""
        if token in self.end_ids:
            self.ended = END_OF_TEXT
        else:
            self.new_ids.append(token)
            self.history.add(token)
            shown = self._decode(token)
        if not self.ended and len(self.new_ids) >= self.limit:
            self.ended = self.limited_by
        if self.ended:
            shown += self.stop.feed(self._unfinished()) + self.stop.end()
            self.ended = STOP_STRING if self.stop.found else self.ended
        self.text += shown
        likely = () if self.logprobs is None or logits is None else likelihoods(logits, token, self.logprobs)
        self.tokens.append(Token(token, shown, self.ended, *likely))
        if shown and self.on_text is not None:
            self.on_text(self.number, shown)
        return shown

    def _decode(self, token: int) -> str:
        if self.tokenizer is None:
            return ""
        text = self.stream.step(self.tokenizer, token) or ""
        self.decoded += text
        shown = self.stop.feed(text)
        if self.stop.found:
            self.ended = STOP_STRING
        return shown

    def _unfinished(self) -> str:
        """Return what the stream held back when the row ended: a character that was cut off."""
        if self.tokenizer is None:
            return ""
        before = self.tokenizer.decode(self.prompt_ids)
        whole = self.tokenizer.decode(self.prompt_ids + self.new_ids).removeprefix(before)
        return whole.removeprefix(self.decoded) if whole.startswith(self.decoded) else ""


def room(model: Model, prompt_ids: list[int], options: GenerationOptions) -> int:
    """Return how many tokens may follow a prompt.

    Raises:
        LongPromptError: none, as the model's positions are full.
        PromptError: none, as ``max_length`` is reached.
    """
    positions = model.config.n_positions
    if len(prompt_ids) >= positions:
        raise LongPromptError(
            f"a prompt has {len(prompt_ids)} tokens; the model's {positions} positions leave no room for a new one: "
            f"shorten it"
        )
    left = positions - len(prompt_ids)
    if options.max_new_tokens is not None or options.max_length is None:
        return min(left, options.max_new_tokens or left)
    if len(prompt_ids) >= options.max_length:
        raise PromptError(
            f"a prompt has {len(prompt_ids)} tokens, and max_length is {options.max_length}, the prompt included: "
            f"give max_new_tokens (-n)"
        )
    return min(left, options.max_length - len(prompt_ids))


def limit_of(prompt_ids: list[int], limit: int, options: GenerationOptions) -> str:
    """Return what it is that limits a text to ``limit`` tokens."""
    if limit == options.max_new_tokens:
        return MAX_NEW_TOKENS
    if options.max_new_tokens is None and len(prompt_ids) + limit == options.max_length:
        return MAX_LENGTH
    return POSITIONS_FULL
