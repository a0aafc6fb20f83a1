"""A model folder, opened in ONNX Runtime and run step by step. The cache stays where ONNX Runtime keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.errors import PromptError
from converter.runtime.cache import Cache, GrowingCache, InPlaceCache
from converter.runtime.eight_bits import EightBitCache
from converter.runtime.exports.feeding import Export
from converter.runtime.gpu.buffers import Pool
from converter.runtime.gpu.cache import GpuCache
from converter.runtime.huge_pages import Mover
from converter.runtime.reader import Prompts, Reader, refuse_ids
from converter.runtime.tokens import OnText, Token

if TYPE_CHECKING:
    from converter.runtime.generation import Generation
    from converter.runtime.scoring import Score

CacheType = Literal["float32", "int8"]

# From so many texts on, a cache of 8 bits saves more memory than its session takes.
EIGHT_BIT_TEXTS = 16


@dataclass(frozen=True)
class Model(Reader):
    """A model folder, opened.

    Attributes:
        folder, config, session, device: see ``Decoder``; what reads prompts: see ``Reader``.
        in_place: whether the cache grows where it lies: see ``converter.runtime.in_place``.
        cache: ``int8`` or ``float32`` if that was asked for; else texts side by side have int8 with weights of 8 bits
            and fewer, and everything else has what the graph has.
        mover: moves the weights to large pages, if that was asked for.
        export: the files of another exporter; None for a folder of gpt2onnx.
        pool: the buffers of a GPU, where the graph is one for them: see ``converter.runtime.gpu.graph``.
    """

    in_place: bool = False
    cache: CacheType | None = None
    mover: Mover | None = None
    export: Export | None = None
    pool: Pool | None = None

    def __repr__(self) -> str:
        size = f"{self.config.n_layer} layers, {self.config.n_head} heads, width {self.config.n_embd}"
        return f"Model({str(self.folder)!r}: {size}, {self.config.n_positions} positions, on {self.device})"

    def empty_cache(self, batch: int, grows: bool = False) -> Cache:
        """Return a cache of ``batch`` rows that holds no token.

        Args:
            batch: how many rows.
            grows: whether many steps will follow, to which a cache of 8 bits is of use.
        """
        if self.pool is not None:
            return GpuCache(self, self.pool, batch)
        if self.export is not None:
            return self.export.empty_cache(batch)
        if self.cache == "int8" or (grows and self._rounds_cache(batch)):
            return EightBitCache(self, batch)
        return (InPlaceCache if self.in_place else GrowingCache)(self, batch)

    def _rounds_cache(self, batch: int) -> bool:
        """Tell whether a cache that grows is int8 by itself: for quantized weights and many texts."""
        if self.cache is not None or self.steady or batch < EIGHT_BIT_TEXTS or self.second is None:
            return False
        return self.eight is not None

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, cache: Cache, keep: int = 0
    ) -> np.ndarray:
        """Run the graph over new tokens. They are added to the cache, which does not pass through Python.

        Args:
            input_ids: ``[batch, new]`` int64.
            attention_mask: ``[batch, cached + new]`` int64, 0 for padding.
            position_ids: ``[batch, new]`` int64.
            cache: of the steps before, or ``empty_cache``.
            keep: the logits of how many last positions are wanted; 0 for all.

        Returns:
            Logits ``[batch, keep or new, vocab_size]`` float32.
        """
        if self.mover is not None:
            self.mover.step()
        return cache.step(input_ids, attention_mask, position_ids, keep)

    def logits(self, prompts: Prompts | np.ndarray) -> np.ndarray:
        """Return the logits after each token.

        Args:
            prompts: a text, its token ids ``[tokens]``, or several of equal length ``[batch, tokens]``.

        Returns:
            ``[tokens, vocab_size]`` float32; of several ``[batch, tokens, vocab_size]``.

        Raises:
            PromptError: an id is not a token of the model, there are more than ``n_positions``, or it is a text and the
                folder has no tokenizer.
        """
        one, ids, mask, positions = self._fed(prompts)
        logits = self.step(ids, mask, positions, self.empty_cache(len(ids)))
        return logits[0] if one else logits

    @property
    def inside(self) -> list[str]:
        """Return the names of what the graph returns beside logits and cache: see ``convert``'s ``outputs``."""
        return [
            value.name for value in self.session.get_outputs() if value.name not in ("logits", *self.cache_names[1])
        ]

    def outputs(self, prompts: Prompts | np.ndarray) -> dict[str, np.ndarray]:
        """Return everything that the graph returns for a text but the cache: ``logits``, and what ``inside`` names.

        Args:
            prompts: see ``logits``.

        Returns:
            Name → float32: ``[tokens, width]``, and ``attentions.{i}`` ``[n_head, query, key]``; of several texts with
            a dimension for these before.

        Raises:
            PromptError: see ``logits``.
        """
        if not self.inside:
            return {"logits": self.logits(prompts)}
        one, ids, mask, positions = self._fed(prompts)
        names = ["logits", *self.inside]
        found = GrowingCache(self, len(ids)).run(ids, mask, positions, 0, names)
        return {name: value[0] if one else value for name, value in zip(names, found, strict=True)}

    def _fed(self, prompts: Any) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray]:
        """Return whether it is one prompt, and for all of them ids, mask and positions, ``[batch, tokens]``."""
        one, ids = self._array(prompts)
        if ids.shape[1] > self.config.n_positions:
            raise PromptError(f"{ids.shape[1]} tokens are more than the model's {self.config.n_positions} positions")
        return one, ids, np.ones_like(ids), np.broadcast_to(np.arange(ids.shape[1]), ids.shape)

    def _array(self, prompts: Any) -> tuple[bool, np.ndarray]:
        """Return whether it is one prompt, and the token ids of all, ``[batch, tokens]``."""
        texts = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], str))
        try:
            given = np.asarray(self.encode(prompts) if texts else prompts)
        except ValueError as error:
            raise PromptError("token ids are rows of unequal length; pad them, or ask row by row") from error
        array = np.atleast_2d(given)
        if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
            raise PromptError(
                f"token ids are an array of {array.dtype} {list(array.shape)}; "
                f"expected integers, [tokens] or [batch, tokens]"
            )
        refuse_ids(array, self)
        return isinstance(prompts, str) or given.ndim == 1, array

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        min_new_tokens: int | None = None,
        min_length: int | None = None,
        stop: str | Sequence[str] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
        suppress_tokens: Sequence[int] | None = None,
        seed: int | None = None,
        best: int | None = None,
        beams: int | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | Literal["never"] | None = None,
        speculate: int | None = None,
        logprobs: int | None = None,
        do_sample: bool | None = None,
        generation_config: bool = True,
        on_text: OnText | None = None,
        **transformers_names: Any,
    ) -> Generation:
        """Continue each of ``prompts`` until the end of text, ``max_new_tokens``, or the model's last position.

        An option that is not given is that of the folder's ``generation_config.json``, and else that which changes
        nothing: the likeliest token is taken each time. docs/generate.md says what each does, precisely.

        Args:
            prompts: a text, the token ids of one, or several of either.
            max_new_tokens: tokens to add at most; by default as many as the model has positions.
            max_length: tokens of prompt and text together at most; ``max_new_tokens`` wins.
            min_new_tokens: tokens before which the text does not end.
            min_length: likewise, the prompt included.
            stop: the text ends before any of these.
            temperature: 0 takes the likeliest token; above it logits are divided by it and a token is drawn.
            top_k: draw among the k likeliest tokens; 0: among all.
            top_p: draw among the fewest likeliest tokens whose probabilities reach p.
            min_p: draw among the tokens that are at least this times as probable as the likeliest.
            repetition_penalty: above 1, tokens of prompt and text lose.
            frequency_penalty: taken off a token's logit for each time that the text has it.
            presence_penalty: taken off once if the text has the token.
            no_repeat_ngram_size: no run of so many tokens comes twice.
            bad_words_ids: runs of tokens that do not come.
            suppress_tokens: tokens that do not come.
            seed: the same one draws the same tokens.
            best: texts for each prompt: drawn, or the best of the beams.
            beams: texts that are pursued at once, to keep the likeliest.
            length_penalty: of beams: a log-probability is divided by its length to the power of this.
            early_stopping: of beams: False, True and "never" are those of transformers.
            speculate: tokens that are guessed at once from what is there already: the same text, sooner.
            logprobs: keep the log-probability of each token, and of so many likeliest ones beside it.
            do_sample: True draws, by default with transformers' ``temperature=1.0`` and ``top_k=50``; False does not.
            generation_config: whether the folder's ``generation_config.json`` counts.
            on_text: called with the number of a row and each piece of its text, once it is decided.
            transformers_names: ``num_beams``, ``num_return_sequences``, ``stop_strings`` and
                ``prompt_lookup_num_tokens``, which mean ``beams``, ``best``, ``stop`` and ``speculate``.

        Raises:
            PromptError: a prompt is empty, leaves no room for a new token, or holds ids that the model does not have;
                or it is a text, or stop strings are given, and the folder has no tokenizer; or an option is unknown or
                out of range, or does not go with another.
            ConfigError: the folder's ``generation_config.json`` is damaged.
            TokenizerError: the folder's tokenizer is damaged.
        """
        options = dict(locals())
        from converter.runtime.generation import generate

        return generate(options.pop("self"), options.pop("prompts"), **options.pop("transformers_names"), **options)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        min_new_tokens: int | None = None,
        min_length: int | None = None,
        stop: str | Sequence[str] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        bad_words_ids: Sequence[Sequence[int]] | None = None,
        suppress_tokens: Sequence[int] | None = None,
        seed: int | None = None,
        speculate: int | None = None,
        logprobs: int | None = None,
        do_sample: bool | None = None,
        generation_config: bool = True,
        **transformers_names: Any,
    ) -> Iterator[Token]:
        """Continue one prompt and yield each token as soon as it has come. The options are those of ``generate``.

        Printed, a token is the text that it completes. All texts together are the text of ``generate``; the last token
        may be the end of text, which completes none. To leave the loop ends the generation.

        Raises:
            PromptError, ConfigError, TokenizerError: see ``generate``.
        """
        options = dict(locals())
        from converter.runtime.generation import stream

        return stream(options.pop("self"), options.pop("prompt"), **options.pop("transformers_names"), **options)

    def score(
        self,
        texts: Prompts,
        *,
        stride: int | None = None,
        batch_size: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Score]:
        """Return how likely the model finds each of ``texts``: see ``converter.score``.

        Args:
            texts: a text, the token ids of one, or several of either.
            stride: tokens from window to window of a long text; by default half the positions.
            batch_size: windows that are read together; it changes nothing else.
            progress: told how many tokens have been read, of how many.
        """
        from converter import notebook
        from converter.runtime.scoring import score

        run = notebook.shows_progress(score) if notebook.is_running() else score
        return run(self, texts, stride=stride, batch_size=batch_size, progress=progress)
