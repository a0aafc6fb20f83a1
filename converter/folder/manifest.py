"""What every folder has that gpt2onnx writes: the source's companions, and a manifest that names the source."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import Computed
from converter.errors import ModelFolderError
from converter.files import read_json, refuse_damaged, write_json
from converter.folder.staging import MANIFEST, files_in
from converter.version import VERSION
from converter.weights.ledger import Entry, Ledger

FORMAT = 1
SAMPLE = 4096  # numbers of each weight that a fingerprint looks at
TARGET = "target"  # the key of what is no model folder: what it was written as
OUTPUTS = "outputs"  # the key of what a precision's graphs return beside the answers of their heads


def carry(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what travels with the weights, and write the tokenizer that their own file holds.

    Raises:
        CheckpointError, ConfigError: one of the files is damaged.
    """
    for name, file in checkpoint.companions.items():
        refuse_damaged(file, name)
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer(folder)


def originals(checkpoint: Checkpoint, folder: Path) -> dict[Path, Path]:
    """Return which file of the source each file is that ``carry`` puts into ``folder``, for ``naming_originals``."""
    own = checkpoint.folder / checkpoint.weight_file if checkpoint.tokenizer else checkpoint.folder
    return {folder / name: file for name, file in checkpoint.companions.items()} | {folder: own}


def describe(
    checkpoint: Checkpoint,
    ledger: Ledger,
    facts: Mapping[str, Any],
    versions: Mapping[str, str] | None = None,
    mark: str | None = None,
) -> dict[str, Any]:
    """Return the content of ``gpt2onnx.json``. It does not depend on when or where the folder was written.

    Args:
        facts: what is said of this kind of folder alone.
        versions: of what wrote it; by default of gpt2onnx alone.
        mark: the source's fingerprint.
    """
    more = {"adapter": checkpoint.adapter_name} if checkpoint.adapter else {}
    more |= {"fingerprint": mark} if mark else {}
    return {
        "format": FORMAT,
        "versions": dict(versions or {"gpt2onnx": VERSION}),
        "source": {"name": checkpoint.name, "weight_file": checkpoint.weight_file, **more},
        **facts,
        "parameters": ledger.parameters,
        "ledger": [_row(entry) for entry in ledger.entries],
    }


def write(folder: Path, values: Mapping[str, Any], keep: Iterable[str] = ()) -> None:
    """Write ``gpt2onnx.json``, the last file of a folder.

    Args:
        keep: files that were there before and are not ours.
    """
    write_json(folder / MANIFEST, {**values, "files": sorted(files_in(folder) - set(keep))})


def fingerprint(ledger: Ledger) -> str:
    """Return a hash over the first numbers of each weight. It tells a checkpoint from others of the same shape."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in ledger.weights.items():
        digest.update(f"{name} {weight.dtype} {weight.shape}\n".encode())
        simple = not isinstance(weight, Computed) and weight.view is None
        numbers = weight.memmap()[:1] if simple else next(weight.chunks())
        digest.update(np.ascontiguousarray(numbers).ravel()[:SAMPLE].tobytes())
    return digest.hexdigest()


LARGEST = 2**63 - 1  # of any size or count; Python reads integers that no float can hold

# What values a manifest may have: a type, several, a list of one kind, or keys. ``...`` stands for any key.
NUMBER = (int, float, type(None))
MEASURED = ("kl_mean", "kl_999", "kl_maximum", "top_1", "dp_rms", "perplexity", "positions", "scored")
QUALITY = dict.fromkeys((*MEASURED, "perplexity_ratio", "perplexity_ratio_error"), NUMBER) | {"text": str}
PRECISION = {"model": str, "heads": {...: str}, "data": str, "bytes": int}  # which every precision has
MORE = {"opset": int, "quantized": NUMBER, OUTPUTS: [str], "quality": QUALITY}
SHAPE = {
    "versions": {...: str},
    "source": {"name": str, "fingerprint": str, "adapter": str, "weight_file": str},
    "model": str,
    "heads": {...: str},
    "precisions": {...: PRECISION | MORE},
    "parameters": int,
    "files": [str],
}


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder; empty if there is none.

    Raises:
        ModelFolderError: it is malformed.
    """
    values = content(folder)
    fault = fault_of(values)
    for name, facts in values.get("precisions", {}).items() if fault is None else ():
        where = f"{MANIFEST}: precisions: {name}"
        fault = next((f"{where}: {key}" for key in PRECISION if key not in facts), fault)
        if fault is None and any(map(_leads_out, (facts["model"], facts["data"], *facts["heads"].values()))):
            fault = f"{where}: a file outside the folder"
    if fault is not None:
        raise ModelFolderError(
            f"{folder}: {fault} is not what gpt2onnx writes there; convert the source again, with --force"
        )
    return values


def fault_of(values: Mapping[str, Any]) -> str | None:
    """Return where a value of a manifest is of another kind than those that gpt2onnx writes; None if none is."""
    return _fault(values, SHAPE, MANIFEST)


def content(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, whatever it holds; empty if there is none."""
    return read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}


def _leads_out(name: str) -> bool:
    """Tell whether a name is none of a file inside the folder."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def _fault(value: Any, shape: Any, path: str) -> str | None:
    """Return where a value is not as ``shape`` says."""
    if isinstance(shape, list):
        whole = isinstance(value, list)
        rows = [(value[at], shape[0], f"{path}: {at}") for at in range(len(value))] if whole else []
    elif isinstance(shape, dict):
        whole = isinstance(value, dict)
        keys = (value if ... in shape else value.keys() & shape.keys()) if whole else ()
        rows = [(value[key], shape.get(..., shape.get(key)), f"{path}: {key}") for key in keys]
    else:
        fits = not isinstance(value, int) or abs(value) <= LARGEST
        return None if isinstance(value, shape) and fits else path
    return next((found for row in rows if (found := _fault(*row)) is not None), None) if whole else path


def outputs_of(folder: Path, precision: str) -> list[str]:
    """Return what the manifest of a folder says that a precision's graphs return beside their answers."""
    there = read(folder).get("precisions")
    facts = there.get(precision) if isinstance(there, dict) else None
    asked = facts.get(OUTPUTS) if isinstance(facts, dict) else None
    return [name for name in asked if isinstance(name, str)] if isinstance(asked, list) else []


def refuse_source(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse a folder that was written for other programs and holds no graph.

    Raises:
        ModelFolderError: ``values``, its manifest, says so.
    """
    if TARGET in values:
        raise ModelFolderError(
            f"{folder} holds no ONNX graph: it was written with --to {values[TARGET]}, and is a source; "
            f"make a model folder of it with gpt2onnx convert {folder} OUT"
        )


def _row(entry: Entry) -> dict[str, Any]:
    tensor = entry.tensor
    return {
        "source": tensor.name,
        "name": entry.name,
        "role": str(entry.role),
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "file": tensor.file.name,
    }
