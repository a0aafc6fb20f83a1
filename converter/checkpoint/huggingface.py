"""Hugging Face's own: a folder with ``config.json`` and weights, or one file of weights beside a ``config.json``."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import safetensors_file, torch_file
from converter.checkpoint.config import read_json
from converter.checkpoint.folder import choose_weight_file, read_folder, read_weights
from converter.checkpoint.folder import companions as names_of_companions
from converter.checkpoint.source import Format, Options, Source, starts_with

CONFIG = "config.json"


def read(folder: Path, options: Options) -> Source:
    """A folder, as transformers writes it; or with one file of weights of another name."""
    if choose_weight_file([entry.name for entry in folder.iterdir()]) is None:
        lone = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
        if len(lone) == 1:
            return read_file(lone[0], options)
    values = read_json(folder / CONFIG)
    weight_file, tensors = read_folder(folder)
    return Source("Hugging Face", weight_file, values, tensors, companions(folder), transformers_reads=True)


def read_file(file: Path, options: Options) -> Source:
    """One file of weights, under any name; transformers opens only those that it named itself."""
    del options
    reader = torch_file.read if starts_with(file, *TORCH_MAGICS) else safetensors_file.read
    values = read_json(file.parent / CONFIG)
    return Source("Hugging Face", file.name, values, read_weights(file, reader), companions(file.parent))


def companions(folder: Path) -> dict[str, Path]:
    """What travels with the weights, under its own name."""
    return {name: folder / name for name in names_of_companions(folder)}


TORCH_MAGICS = (b"PK\x03\x04", b"\x80")  # a zip archive, a pickle
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def _is_file(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.is_file() and (path.parent / CONFIG).is_file()


FOLDER = Format("a Hugging Face folder", lambda path: (path / CONFIG).is_file(), read)
FILE = Format("a file of weights beside its config.json", _is_file, read_file)
