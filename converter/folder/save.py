"""Write any source as a Hugging Face folder, or as a state dict of the from-scratch model.

Every tensor keeps its type and its bits, and where it lies as it is wanted the kernel copies it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from converter import tokenizer
from converter.checkpoint.config import ALIASES
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import LazyTensor
from converter.errors import ConfigError
from converter.files import naming_originals, read_json, write_json
from converter.folder import manifest
from converter.folder.clients import DEFAULT_TOKEN_ID, known_ids
from converter.folder.convert import Conversion, Progress
from converter.folder.staging import bytes_in, staged
from converter.weights import data_file
from converter.weights.ledger import Ledger, read_source
from converter.weights.table import TABLE, parameters
from converter.weights.write import rows_of_outputs
from reference.config import HEAD_FIELDS, STATE_FILE, STATE_KEY, GPT2Config
from reference.head import HEADS

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"

DEFAULT_SHARD_SIZE = "50GB"  # transformers' own
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(KB|MB|GB|TB)", re.IGNORECASE)

# Keys of a config.json that are not true of the new folder, or say in another way what the others say.
LEFT_OUT = {"auto_map", "quantization_config", "torch_dtype", "transformers.js_config", *ALIASES}

Files = Mapping[str, Mapping[str, LazyTensor]]  # file name → name in it → tensor


@dataclass(frozen=True)
class Contents:
    """The files of a folder, beside those that every folder has.

    Attributes:
        target: what ``--to`` calls it.
        files: of weights.
        metadata: in each of them.
        texts: name of a JSON file → what is in it.
    """

    target: str
    files: Files
    metadata: Mapping[str, str]
    texts: Mapping[str, Mapping[str, Any]]


def to_huggingface(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    force: bool = False,
    ignore: Iterable[str] = (),
    scan: bool = True,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    head: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a GPT-2 checkpoint of any format as the folder that transformers' ``save_pretrained`` would write.

    Its weights keep their types; a head that is the embedding is left out. ``out`` appears whole or not at all.

    Args:
        max_shard_size: the most that a file of weights may hold: bytes, or a text such as ``5GB``. A tensor that is
            larger gets a file of its own.
        source, force, ignore, scan, activation, adapter, head, progress: as for ``convert``.

    Raises:
        ConfigError, CheckpointError: as ``convert`` does; or ``max_shard_size`` is no size.
        OutputError: the folder cannot be written, or exists.
    """
    limit = parse_size(max_shard_size)
    read_as = SourceOptions(tuple(ignore), activation, adapter, head)
    checkpoint, ledger = read_source(source, read_as, bars=progress is not None)
    names = {name: huggingface_name(name, ledger.config.head) for name in ledger.weights}
    files = shards({names[name]: weight for name, weight in ledger.weights.items()}, limit)
    texts = {"config.json": config_json(checkpoint, ledger)}
    if len(files) > 1:
        texts[INDEX] = index_json(files, ledger)
    contents = Contents("hf", files, data_file.METADATA, texts)
    return _write(checkpoint, ledger, Path(out), contents, force, scan, progress)


