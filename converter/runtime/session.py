"""A model folder in ONNX Runtime: opened once, then run step by step with the cache left where the runtime put it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter import manifest, precisions, tokenizer
from converter.checkpoint.config import parse_config, read_json
from converter.clients import token_ids
from converter.errors import ModelFolderError, PromptError, ProviderError
from converter.weights import LM
from reference.config import GPT2Config

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as error:
    raise ProviderError(
        "ONNX Runtime is not installed; install it with: pip install 'gpt2onnx[cpu]', or 'gpt2onnx[gpu]' for CUDA"
    ) from error

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from converter.runtime.generation import Generation

FED = ("input_ids", "attention_mask")  # what every graph takes
STEP_FED = (*FED, "position_ids", "num_logits_to_keep")  # and beside the cache that of a language model

MODEL_FILES = ("onnx/model.onnx", "model.onnx")  # where a folder without our manifest may have its graph

LOG_ERRORS_ONLY = 3  # num_logits_to_keep, an input with a default, draws a warning at every load otherwise

# What ONNX Runtime raises for a graph it cannot open.
OPEN_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidGraph,
    ort_state.InvalidArgument,
    ort_state.InvalidProtobuf,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)

ortvalue = onnxruntime.OrtValue.ortvalue_from_numpy

# The element types that a cache may have.
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}

Cache = list[Any]  # OrtValues: keys and values of each layer in turn, [batch, n_head, tokens, head_dim]


def device_of(name: str) -> Any:
    """A device as ONNX Runtime's own calls want it."""
    return onnxruntime.OrtDevice.make(name, 0)._get_c_device()


CPU = device_of("cpu")


