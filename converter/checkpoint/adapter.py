"""LoRA adapters of PEFT: what they add to a checkpoint is added to its weights, as ``merge_and_unload`` would.

Sums are taken in float64 and rounded once, a block of rows at a time. How a weight lies follows from its module's
name: ``fan_in_fan_out`` says nothing new, as PEFT too sets it by the kind of module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.checkpoint import safetensors_file, torch_file
from converter.checkpoint.folder import Reader, read_weights
from converter.checkpoint.source import ADAPTER_CONFIG
from converter.checkpoint.tensor import STRIDED_BYTES, Computed, LazyTensor, to_float32
from converter.errors import CheckpointError
from converter.files import read_json

if TYPE_CHECKING:
    from converter.checkpoint.source import Checkpoint
from converter.checkpoint.adapter_config import by_pattern, refuse_unknown, replaces, saves, targets
from converter.checkpoint.adapter_names import ADAPTER_PREFIX, CONV1D, EMBEDDINGS, LINEAR, PARTS, REPLACED, canonical

WEIGHT_FILES: tuple[tuple[str, Reader], ...] = (  # in PEFT's own order
    ("adapter_model.safetensors", safetensors_file.read),
    ("adapter_model.bin", torch_file.read),
)
DTYPES = ("float32", "float16", "bfloat16")

DEFAULT_RANK = DEFAULT_ALPHA = 8


@dataclass(frozen=True)
class Adapter:
    """An adapter as its files have it.

    Attributes:
        file: its weights.
        values: its ``adapter_config.json``.
        updates: canonical module name → what ``PARTS`` calls a tensor → the tensor.
        replaced: canonical tensor name → a tensor that stands in the base's stead.
        modules: canonical module name → the name that PEFT knows it by, which patterns are held against.
    """

    file: Path
    values: Mapping[str, Any]
    updates: Mapping[str, Mapping[str, LazyTensor]]
    replaced: Mapping[str, LazyTensor]
    modules: Mapping[str, str]

    @property
    def config(self) -> Path:
        """The file of ``values``."""
        return self.file.with_name(ADAPTER_CONFIG)


@dataclass(frozen=True)
class Update:
    """What is added to one weight: ``scale`` · B @ A, and with DoRA what its outputs' lengths become."""

    a: LazyTensor  # [r, in]
    b: LazyTensor  # [out, r]
    scale: float
    by_input: bool  # rows of the weight are inputs: of Conv1D and embeddings
    magnitude: LazyTensor | None = None  # [out]

    def added(self, first: int, end: int) -> np.ndarray:
        """Rows of what is added, float64."""
        a, b = floats(self.a), floats(self.b)
        return self.scale * (a[:, first:end].T @ b.T if self.by_input else b[first:end] @ a)


def merge(checkpoint: Checkpoint, folder: Path, name: str) -> Checkpoint:
    """A checkpoint with an adapter added to its weights, which become float32 where it does; nothing is computed yet.

    Args:
        name: what the adapter is called in notes, in the manifest and on the model card.

    Raises:
        CheckpointError: the adapter is damaged, of another model, or does more than is supported here.
    """
    adapter = read(folder)
    names: dict[str, str] = {}  # canonical → the checkpoint's
    for key in checkpoint.tensors:
        if names.setdefault(canonical(key), key) != key:
            raise CheckpointError(
                f"{checkpoint.folder} holds {canonical(key)} twice: as {names[canonical(key)]} and {key}"
            )
    tensors = {short: checkpoint.tensors[key] for short, key in names.items()}
    _refuse_incomplete(adapter, tensors)
    tied = _refuse_ambiguous(adapter, checkpoint)
    if tied and "wte.weight" in adapter.replaced and "lm_head.weight" not in {*adapter.replaced, *tensors}:
        tensors["lm_head.weight"] = tensors["wte.weight"]  # a copy of wte was trained; the head stayed
    for short, tensor in adapter.replaced.items():
        if short not in tensors and not (short == "lm_head.weight" and tied):
            raise CheckpointError(f"{adapter.file}: {tensor.name} stands for {short}, which {checkpoint.name} lacks")
        tensors[short] = tensor
    for module, parts in adapter.updates.items():
        tensors |= _merged(adapter, module, parts, tensors, checkpoint.name)
    apart = tied and not {"wte.weight", "lm_head.weight"}.isdisjoint(adapter.replaced)
    config = replace(checkpoint.config, tie_word_embeddings=checkpoint.config.tie_word_embeddings and not apart)
    return replace(
        checkpoint,
        format=f"merged {checkpoint.format}",
        config=config,
        config_values={**checkpoint.config_values, "tie_word_embeddings": config.tie_word_embeddings},
        tensors={names.get(short, short): tensor for short, tensor in tensors.items()},
        transformers_reads=False,
        notes=(*checkpoint.notes, f"the adapter {name} was merged into {checkpoint.name}"),
        adapter=adapter.file,
        adapter_name=name,
    )


