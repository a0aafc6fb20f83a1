"""What ``generate`` can be asked for, and which of it goes together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from converter.errors import PromptError
from converter.runtime.sampling import Sampling
from converter.runtime.values import NONE_OR_MORE, NUMBER, ONE_OR_MORE, TEXTS, optional, refuse_unsound

CHECKS = {
    "max_new_tokens": optional(ONE_OR_MORE),
    "max_length": optional(ONE_OR_MORE),
    "seed": optional(NONE_OR_MORE),
    "stop": TEXTS,
    "best": ONE_OR_MORE,
    "beams": ONE_OR_MORE,
    "length_penalty": NUMBER,
    "early_stopping": (lambda value: value in (True, False, "never"), "True, False or 'never'"),
    "speculate": NONE_OR_MORE,
    "logprobs": optional(NONE_OR_MORE),
}


@dataclass(frozen=True)
class GenerationOptions(Sampling):
    """Every option of ``generate``; ``Sampling`` says how one token is chosen.

    Attributes:
        max_new_tokens: as many as there are positions by default.
        max_length: tokens of prompt and text together; ``max_new_tokens`` wins.
        seed: the same one draws the same tokens.
        stop: the text ends before any of these.
        best: texts for each prompt.
        beams: how many texts are pursued at once; 1 is no beam search.
        length_penalty: a beam's log-probability is divided by its length to the power of this.
        early_stopping: when a beam search ends; False, True and "never" are those of transformers.
        speculate: how many tokens are proposed at once from what the text has already; 0 is none.
        logprobs: keep the log-probability of each token, and of so many likeliest ones beside it; None keeps none.

    Raises:
        PromptError: a value is out of range, or two do not go together.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    best: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    speculate: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        refuse_unsound(self, CHECKS)
        for sentence in self._contradictions():
            raise PromptError(sentence)

    @property
    def needs_no_logits(self) -> bool:
        """Tell whether it is enough to know the likeliest token of each step."""
        return self.takes_likeliest and self.logprobs is None

    def _contradictions(self) -> Iterator[str]:
        if self.beams > 1:
            yield from self._against_beams()
        else:
            if self.best > 1 and self.temperature == 0:
                yield "best needs texts that differ: give a temperature to draw with, or beams"
            if (self.length_penalty, self.early_stopping) != (1.0, False):
                yield "length_penalty and early_stopping are for beams: give beams, or omit them"
        if self.speculate and self.temperature > 0:
            yield "speculate is for the likeliest token and draws nothing: leave temperature at 0"

    def _against_beams(self) -> Iterator[str]:
        if self.temperature > 0:
            yield "beams pursue the likeliest texts and draw nothing: leave temperature at 0"
        if self.best > self.beams:
            yield f"best is {self.best}, more than the {self.beams} beams that there are; give more beams"
        if self.speculate:
            yield "speculate is for one text at a time: omit beams or speculate"
        if self.logprobs is not None:
            yield "logprobs are not kept of beams: omit one of them, or score the texts that you get"