def run_values(
    session: onnxruntime.InferenceSession, feeds: dict[str, Any], outputs: Sequence[str], devices: Sequence[Any]
) -> list[Any]:
    """Run a session on OrtValues (of ``ort_state``); each output is left on its device.

    This is what an IO binding does, in one call: to bind 25 values by name took 40 µs of each token.
    """
    fed, fetched = ort_state.OrtValueVector(), ort_state.OrtValueVector()
    for value in feeds.values():
        fed.push_back(value)
    session.run_with_ortvaluevector(onnxruntime.RunOptions(), list(feeds), fed, outputs, fetched, devices)
    return [fetched[i] for i in range(len(outputs))]  # an iterator over the vector takes eight times as long


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of an execution provider: ``cuda`` → ``CUDAExecutionProvider``.

    Raises:
        ProviderError: the installed ONNX Runtime does not have it.
    """
    offered = {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}
    if provider.lower() not in offered:
        mend = "; install onnxruntime-gpu in place of onnxruntime" if provider.lower() in ("cuda", "tensorrt") else ""
        raise ProviderError(
            f"the installed ONNX Runtime has no provider {provider}; it offers {', '.join(offered)}{mend}"
        )
    return offered[provider.lower()]


def session_options(threads: int | None = None, prepack: bool = True) -> onnxruntime.SessionOptions:
    """How the runtime is used, here and in ``check``: its defaults, its log reduced to errors.

    Without ``prepack`` the matrices are multiplied as they lie in the mapped file, not in copies laid out for speed.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def model_file(folder: Path, precision: str | None = None) -> Path:
    """The graph of a model folder, in one of its precisions or in the first.

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
class Model:
    """A model folder, opened.

    Attributes:
        folder: where it is.
        config: the architecture.
        session: the ONNX Runtime session.
        device: where the runtime keeps the cache, ``cpu`` or ``cuda``.
    """

    folder: Path
    config: GPT2Config
    session: onnxruntime.InferenceSession
    device: str = "cpu"

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The folder's tokenizer, if it has one."""
        return tokenizer.load(self.folder)

    @cached_property
    def token_ids(self) -> dict[str, int | list[int]]:
        """``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as far as the model has such tokens."""
        generation = self.folder / "generation_config.json"
        values = [read_json(self.folder / "config.json")]
        return token_ids(self.config, *values, *([read_json(generation)] if generation.is_file() else []))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        ids = self.token_ids.get("eos_token_id", [])
        return frozenset(ids if isinstance(ids, list) else [ids])

    @cached_property
    def pad_id(self) -> int:
        """What stands where a row has no token."""
        pad = self.token_ids["pad_token_id"]
        return pad[0] if isinstance(pad, list) else pad

    @cached_property
    def cache_names(self) -> tuple[list[str], list[str]]:
        """The cache's names as inputs and as outputs."""
        parts = [f"{i}.{part}" for i in range(self.config.n_layer) for part in ("key", "value")]
        return [f"past_key_values.{part}" for part in parts], [f"present.{part}" for part in parts]

    @cached_property
    def cache_type(self) -> Any:
        """The cache's element type, numpy's."""
        name = self.cache_names[0][0]
        return next(CACHE_TYPES[value.type] for value in self.session.get_inputs() if value.name == name)

    @cached_property
    def _devices(self) -> list[Any]:
        """Where the outputs are wanted: logits here, the cache where it is used."""
        return [CPU, *[device_of(self.device)] * (2 * self.config.n_layer)]

    def empty_cache(self, batch: int) -> Cache:
        """A cache that holds no token."""
        shape = [batch, self.config.n_head, 0, self.config.head_dim]
        empty = ort_state.OrtValue.ortvalue_from_shape_and_type(shape, self.cache_type, self._devices[-1])
        return [empty] * (2 * self.config.n_layer)

    def step(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, position_ids: np.ndarray, cache: Cache, keep: int = 0
    ) -> tuple[np.ndarray, Cache]:
        """Run the graph over new tokens; the cache goes from run to run without passing through Python.

        Args:
            input_ids: ``[batch, new]`` int64.
            attention_mask: ``[batch, cached + new]`` int64, 0 for padding.
            position_ids: ``[batch, new]`` int64.
            cache: of an earlier step, or ``empty_cache``.
            keep: the logits of how many last positions are wanted; 0 for all.

        Returns:
            Logits ``[batch, keep or new, vocab_size]`` float32, and the longer cache.
        """
        given = [np.ascontiguousarray(array, np.int64) for array in (input_ids, attention_mask, position_ids)]
        given.append(np.array(keep, np.int64))  # OrtValues are views of these arrays: they live as long as the run
        values = [ort_state.OrtValue.ortvalue_from_numpy(array, CPU) for array in given]
        pasts, presents = self.cache_names
        feeds = dict(zip([*STEP_FED, *pasts], values + cache, strict=True))
        logits, *longer = run_values(self.session, feeds, ["logits", *presents], self._devices)
        return logits.numpy(), longer

    @cached_property
    def _gathers(self) -> dict[int, onnxruntime.InferenceSession]:
        return {}

    def take(self, cache: Cache, indices: np.ndarray, axis: int = 0) -> Cache:
        """Rows (axis 0) or slots (axis 2) of a cache, gathered on its device.

        Args:
            cache: of an earlier step.
            indices: ``[kept]`` int64, in the new order; one may come several times.
            axis: what is kept.
        """
        from converter.runtime.gather import open_gather

        if axis not in self._gathers:
            self._gathers[axis] = open_gather(self, axis)
        indices = np.ascontiguousarray(indices, np.int64)
        pasts, presents = self.cache_names
        values = [ort_state.OrtValue.ortvalue_from_numpy(indices, CPU), *cache]
        feeds = dict(zip(["indices", *pasts], values, strict=True))
        return run_values(self._gathers[axis], feeds, presents, self._devices[1:])

    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """The logits after each token: ``[tokens]`` ids give ``[tokens, vocab_size]``, ``[batch, tokens]`` one more.

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
        refuse_ids(array, self.config)
        if array.shape[1] > self.config.n_positions:
            raise PromptError(f"{array.shape[1]} tokens are more than the model's {self.config.n_positions} positions")
        positions = np.broadcast_to(np.arange(array.shape[1]), array.shape)
        logits, _ = self.step(array, np.ones_like(array), positions, self.empty_cache(len(array)))
        return logits if np.ndim(ids) == 2 else logits[0]

    def generate(self, prompts: str | Sequence[str] | Sequence[Sequence[int]], **options: Any) -> Generation:
        """Continue prompts; see ``converter.runtime.generation.generate`` for the options."""
        from converter.runtime.generation import generate

        return generate(self, prompts, **options)


def refuse_ids(ids: np.ndarray, config: GPT2Config) -> None:
    """The embedding must have a row for every id.

    Raises:
        PromptError: one has none.
    """
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if outside.size:
        raise PromptError(
            f"token id {int(outside[0])} is not one of the model's {config.vocab_size} tokens "
            f"(0 to {config.vocab_size - 1})"
        )


def load(
    folder: str | os.PathLike[str],
    provider: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    prepack: bool = True,
) -> Model:
    """Open a model folder in ONNX Runtime.

    Args:
        folder: what ``convert`` wrote.
        provider: ``cpu``, ``cuda`` or another that the installed ONNX Runtime offers.
        threads: for one operator; by default one a core.
        precision: one that the folder holds; by default the first of fp32, fp16, int8, int4.
        prepack: lay the weights out anew for speed; without it they stay in the mapped file, which saves a second copy
            of them in memory and the time to make it.

    Raises:
        ModelFolderError: the folder is incomplete or its graph cannot be opened.
        ProviderError: the provider is not there, or does not work on this machine.
    """
    folder = Path(folder)
    name = provider_name(provider)
    file = model_file(folder, precision)
    config = config_of(folder)
    if config.head not in LM:
        raise ModelFolderError(f"{folder} has the head {config.head} and generates nothing: gpt2onnx run {folder} TEXT")
    session = open_session(file, name, threads, prepack)
    cache = [f"past_key_values.{i}.{part}" for i in range(config.n_layer) for part in ("key", "value")]
    shapes = refuse_another_interface(file, session, {*STEP_FED, *cache})
    shape = shapes[cache[0]]
    if [shape[1], shape[3]] != [config.n_head, config.head_dim]:
        raise ModelFolderError(
            f"{file} is not the graph that config.json describes: its cache has {shape[1]} heads of {shape[3]}, "
            f"config.json has {config.n_head} of {config.head_dim}"
        )
    return Model(folder, config, session, "cuda" if provider.lower() == "cuda" else "cpu")


def config_of(folder: Path) -> GPT2Config:
    """The architecture that a model folder describes.

    Raises:
        ConfigError: it describes none.
    """
    return parse_config(read_json(folder / "config.json"), folder / "config.json")


def open_session(
    graph: Path | bytes, provider: str, threads: int | None = None, prepack: bool = True
) -> onnxruntime.InferenceSession:
    """A graph, a file or its bytes, in ONNX Runtime, whose name for the provider is given.

    Raises:
        ModelFolderError: it cannot be opened.
        ProviderError: the provider does not work on this machine.
    """
    onnxruntime.disable_telemetry_events()  # what runs here is nobody else's business
    given, name = (graph, "a graph") if isinstance(graph, bytes) else (os.fspath(graph), str(graph))
    try:
        session = onnxruntime.InferenceSession(given, session_options(threads, prepack), providers=[provider])
    except OPEN_ERRORS as error:
        raise ModelFolderError(
            f"{name} cannot be opened by ONNX Runtime {onnxruntime.__version__} ({error})"
        ) from error
    if session.get_providers()[0] != provider:
        short = provider.removesuffix("ExecutionProvider").lower()
        raise ProviderError(
            f"ONNX Runtime has the provider {short} but cannot use it on this machine; try --provider cpu"
        )
    return session


def refuse_another_interface(
    file: Path, session: onnxruntime.InferenceSession, expected: set[str]
) -> dict[str, list[Any]]:
    """The shapes of a graph's inputs, which must be those that follow from ``config.json``.

    Raises:
        ModelFolderError: it takes something else.
    """
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    for name in sorted(expected ^ shapes.keys()):
        found = "it lacks" if name in expected else "it also takes"
        raise ModelFolderError(f"{file} is not the graph that config.json describes: {found} the input {name}")
    return shapes