def read(folder: Path) -> Adapter:
    """The files of an adapter; no weights are read.

    Raises:
        CheckpointError: it is not there, damaged, of another kind than LoRA, or asks for what is not supported.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_CONFIG}; expected the folder of a PEFT adapter")
    values = read_json(folder / ADAPTER_CONFIG)
    refuse_unknown(folder / ADAPTER_CONFIG, values)
    present = [(folder / name, reader) for name, reader in WEIGHT_FILES if (folder / name).is_file()]
    if not present:
        raise CheckpointError(f"{folder} has no {' or '.join(name for name, _ in WEIGHT_FILES)}")
    file, reader = present[0]
    updates: dict[str, dict[str, LazyTensor]] = {}
    replaced: dict[str, LazyTensor] = {}
    modules: dict[str, str] = {}
    for tensor in read_weights(file, reader).values():
        known, part = _split(tensor.name)
        module = canonical(known)
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"{file}: tensor {tensor.name} is {tensor.dtype}; expected {', '.join(DTYPES)}")
        if modules.setdefault(module, known) != known:
            raise CheckpointError(f"{file} names {module} in two ways: {modules[module]} and {known}")
        if part in PARTS:
            place, kind = updates.setdefault(module, {}), PARTS[part]
        elif part in REPLACED and replaces(values, known, module, part):
            place, kind = replaced, f"{module}.{REPLACED[part]}"
        else:
            raise CheckpointError(
                f"{file}: tensor {tensor.name} is nothing that {ADAPTER_CONFIG} says the adapter holds"
            )
        if kind in place:
            raise CheckpointError(f"{file} holds {place[kind].name} and {tensor.name}, which are the same")
        place[kind] = tensor
    for name, tensor in replaced.items():
        module, _, kind = name.rpartition(".")
        within = tensor.name.endswith(f".base_layer.{kind}")
        if within != (module in updates) and (within or kind == "weight"):  # else PEFT would not load it
            raise CheckpointError(f"{file}: tensor {tensor.name} is not where PEFT looks for the base of an update")
    return Adapter(file, values, updates, replaced, modules)


def _split(name: str) -> tuple[str, str]:
    """A tensor's name as the module, as PEFT knows it, and the part; the part is empty if it is none we know."""
    name = name.removeprefix(ADAPTER_PREFIX)
    known = next((part for part in (*PARTS, *REPLACED) if name.endswith(f".{part}")), None)
    return (name.removesuffix(f".{known}"), known) if known else (name, "")


