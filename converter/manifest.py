"""What every folder that gpt2onnx writes has: the source's companions, and the manifest that says whence it came."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.config import read_json
from converter.clients import write_json
from converter.errors import ModelFolderError
from converter.staging import MANIFEST, files_in
from converter.version import VERSION
from converter.weights import Entry, Ledger

FORMAT = 1
TARGET = "target"  # the key of what is no model folder: what it was written as


def carry(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what travels with the weights, and write the tokenizer that their own file holds."""
    for name, file in checkpoint.companions.items():
        shutil.copyfile(file, folder / name)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer(folder)


def write(
    folder: Path,
    checkpoint: Checkpoint,
    ledger: Ledger,
    facts: Mapping[str, Any],
    packages: Mapping[str, str] | None = None,
    keep: Iterable[str] = (),
) -> None:
    """Write ``gpt2onnx.json``, the last file of a folder. Nothing in it depends on when or where it was written.

    Args:
        facts: what is said of this kind of folder alone.
        packages: the versions of what wrote it, beside our own.
        keep: files that were there before and are not ours.
    """
    adapter = {"adapter": checkpoint.adapter_name} if checkpoint.adapter else {}
    values = {
        "format": FORMAT,
        "versions": {"gpt2onnx": VERSION, **(packages or {})},
        "source": {"name": checkpoint.name, "weight_file": checkpoint.weight_file, **adapter},
        **facts,
        "parameters": ledger.parameters,
        "ledger": [_row(entry) for entry in ledger.entries],
    }
    write_json(folder / MANIFEST, {**values, "files": sorted(files_in(folder) - set(keep))})


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; empty where there is none."""
    return read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}


def refuse_source(folder: Path, values: Mapping[str, Any]) -> None:
    """A folder that was written to be read by others holds no graph.

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
