"""Read the folder of a PEFT LoRA adapter: which tensor is what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import safetensors_file, torch_file
from converter.checkpoint.adapter_config import refuse_unknown, replaces, saves
from converter.checkpoint.adapter_names import (
    ADAPTER_PREFIX,
    BY_TOKENS,
    COPIES,
    ORIGINAL,
    PARTS,
    REPLACED,
    TOKENS,
)
from converter.checkpoint.folder import Reader, choose_weight_file, read_weights, refuse_steps
from converter.checkpoint.names import canonical
from converter.checkpoint.source import ADAPTER_CONFIG
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError
from converter.files import read_json

WEIGHT_FILES: tuple[tuple[str, Reader], ...] = (  # in PEFT's own order
    ("adapter_model.safetensors", safetensors_file.read),
    ("adapter_model.bin", torch_file.read),
)
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Adapter:
    """An adapter, read from its files.

    Attributes:
        file: the file of its weights.
        values: the contents of ``adapter_config.json``.
        updates: canonical module name → kind of tensor, as in ``PARTS`` → the tensor.
        tokens: canonical module name → the rows of single tokens that were trained.
        replaced: canonical tensor name → the tensor that replaces the base's.
        originals: canonical tensor name → the base's tensor, as it was before one of ``replaced`` took its place.
        modules: canonical module name → PEFT's name of it, against which patterns are matched.
    """

    file: Path
    values: Mapping[str, Any]
    updates: Mapping[str, Mapping[str, LazyTensor]]
    tokens: Mapping[str, LazyTensor]
    replaced: Mapping[str, LazyTensor]
    originals: Mapping[str, LazyTensor]
    modules: Mapping[str, str]

    @property
    def config(self) -> Path:
        """Return the path of ``adapter_config.json``."""
        return self.file.with_name(ADAPTER_CONFIG)


def read(folder: Path) -> Adapter:
    """Read an adapter's config and the list of its tensors. No weights are read.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter is not LoRA or uses an unsupported feature.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        if folder.is_dir():
            refuse_steps(folder)
        raise CheckpointError(f"{folder} has no {ADAPTER_CONFIG}; expected the folder of a PEFT adapter")
    values = read_json(folder / ADAPTER_CONFIG)
    refuse_unknown(folder / ADAPTER_CONFIG, values)
    present = [(folder / name, reader) for name, reader in WEIGHT_FILES if (folder / name).is_file()]
    if not present:
        raise CheckpointError(f"{folder} has no {' or '.join(name for name, _ in WEIGHT_FILES)}")
    file, reader = present[0]
    updates: dict[str, dict[str, LazyTensor]] = {}
    tokens: dict[str, LazyTensor] = {}
    replaced: dict[str, LazyTensor] = {}
    originals: dict[str, LazyTensor] = {}
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
        elif part == TOKENS and module in BY_TOKENS and values.get("trainable_token_indices"):
            place, kind = tokens, module
        elif part in REPLACED and replaces(values, known, module, part):
            place, kind = replaced, f"{module}.{REPLACED[part]}"
        elif part in ORIGINAL and saves(values, known):
            place, kind = originals, f"{module}.{ORIGINAL[part]}"
        elif part in COPIES and saves(values, known):
            continue
        else:
            raise CheckpointError(f"{file}: tensor {tensor.name} is none of the tensors that {ADAPTER_CONFIG} asks for")
        if kind in place:
            raise CheckpointError(f"{file} holds {place[kind].name} and {tensor.name}, which stand for the same tensor")
        place[kind] = tensor
    for name, tensor in replaced.items():
        module, _, kind = name.rpartition(".")
        within = tensor.name.endswith(f".base_layer.{kind}")
        if within != (module in updates or module in tokens) and (within or kind == "weight"):  # PEFT would not load it
            raise CheckpointError(f"{file}: tensor {tensor.name} is not where PEFT looks for the base of an update")
    return Adapter(file, values, updates, tokens, replaced, originals, modules)


def refuse_as_source(path: Path) -> None:
    """Refuse an adapter that stands where a model is expected.

    Raises:
        CheckpointError: ``path`` is an adapter's folder, or the file of its weights.
    """
    own = tuple(name for name, _ in WEIGHT_FILES)
    folder = path if path.is_dir() else path.parent
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    if path.name in own or (path.is_dir() and choose_weight_file([entry.name for entry in path.iterdir()]) is None):
        raise as_source(folder / ADAPTER_CONFIG, str(folder))


def as_source(config: Path, adapter: str) -> CheckpointError:
    """Return what is said of an adapter that stands where a model is expected.

    Args:
        adapter: what ``--adapter`` takes for it.
    """
    base = read_json(config).get("base_model_name_or_path")
    known = f"{base}, which it changes," if base else "the model that it was trained on"
    return CheckpointError(f"{adapter} is an adapter and no model: give {known} as SOURCE, and --adapter {adapter}")


def _split(name: str) -> tuple[str, str]:
    """Split a tensor's name into PEFT's name of the module, and the part. The part is empty if it is unknown."""
    name = name.removeprefix(ADAPTER_PREFIX)
    known = next((part for part in (*PARTS, TOKENS, *ORIGINAL, *COPIES, *REPLACED) if name.endswith(f".{part}")), None)
    return (name.removesuffix(f".{known}"), known) if known else (name, "")