def _refuse_incomplete(adapter: Adapter, tensors: Mapping[str, LazyTensor]) -> None:
    """The modules that the config targets and those that have an update are the same; PEFT only warns."""
    for module in adapter.updates:
        if not targets(adapter.values, adapter.modules[module]):
            raise CheckpointError(f"{adapter.file} has an update of {module}, which {ADAPTER_CONFIG} does not target")
    named = {m: known for m, known in adapter.modules.items() if m in adapter.updates and m not in LINEAR}
    before = next((known.removesuffix(m) for m, known in named.items()), "transformer.")
    for name in tensors:
        module, _, part = name.rpartition(".")
        adaptable = CONV1D.fullmatch(module) or module in (*EMBEDDINGS, *LINEAR)
        missing = part == "weight" and adaptable and module not in adapter.updates
        if missing and targets(adapter.values, module if module in LINEAR else before + module):
            raise CheckpointError(f"{adapter.file} has no update of {module}, which {ADAPTER_CONFIG} targets")


def _refuse_ambiguous(adapter: Adapter, checkpoint: Checkpoint) -> bool:
    """Whether head and embedding are one; then an update of either means one thing in PEFT before merging (it is
    that one's alone), and another thereafter (both have it)."""
    tied = checkpoint.config.tie_word_embeddings and checkpoint.config.head_spec.predicts
    shared = [module for module in ("wte", "lm_head") if module in adapter.updates]
    if tied and shared:
        raise CheckpointError(
            f"{adapter.file} has an update of {shared[0]}, and {checkpoint.name} ties wte and lm_head: "
            f"peft itself computes something else after merging than before"
        )
    alone = "wte.weight" in adapter.replaced and "lm_head.weight" not in adapter.replaced
    if tied and alone and not saves(adapter.values, adapter.modules["wte"]):
        raise CheckpointError(
            f"{adapter.file} holds a wte.weight that {ADAPTER_CONFIG} does not name in modules_to_save, "
            f"and no lm_head.weight"
        )
    return tied


def _merged(
    adapter: Adapter, module: str, parts: Mapping[str, LazyTensor], tensors: Mapping[str, LazyTensor], base: str
) -> dict[str, LazyTensor]:
    """The weight, and perhaps the bias, of one module."""
    weight = tensors.get(f"{module}.weight")
    if weight is None:
        raise CheckpointError(f"{adapter.file} has an update of {module}, and {base} has no {module}.weight")
    scale, rank = _scale(adapter, module)
    update = _update(adapter, module, parts, scale)
    if len(weight.shape) != 2:
        raise CheckpointError(f"{weight.file}: tensor {weight.name} is {list(weight.shape)}; expected a matrix")
    inputs, outputs = weight.shape if update.by_input else weight.shape[::-1]
    expected: list[tuple[LazyTensor, tuple[int, ...]]] = [(update.a, (rank, inputs)), (update.b, (outputs, rank))]
    expected += [(update.magnitude, (outputs,))] if update.magnitude else []
    for tensor, shape in expected:
        if tensor.shape != shape:
            raise CheckpointError(
                f"{adapter.file}: tensor {tensor.name} is {list(tensor.shape)}; expected {list(shape)}, "
                f"as r is {rank} and {weight.name} of {base} is {list(weight.shape)}"
            )
    found: dict[str, LazyTensor] = {f"{module}.weight": _with_rows(weight, _rows(weight, update))}
    shift = parts.get("B bias")
    if shift is not None:
        bias = tensors.get(f"{module}.bias")
        if bias is None or bias.shape != shift.shape:
            raise CheckpointError(f"{adapter.file}: tensor {shift.name} fits no bias of {module} in {base}")
        found[f"{module}.bias"] = _with_rows(bias, lambda a, b: rows(bias, a, b) + scale * floats(shift)[a:b])
    return found


