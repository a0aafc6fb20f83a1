"""A model folder whose head is not the language model's: one run for a batch, and what it says of each text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter import tokenizer
from converter.errors import ModelFolderError, PromptError
from converter.files import read_json
from converter.folder.staging import second_graph
from converter.runtime.answers import Answer, Choice, Embedding, Labels, Span, TokenLabels
from converter.runtime.cache import FED
from converter.runtime.opening import config_of, model_file, refuse_another_interface
from converter.runtime.ort import InferenceSession, open_session, provider_name
from converter.runtime.reader import refuse_ids
from reference.config import GPT2Config
from reference.head import HEADS, LM, MULTIPLE_CHOICE

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# An answer is no longer than this many tokens, as in transformers' pipeline.
MAX_ANSWER_TOKENS = 15

Text = str | Sequence[int] | tuple[str, str]  # a text, its token ids, or a question and the text that answers it


@dataclass(frozen=True)
class HeadModel:
    """A model folder, opened.

    Attributes:
        folder: where it is.
        config: the architecture, with the head that answers.
        session: the ONNX Runtime session.
    """

    folder: Path
    config: GPT2Config
    session: InferenceSession

    def __repr__(self) -> str:
        size = f"{self.config.n_layer} layers, {self.config.n_head} heads, width {self.config.n_embd}"
        return f"HeadModel({str(self.folder)!r}: {self.config.head}, {size}, {self.config.n_positions} positions)"

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Return the folder's tokenizer; None if it has none."""
        return tokenizer.load(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return ``config.json``."""
        return read_json(self.folder / "config.json")

    @cached_property
    def labels(self) -> list[str]:
        """Return the names of a classification's numbers."""
        named = self.settings.get("id2label") or {}
        return [str(named.get(str(i), f"LABEL_{i}")) for i in range(self.config.num_labels)]

    @property
    def inside(self) -> list[str]:
        """Return the names of what the graph returns beside its head's answer: see ``convert``'s ``outputs``."""
        return [value.name for value in self.session.get_outputs() if value.name not in self.config.head_spec.outputs]

    def outputs(
        self, texts: Text | Sequence[Text] | np.ndarray, attention_mask: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return everything that the graph returns: the answer of its head, and what ``inside`` names.

        Args:
            texts: one text, or several that are padded on the right, as for ``run``. With a mask the token ids of a
                batch, ``[batch, tokens]`` int64; for multiple choice ``[batch, choices, tokens]``.
            attention_mask: of the same shape, 0 for padding on either side.

        Returns:
            Name → float32, with the dimensions that the graph declares; of one text, or the choices of one question,
            without ``batch_size``.

        Raises:
            PromptError: see ``run``.
        """
        if attention_mask is not None:
            return self._run(texts, attention_mask)
        given = _several(texts, self.config.head)
        if not given:
            raise PromptError("there is no text; give one or more")
        _, ids, mask = self._batch(given)
        one = self.config.head_spec.compares or given[0] is texts
        found = self._run(ids[None], mask[None]) if self.config.head_spec.compares else self._run(ids, mask)
        batched = {value.name for value in self.session.get_outputs() if value.shape[0] == "batch_size"}
        return {name: array[0] if one and name in batched else array for name, array in found.items()}

    def _run(self, input_ids: Any, attention_mask: Any) -> dict[str, np.ndarray]:
        names = [output.name for output in self.session.get_outputs()]
        fed = zip(FED, (input_ids, attention_mask), strict=True)
        feeds = {name: np.ascontiguousarray(array, np.int64) for name, array in fed}
        return dict(zip(names, self.session.run(names, feeds), strict=True))

    def encode(self, texts: Text | Sequence[Text]) -> list[list[int]]:
        """Return one or more texts as token ids.

        Raises:
            PromptError: see ``run``.
        """
        return [EncodedText.encode(self, text).ids for text in _several(texts, self.config.head)]

    def _batch(self, texts: Sequence[Text]) -> tuple[list[EncodedText], np.ndarray, np.ndarray]:
        """Return texts as rows, and their ids and mask ``[batch, tokens]``, padded on the right."""
        rows = [EncodedText.encode(self, text) for text in texts]
        ids, mask = batch_of([row.ids for row in rows])
        refuse_ids(ids, self)
        return rows, ids, mask

    def run(self, texts: Text | Sequence[Text]) -> list[Any]:
        """Return what the head says of each text, or how several choices compare.

        Args:
            texts: one or more texts, or lists of token ids; for question answering pairs of question and text.

        Returns:
            ``Labels``, ``TokenLabels``, ``Span``, ``Choice`` or ``Embedding``, as the head is.

        Raises:
            PromptError: a text is empty or too long, holds an id that is no token, or there is no tokenizer.
        """
        given = _several(texts, self.config.head)
        if not given:
            return []
        rows, ids, mask = self._batch(given)
        if self.config.head_spec.compares:
            return _choices(self.outputs(ids[None], mask[None])["mc_logits"][0])
        found = self.outputs(ids, mask)
        answer = ANSWERS[self.config.head]
        return [answer(self, row, {name: array[i] for name, array in found.items()}) for i, row in enumerate(rows)]


def load(
    folder: str | os.PathLike[str], provider: str = "cpu", threads: int | None = None, precision: str | None = None
) -> HeadModel:
    """Open a model folder whose head classifies, marks, compares or embeds.

    Raises:
        ModelFolderError: the folder is incomplete, cannot be opened, or generates text.
        ProviderError: the provider is not there, or does not work on this machine.
    """
    folder = Path(folder)
    name, file, config = provider_name(provider), model_file(folder, precision), config_of(folder)
    if config.head == LM:
        raise ModelFolderError(f"{folder} has no head but the language model's: gpt2onnx generate {folder} PROMPT")
    if config.head_spec.graphs:
        return open_head(folder, second_graph(file), MULTIPLE_CHOICE, name, threads)
    return open_head(folder, file, config.head, name, threads)


def open_head(folder: Path, file: Path, head: str, provider: str, threads: int | None = None) -> HeadModel:
    """Open one graph of a folder; see ``load``."""
    session = open_session(file, provider, threads)
    refuse_another_interface(file, session, set(FED))
    return HeadModel(folder, replace(config_of(folder), head=head), session)


@dataclass(frozen=True)
class EncodedText:
    """A text that is run: its ids, and the places of its tokens."""

    text: str | None
    ids: list[int]
    encoding: Encoding | None

    @classmethod
    def encode(cls, model: HeadModel, text: Text) -> EncodedText:
        """Tokenize.

        Raises:
            PromptError: it is empty or too long, or there is no tokenizer.
        """
        given = cls._read(model, text)
        limit = model.config.n_positions
        if not given.ids:
            raise PromptError("a text is empty: there is nothing to answer for")
        if model.config.head_spec.asks and given.encoding and 1 not in given.encoding.sequence_ids:
            raise PromptError("a text is empty, or has no question: expected pairs of a question and a text")
        if len(given.ids) > limit:
            raise PromptError(f"a text of {len(given.ids)} tokens is longer than the model's {limit} positions")
        return given

    @classmethod
    def _read(cls, model: HeadModel, text: Text) -> EncodedText:
        parts: list[Any] = [text] if isinstance(text, str) else list(text)
        if not parts or not all(isinstance(part, str) for part in parts):
            return cls(None, [int(part) for part in parts], None)
        if model.tokenizer is None:
            raise PromptError(f"{model.folder} has no tokenizer; give token ids (--ids)")
        encoding = model.tokenizer.encode(*parts)  # with the special tokens that the model was trained with
        return cls(str(parts[-1]), encoding.ids, encoding)

    def places(self) -> list[tuple[int, int]]:
        """Return where each token stands in the text; for ids, their own places."""
        return self.encoding.offsets if self.encoding else [(i, i + 1) for i in range(len(self.ids))]

    def piece(self, start: int, end: int) -> str:
        """Return the text of a token."""
        return " ".join(map(str, self.ids[start:end])) if self.text is None else self.text[start:end]


def batch_of(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of unequal length as one batch, padded on the right: ``input_ids`` and ``attention_mask``."""
    longest = max(len(row) for row in rows)
    ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def _several(texts: Any, head: str) -> list[Any]:
    """Return a list of texts; one text becomes a list of one."""
    if isinstance(texts, str) or (texts and all(isinstance(item, int | np.integer) for item in texts)):
        return [texts]
    if HEADS[head].asks and isinstance(texts, tuple) and all(isinstance(part, str) for part in texts):
        return [texts]
    return list(texts)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return softmax over the last dimension, in float64."""
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _labels(model: HeadModel, row: EncodedText, found: dict[str, np.ndarray]) -> Labels:
    """Return labels as ``problem_type`` asks for them, by the rule of transformers' pipeline."""
    scores, kind = found["logits"].astype(np.float64), model.settings.get("problem_type")
    if kind == "multi_label_classification" or (kind is None and len(scores) == 1):
        scores = 1 / (1 + np.exp(-scores))
    elif kind != "regression":
        scores = softmax(scores)
    order = np.argsort(-scores, kind="stable")
    return Labels({model.labels[i]: float(scores[i]) for i in order}, kind != "regression")


def _token_labels(model: HeadModel, row: EncodedText, found: dict[str, np.ndarray]) -> TokenLabels:
    probabilities = softmax(found["logits"][: len(row.ids)])
    best = probabilities.argmax(axis=-1)
    return TokenLabels(
        tuple(
            (start, end, row.piece(start, end), model.labels[label], float(p[label]))
            for (start, end), label, p in zip(row.places(), best, probabilities, strict=True)
        )
    )


def _span(model: HeadModel, row: EncodedText, found: dict[str, np.ndarray]) -> Span:
    """Return the likeliest start and end, in this order, within the text and not the question."""
    inside = [i for i, part in enumerate(row.encoding.sequence_ids) if part == 1] if row.encoding else []
    inside = inside or list(range(len(row.ids)))  # of ids nobody knows which of them are the question
    start, end = (softmax(found[name][inside]) for name in ("start_logits", "end_logits"))
    pairs = np.tril(np.triu(np.outer(start, end)), MAX_ANSWER_TOKENS - 1)
    first, last = np.unravel_index(int(pairs.argmax()), pairs.shape)
    places = row.places()
    begin, stop = places[inside[first]][0], places[inside[last]][1]
    return Span(row.piece(begin, stop), begin, stop, float(pairs[first, last]))


def _embedding(model: HeadModel, row: EncodedText, found: dict[str, np.ndarray]) -> Embedding:
    return Embedding(found["last_hidden_state"][: len(row.ids)])


def _choices(scores: np.ndarray) -> list[Choice]:
    return [Choice(float(p), float(score)) for p, score in zip(softmax(scores), scores, strict=True)]


ANSWERS: dict[str, Callable[[HeadModel, EncodedText, dict[str, np.ndarray]], Answer]] = {
    "base": _embedding,
    "sequence-classification": _labels,
    "token-classification": _token_labels,
    "question-answering": _span,
}