def to_reference(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    ignore: Iterable[str] = (),
    scan: bool = True,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    head: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a GPT-2 checkpoint of any format as ``reference.safetensors``, a state dict of ``GPT2(config)``, or of the
    class in ``reference/heads.py`` that has the source's head.

    Projections are ``nn.Linear``'s, [out, in]; the config stands in the metadata; a head that is the embedding is left
    out. ``GPT2.from_pretrained(out)`` opens it, and so does plain torch::

        weights = safetensors.torch.load_file("out/reference.safetensors")
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["wte.weight"]
        GPT2(config).load_state_dict(weights)

    Args:
        source, force, ignore, scan, activation, adapter, head, progress: as for ``convert``.

    Raises:
        ConfigError, CheckpointError: as ``convert`` does; or the model has two heads.
        OutputError: the folder cannot be written, or exists.
    """
    read_as = SourceOptions(tuple(ignore), activation, adapter, head)
    checkpoint, ledger = read_source(source, read_as, bars=progress is not None)
    if len(ledger.per_graph) > 1:
        raise ConfigError(f"{source} has two heads, which no class of the reference has; choose one with --head lm")
    layouts = {name: layout for name, layout, _ in parameters(ledger.config)}
    state = {name: rows_of_outputs(weight, layouts[name]) for name, weight in ledger.weights.items()}
    metadata = data_file.METADATA | {STATE_KEY: json.dumps(config_json(checkpoint, ledger))}
    contents = Contents("reference", {STATE_FILE: state}, metadata, {})
    return _write(checkpoint, ledger, Path(out), contents, force, scan, progress)


def _write(
    checkpoint: Checkpoint,
    ledger: Ledger,
    out: Path,
    contents: Contents,
    force: bool,
    scan: bool,
    progress: Progress | None,
) -> Conversion:
    layouts = {name: data_file.plan(part, contents.metadata, dtype=None) for name, part in contents.files.items()}
    counter = data_file.Counter(progress)
    looked_at = counter.scan(ledger.weights, scan)
    written = counter.part(sum(layout.nbytes for layout in layouts.values()), data_file.WRITE_EFFORT)
    with staged(out, force) as stage:
        manifest.carry(checkpoint, stage)
        with naming_originals(manifest.originals(checkpoint, stage)):
            tokenizer.load(stage)  # a damaged one is refused
        _correct_generation(checkpoint, stage, ledger.config)
        for name, values in contents.texts.items():
            write_json(stage / name, values)
        for name, tensors in contents.files.items():
            data_file.write(stage / name, layouts[name], tensors, looked_at, written)
        manifest.write(stage, manifest.describe(checkpoint, ledger, {manifest.TARGET: contents.target}))
        bytes_written = bytes_in(stage)
    return Conversion(out, ledger, bytes_written, checkpoint.notes, runs=False)


def huggingface_name(name: str, head: str) -> str:
    """Return a canonical name as transformers' class with this head spells it."""
    bare = HEADS[head].bare or any(name == weight.name for weight in TABLE if weight.heads)
    return name if bare else f"transformer.{name}"


def parse_size(size: int | str) -> int:
    """Return a number of bytes, given as a number or as ``5GB``, in the decimal units of transformers.

    Raises:
        ConfigError: it is nothing of the kind, or less than a byte.
    """
    found = SIZE.fullmatch(str(size).strip())
    if found:
        count = int(float(found[1]) * UNITS[found[2].upper()])
    else:
        count = int(size) if re.fullmatch(r"[0-9]{1,18}", str(size)) else 0
    if count < 1:
        raise ConfigError(
            f"max_shard_size is {size!r}; expected bytes, or a number with {', '.join(UNITS)}, such as 5GB"
        )
    return count


def shards(tensors: Mapping[str, LazyTensor], limit: int) -> Files:
    """Distribute tensors over files of ``limit`` bytes, as transformers does: in order; a larger tensor gets its own
    file.
    """
    parts: list[dict[str, LazyTensor]] = []
    current: dict[str, LazyTensor] = {}
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > limit:
            parts.append({name: tensor})
            continue
        if tensor.nbytes > room:
            parts.append(current)
            current, room = {}, limit
        current[name] = tensor
        room -= tensor.nbytes
    if current:
        parts.append(current)
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, 1)}


def index_json(files: Files, ledger: Ledger) -> dict[str, Any]:
    """Return the index that says which file holds which tensor."""
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    return {
        "metadata": {"total_parameters": ledger.parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }


def config_json(checkpoint: Checkpoint, ledger: Ledger) -> dict[str, Any]:
    """Return the source's ``config.json`` as it holds for these weights, with every key that shapes the model.

    Where weights are of several types it names float32, which holds them all: transformers gives every weight one type,
    and without a name that of the first.
    """
    config, values = ledger.config, checkpoint.config_values
    numbers = {field.name for field in fields(GPT2Config) if field.type == "float"}  # transformers takes no 0 for 0.0
    dtypes = {weight.dtype for weight in ledger.weights.values()}
    result = {key: value for key, value in values.items() if key not in LEFT_OUT}
    result |= {"architectures": [config.head_spec.class_name], "model_type": "gpt2"}
    described = {key: value for key, value in asdict(config).items() if key not in HEAD_FIELDS}
    result |= {key: float(value) if key in numbers else value for key, value in described.items()}
    result["dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    for key in ("bos_token_id", "eos_token_id"):
        result.setdefault(key, DEFAULT_TOKEN_ID)
    return result | _token_ids(result, config)


def _token_ids(values: Mapping[str, Any], config: GPT2Config) -> dict[str, int | list[int] | None]:
    """Return each ``…_token_id``, null if the model has no such token: transformers would warn of it."""
    return {key: known_ids(value, config.vocab_size) for key, value in values.items() if key.endswith("_token_id")}


def _correct_generation(checkpoint: Checkpoint, folder: Path, config: GPT2Config) -> None:
    """Remove ids from ``generation_config.json`` that are no tokens of the model."""
    if GENERATION_CONFIG in checkpoint.companions:
        values = read_json(checkpoint.companions[GENERATION_CONFIG])
        corrected = values | _token_ids(values, config)
        if corrected != values:
            write_json(folder / GENERATION_CONFIG, corrected)