def _update(adapter: Adapter, module: str, parts: Mapping[str, LazyTensor], scale: float) -> Update:
    """A, B and what else there is of a module, if they are those that a module of its kind has."""
    values = adapter.values
    by_input = CONV1D.fullmatch(module) is not None
    embedding = module in EMBEDDINGS
    if not by_input and not embedding and module not in LINEAR:
        raise CheckpointError(f"{adapter.file} has an update of {module}, which is no module of a GPT-2 to update")
    if embedding and values.get("use_dora"):
        raise CheckpointError(f"{adapter.config} sets use_dora for the embedding {module}, which cannot be merged")
    needed = ["embedding A", "embedding B"] if embedding else ["A", "B"]
    needed += ["magnitude"] if values.get("use_dora") else []
    needed += ["B bias"] if values.get("lora_bias") and not embedding else []
    if set(needed) != set(parts):
        odd = sorted(set(needed) ^ set(parts))[0]
        raise CheckpointError(
            f"{adapter.file}: the update of {module} has {', '.join(sorted(parts))}; expected {', '.join(needed)}: "
            f"{odd} is {'missing' if odd in needed else 'one too many'}"
        )
    return Update(parts[needed[0]], parts[needed[1]], scale, by_input or embedding, parts.get("magnitude"))


def _scale(adapter: Adapter, module: str) -> tuple[float, int]:
    """What B @ A is multiplied with, and its rank; patterns are held against the end of the name, as PEFT does."""
    values, known = adapter.values, adapter.modules[module]
    rank = by_pattern(values.get("rank_pattern"), known, values.get("r", DEFAULT_RANK))
    alpha = by_pattern(values.get("alpha_pattern"), known, values.get("lora_alpha", DEFAULT_ALPHA))
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank), rank


def _rows(weight: LazyTensor, update: Update) -> Callable[[int, int], np.ndarray]:
    """Computes rows of the merged weight, float64."""

    def added(first: int, end: int) -> np.ndarray:
        return rows(weight, first, end) + update.added(first, end)

    magnitude = update.magnitude
    if magnitude is None:
        return added

    @cache
    def factor() -> np.ndarray:
        """What DoRA gives each output: its length as learned, by its length as it is."""
        if update.by_input:
            squares = sum(np.square(piece).sum(0) for piece in _pieces(weight, added))
        else:
            squares = np.concatenate([np.square(piece).sum(1) for piece in _pieces(weight, added)])
        with np.errstate(divide="ignore", invalid="ignore"):  # an output of nothing but zeros is found by the scan
            return floats(magnitude) / np.sqrt(squares)

    def scaled(first: int, end: int) -> np.ndarray:
        return added(first, end) * (factor() if update.by_input else factor()[first:end, None])

    return scaled


def _pieces(weight: LazyTensor, compute: Callable[[int, int], np.ndarray]) -> Iterator[np.ndarray]:
    step = max(1, STRIDED_BYTES * weight.shape[0] // max(1, weight.nbytes))
    for first in range(0, weight.shape[0], step):
        yield compute(first, min(first + step, weight.shape[0]))


def _with_rows(tensor: LazyTensor, compute: Callable[[int, int], np.ndarray]) -> Computed:
    """What a tensor has become."""

    def narrowed(first: int, end: int) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is found by the scan
            return compute(first, end).astype(np.float32)

    return Computed(tensor.name, "float32", tensor.shape, tensor.file, tensor.offset, compute=narrowed)


def rows(tensor: LazyTensor, first: int, end: int) -> np.ndarray:
    """Rows ``first`` to ``end`` of a tensor as float64; only they are read, unless its first dimension is joined."""
    if isinstance(tensor, Computed):
        return tensor.compute(first, end).astype(np.float64)
    view = tensor.view or tensor.shape
    if view[0] == tensor.shape[0]:
        mapped = replace(tensor, shape=view, view=None).memmap()[first:end].reshape(end - first, *tensor.shape[1:])
    else:
        mapped = tensor.memmap()[first:end]
    return to_float32(mapped, tensor.dtype).astype(np.float64)


def floats(tensor: LazyTensor) -> np.ndarray:
    """All of a small tensor as float64."""
    return to_float32(tensor.memmap(), tensor.dtype).astype(np.float64)
