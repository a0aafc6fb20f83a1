"""A model folder, opened in ONNX Runtime and run step by step. The cache stays where ONNX Runtime keeps it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from converter import tokenizer
from converter.checkpoint.config import parse_config
from converter.errors import ConfigError, ModelFolderError, PromptError
from converter.files import read_json
from converter.folder import manifest
from converter.folder.clients import token_ids
from converter.runtime.cache import IN_PLACE_FED, STEP_FED, Cache, GrowingCache, InPlaceCache
from converter.runtime.decoder import Decoder, cache_names
from converter.runtime.huge_pages import Mover, regions
from converter.runtime.in_place import rewritten
from converter.runtime.ort import CPU_PROVIDER, open_session, provider_name, untiled
from converter.weights import precisions
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    from converter.runtime.generation import Generation

MODEL_FILES = ("onnx/model.onnx", "model.onnx")  # where a folder without our manifest may have its graph

# As measured on gpt2: MatMulNBits takes its weights apart at every step unless they were laid out for it before.
SLOWER = 30


def model_file(folder: Path, precision: str | None = None) -> Path:
    """Return the graph of a model folder, in one of its precisions or in the first.

    Raises:
        ModelFolderError: there is none.
        ConfigError: there is no such precision.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"there is no model folder {folder}; make one with gpt2onnx convert SOURCE OUT")
    values = manifest.read(folder)
    names = [str(values["model"])] if "model" in values else list(MODEL_FILES)
    if precision is not None:
        precisions.parse([precision])
        there = values.get("precisions") or {"fp32": {"model": names[0]}}
        if precision not in there:
            raise ModelFolderError(
                f"{folder} has no {precision}, only {', '.join(there)}; add it with "
                f"gpt2onnx convert SOURCE {folder} --precision {precision}"
            )
        names = [str(there[precision]["model"])]
    for name in names:
        if not os.path.isabs(name) and ".." not in Path(name).parts and (folder / name).is_file():
            return folder / name
    manifest.refuse_source(folder, values)
    raise ModelFolderError(f"{folder} has no {names[0]}; make a model folder with gpt2onnx convert SOURCE OUT")


