"""Merge a PEFT LoRA adapter into the weights of a checkpoint, as PEFT's ``merge_and_unload`` does.

Sums are computed in float64, one block of rows at a time, and rounded once. The layout of a weight follows from the
name of its module. ``fan_in_fan_out`` is not needed for that: PEFT itself sets it by the kind of module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converter.checkpoint.adapter_base import heads, mend, vocab_size, with_its_head, with_vocabulary
from converter.checkpoint.adapter_config import by_pattern, saves, targets
from converter.checkpoint.adapter_file import Adapter, read
from converter.checkpoint.adapter_names import CONV1D, EMBEDDINGS, LINEAR, TIED
from converter.checkpoint.adapter_rows import floats, matrix_shape, rows, with_rows
from converter.checkpoint.adapter_tokens import with_tokens
from converter.checkpoint.names import canonical, outer_name
from converter.checkpoint.source import ADAPTER_CONFIG
from converter.checkpoint.tensor import STRIDED_BYTES, LazyTensor
from converter.errors import CheckpointError

if TYPE_CHECKING:
    from converter.checkpoint.source import Checkpoint

DEFAULT_RANK = DEFAULT_ALPHA = 8


@dataclass(frozen=True)
class Update:
    """The update of one weight: ``scale`` · B @ A. With DoRA, ``magnitude`` is the new length of each output."""

    a: LazyTensor  # [r, in]
    b: LazyTensor  # [out, r]
    scale: float
    by_input: bool  # whether the weight's rows are inputs, as in Conv1D and embeddings
    magnitude: LazyTensor | None = None  # [out]

    def added(self, first: int, end: int) -> np.ndarray:
        """Return rows ``first`` to ``end`` of the update, float64."""
        a, b = floats(self.a), floats(self.b)
        return self.scale * (a[:, first:end].T @ b.T if self.by_input else b[first:end] @ a)


def merge(checkpoint: Checkpoint, folder: Path, name: str) -> Checkpoint:
    """Return a checkpoint with an adapter merged into its weights.

    Weights that change become float32. Nothing is computed yet.

    Args:
        name: the adapter's name in notes, in the manifest and on the model card.

    Raises:
        CheckpointError: the adapter is damaged, belongs to another model, or uses a feature that is not supported.
    """
    adapter = read(folder)
    checkpoint = with_its_head(checkpoint, adapter.replaced)
    names: dict[str, str] = {}  # canonical → the checkpoint's
    outer = outer_name(checkpoint.tensors)
    for key in checkpoint.tensors:
        short = canonical(key, outer)
        if names.setdefault(short, key) != key:
            raise CheckpointError(f"{checkpoint.folder} holds {short} twice: as {names[short]} and {key}")
    tensors = {short: checkpoint.tensors[key] for short, key in names.items()}
    tensors |= {short: tensor for short, tensor in adapter.originals.items() if short in tensors}
    _refuse_incomplete(adapter, tensors)
    tied = _refuse_ambiguous(adapter, checkpoint)
    if tied and "wte.weight" in adapter.replaced and "lm_head.weight" not in {*adapter.replaced, *tensors}:
        tensors["lm_head.weight"] = tensors["wte.weight"]  # a copy of wte was trained; the head keeps the old one
    added = (*heads(adapter.replaced), *(["lm_head.weight"] if tied else []))
    for short, tensor in adapter.replaced.items():
        if short not in tensors and not short.startswith(added):
            raise CheckpointError(f"{adapter.file}: {tensor.name} stands for {short}, which {checkpoint.name} lacks")
        tensors[short] = tensor
    for module, parts in adapter.updates.items():
        tensors |= _merged(adapter, module, parts, tensors, checkpoint.name)
    tensors |= with_tokens(adapter, tensors, tied, checkpoint.name)
    apart = tied and not adapter.tokens and not {"wte.weight", "lm_head.weight"}.isdisjoint(adapter.replaced)
    size = vocab_size(adapter.file, checkpoint, tensors, {*adapter.replaced, *adapter.originals})
    if size != checkpoint.config.vocab_size:
        checkpoint = with_vocabulary(checkpoint, size, folder)
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


def _refuse_incomplete(adapter: Adapter, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse an adapter that does not update exactly the modules that its config targets. PEFT only warns."""
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
    """Refuse an update of a tied head or embedding; return whether the two are tied.

    PEFT gives such an update two meanings: before merging it changes only one of the two, after merging both.
    """
    tied = checkpoint.config.tie_word_embeddings and checkpoint.config.head_spec.predicts
    shared = [module for module in TIED if module in adapter.updates]
    if tied and shared and adapter.values.get("ensure_weight_tying"):
        raise CheckpointError(
            f"{adapter.config} sets ensure_weight_tying for an update of {shared[0]}, which cannot be merged; merge "
            f"with peft itself and save that"
        )
    if tied and shared:
        raise CheckpointError(
            f"{adapter.file} has an update of {shared[0]}, and {checkpoint.name} ties wte and lm_head: "
            f"with peft, merging such an adapter changes what the model computes"
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
    """Return the merged weight of one module, and its bias if that is updated, by tensor name."""
    weight = tensors.get(f"{module}.weight")
    if weight is None:
        raise CheckpointError(f"{adapter.file} has an update of {module}, and {base} has no {module}.weight")
    scale, rank = _scale(adapter, module)
    update = _update(adapter, module, parts, scale)
    inputs, outputs = matrix_shape(weight) if update.by_input else matrix_shape(weight)[::-1]
    expected: list[tuple[LazyTensor, tuple[int, ...]]] = [(update.a, (rank, inputs)), (update.b, (outputs, rank))]
    expected += [(update.magnitude, (outputs,))] if update.magnitude else []
    for tensor, shape in expected:
        if tensor.shape != shape:
            raise CheckpointError(
                f"{adapter.file}: tensor {tensor.name} is {list(tensor.shape)}; expected {list(shape)}, "
                f"as r is {rank} and {weight.name} of {base} is {list(weight.shape)}{mend(module, tensor, shape)}"
            )
    found: dict[str, LazyTensor] = {f"{module}.weight": with_rows(weight, _rows(weight, update))}
    shift = parts.get("B bias")
    if shift is not None:
        bias = tensors.get(f"{module}.bias")
        if bias is None or bias.shape != shift.shape:
            raise CheckpointError(f"{adapter.file}: tensor {shift.name} fits no bias of {module} in {base}")
        found[f"{module}.bias"] = with_rows(bias, lambda a, b: rows(bias, a, b) + scale * floats(shift)[a:b])
    return found


def _update(adapter: Adapter, module: str, parts: Mapping[str, LazyTensor], scale: float) -> Update:
    """Return the update of a module, if it has exactly the tensors that a module of its kind needs."""
    values = adapter.values
    by_input = CONV1D.fullmatch(module) is not None
    embedding = module in EMBEDDINGS
    if not by_input and not embedding and module not in LINEAR:
        raise CheckpointError(f"{adapter.file} has an update of {module}, which no LoRA adapter of a GPT-2 can update")
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
    """Return the factor of B @ A, and the rank. Patterns are matched against the end of the name, as in PEFT."""
    values, known = adapter.values, adapter.modules[module]
    rank = by_pattern(values.get("rank_pattern"), known, values.get("r", DEFAULT_RANK))
    alpha = by_pattern(values.get("alpha_pattern"), known, values.get("lora_alpha", DEFAULT_ALPHA))
    return alpha / (math.sqrt(rank) if values.get("use_rslora") else rank), rank


def _rows(weight: LazyTensor, update: Update) -> Callable[[int, int], np.ndarray]:
    """Return a function that computes rows of the merged weight, float64."""

    def added(first: int, end: int) -> np.ndarray:
        return rows(weight, first, end) + update.added(first, end)

    magnitude = update.magnitude
    if magnitude is None:
        return added

    @cache
    def factor() -> np.ndarray:
        """Return DoRA's factor for each output: its learned length, divided by its actual length."""
        if update.by_input:
            squares = sum(np.square(piece).sum(0) for piece in _pieces(weight, added))
        else:
            squares = np.concatenate([np.square(piece).sum(1) for piece in _pieces(weight, added)])
        with np.errstate(divide="ignore", invalid="ignore"):  # an output of zeros gives NaN, which the scan reports
            return floats(magnitude) / np.sqrt(squares)

    def scaled(first: int, end: int) -> np.ndarray:
        return added(first, end) * (factor() if update.by_input else factor()[first:end, None])

    return scaled


def _pieces(weight: LazyTensor, compute: Callable[[int, int], np.ndarray]) -> Iterator[np.ndarray]:
    step = max(1, STRIDED_BYTES * weight.shape[0] // max(1, weight.nbytes))
    for first in range(0, weight.shape[0], step):
        yield compute(first, min(first + step, weight.shape[0]))
