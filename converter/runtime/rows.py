"""One text as it grows: its tokens, the part of it that may be shown, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

from converter.errors import PromptError
from converter.runtime.options import GenerationOptions
from converter.runtime.sampling import History
from converter.runtime.stopping import StopStrings

if TYPE_CHECKING:
    from converter.runtime.session import Model

# Why a row ended.
END_OF_TEXT, MAX_NEW_TOKENS, POSITIONS_FULL = "end of text", "max_new_tokens", "n_positions"
STOP_STRING = "stop string"

OnText = Callable[[int, str], None]  # the row, and the text that its newest token completes


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
        self.limit = room(model, prompt_ids, options)
        self.limited_by = MAX_NEW_TOKENS if self.limit == options.max_new_tokens else POSITIONS_FULL
        self.history = history or History(prompt_ids, self.limit)
        self.end_ids, self.tokenizer = model.end_ids, model.tokenizer
        # Text before the first new token decides whether that one begins with a space.
        self.stream = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
        self.decoded, self.stop = "", StopStrings(options.stop)
        self.number, self.on_text = number, on_text

    def take(self, token: int) -> str:
        """Add a token; return the text that it completes, empty while a character still lacks bytes."""
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
        PromptError: none.
    """
    positions = model.config.n_positions
    if len(prompt_ids) >= positions:
        raise PromptError(
            f"a prompt has {len(prompt_ids)} tokens; the model's {positions} positions leave no room for a new one: "
            f"shorten it"
        )
    return min(positions - len(prompt_ids), options.max_new_tokens or positions)