@dataclass(frozen=True)
class Model(Decoder):
    """A model folder, opened.

    Attributes:
        folder, config, session, device: see ``Decoder``.
        in_place: whether the cache grows where it lies: see ``converter.runtime.in_place``.
        mover: moves the weights to large pages, if that was asked for.
    """

    in_place: bool = False
    mover: Mover | None = None

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

    def empty_cache(self, batch: int) -> Cache:
        """Return a cache of ``batch`` rows that holds no token."""
        return (InPlaceCache if self.in_place else GrowingCache)(self, batch)

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

    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Return the logits after each token: ``[tokens]`` ids give ``[tokens, vocab_size]``; a batch gives one
        dimension more.

        Raises:
            PromptError: an id is not a token of the model, or there are more than ``n_positions``.
        """
        try:
            array = np.atleast_2d(np.asarray(ids))
        except ValueError as error:
            raise PromptError("token ids are rows of unequal length; pad them, or ask row by row") from error
        if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
            raise PromptError(
                f"token ids are an array of {array.dtype} {list(array.shape)}; "
                f"expected integers, [tokens] or [batch, tokens]"
            )
        refuse_ids(array, self)
        if array.shape[1] > self.config.n_positions:
            raise PromptError(f"{array.shape[1]} tokens are more than the model's {self.config.n_positions} positions")
        positions = np.broadcast_to(np.arange(array.shape[1]), array.shape)
        logits = self.step(array, np.ones_like(array), positions, self.empty_cache(len(array)))
        return logits if np.ndim(ids) == 2 else logits[0]

    def generate(self, prompts: str | Sequence[str] | Sequence[Sequence[int]], **options: Any) -> Generation:
        """Continue prompts; see ``converter.runtime.generation.generate`` for the options."""
        from converter.runtime.generation import generate

        return generate(self, prompts, **options)


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


def load(
    folder: str | os.PathLike[str],
    provider: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    prepack: bool = True,
    in_place: bool = True,
    large_pages: bool = False,
) -> Model:
    """Open a model folder in ONNX Runtime.

    Args:
        folder: what ``convert`` wrote.
        provider: ``cpu``, ``cuda`` or another that the installed ONNX Runtime offers.
        threads: for one operator; by default one a core.
        precision: one that the folder holds; by default the first of fp32, fp16, int8, int4.
        prepack: lay the weights out anew for speed. Without it they stay in the mapped file, which saves a second copy
            of them in memory and the time to make it.
        in_place: on a CPU, let the cache grow where it lies, which takes another operator than the folder's graph has.
            Without it, or where that cannot be, the graph is run as it is, as other clients run it.
        large_pages: after some steps, move the weights to pages of 2 MiB, where Linux can: see
            ``converter.runtime.huge_pages``. It decodes faster, and changes memory of this process.

    Raises:
        ConfigError: there is no such precision, or it is not to be had without ``prepack``.
        ModelFolderError: the folder is incomplete or its graph cannot be opened.
        ProviderError: the provider is not there, or does not work on this machine.
    """
    folder = Path(folder)
    name = provider_name(provider)
    file = model_file(folder, precision)
    config = config_of(folder)
    if not config.head_spec.predicts:
        raise ModelFolderError(f"{folder} has the head {config.head} and generates nothing: gpt2onnx run {folder} TEXT")
    before = regions()
    quantized = next((row.name for row in PRECISIONS.values() if row.scheme and file.match(row.model)), None)
    if quantized and not prepack:
        raise ConfigError(
            f"{quantized} would run {SLOWER} times slower from the file itself: omit --no-prepack (prepack=False)"
        )
    graph = rewritten(file) if in_place and name == CPU_PROVIDER else None
    session, is_in_place = _open(file, name, threads, prepack, graph)
    cache, _ = cache_names(config.n_layer)
    shapes = refuse_another_interface(file, session, {*(IN_PLACE_FED if is_in_place else STEP_FED), *cache})
    shape = shapes[cache[0]]
    if [shape[1], shape[3]] != [config.n_head, config.head_dim]:
        raise ModelFolderError(
            f"{file} is not the graph that config.json describes: its cache has {shape[1]} heads of {shape[3]}, "
            f"config.json has {config.n_head} of {config.head_dim}"
        )
    device = "cuda" if provider.lower() == "cuda" else "cpu"
    return Model(folder, config, session, device, is_in_place, Mover(before) if large_pages else None)


def _open(
    file: Path, provider: str, threads: int | None, prepack: bool, graph: bytes | None
) -> tuple[InferenceSession, bool]:
    """Open ``graph``, or if ONNX Runtime refuses it the graph in ``file``; return whether it is the former."""
    with untiled():
        if graph is not None:
            try:
                return open_session(file, provider, threads, prepack, graph), True
            except ModelFolderError:
                pass  # what is wrong with the folder, if anything is, is said of the graph as it is
        return open_session(file, provider, threads, prepack), False


def config_of(folder: Path) -> GPT2Config:
    """Return the architecture that a model folder describes.

    Raises:
        ConfigError: it describes none.
    """
    return parse_config(read_json(folder / "config.json"), folder / "config.json")


def refuse_another_interface(file: Path, session: InferenceSession, expected: set[str]) -> dict[str, list[Any]]:
    """Return the shapes of a graph's inputs; refuse inputs that do not follow from ``config.json``.

    Raises:
        ModelFolderError: it takes something else.
    """
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    for name in sorted(expected ^ shapes.keys()):
        found = "it lacks" if name in expected else "it also takes"
        raise ModelFolderError(f"{file} is not the graph that config.json describes: {found} the input {name}")
    return shapes
