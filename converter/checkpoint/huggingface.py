"""Read Hugging Face's format: a folder with ``config.json`` and weights, or a weight file beside a ``config.json``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from converter.checkpoint import h5_file, msgpack_file, safetensors_file, torch_file
from converter.checkpoint.folder import WEIGHT_FILES, Reader, choose_weight_file, read_folder, read_weights
from converter.checkpoint.folder import companions as names_of_companions
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import ADAPTER_CONFIG, Format, Source, shared, tied, typed
from converter.files import read_json

CONFIG = "config.json"


def read(folder: Path, options: SourceOptions) -> Source:
    """Read a folder as transformers writes it."""
    del options
    values = read_json(folder / CONFIG)
    weight_file, tensors = read_folder(folder)
    reader = dict(WEIGHT_FILES)[weight_file]
    source = typed(Source(DROPPED.get(reader, NAME), weight_file, values, tensors, companions(folder)))
    as_adapter = (folder / ADAPTER_CONFIG).is_file()  # transformers opens such a folder as the adapter, on another base
    source = replace(source, transformers_reads=reader not in DROPPED and not as_adapter)
    return _completed(source, reader, folder / weight_file)


def read_file(file: Path, options: SourceOptions) -> Source:
    """Read one weight file of any name. transformers opens only files that it named itself."""
    del options
    reader, values = reader_of(file), read_json(file.parent / CONFIG)
    tensors = read_weights(file, reader)
    source = typed(Source(DROPPED.get(reader, NAME), file.name, values, tensors, companions(file.parent)))
    return _completed(source, reader, file)


def _completed(source: Source, reader: Reader, file: Path) -> Source:
    """Return a source with what only its file, or the program that wrote it, tells of shared tensors."""
    if reader is h5_file.read:
        return tied(source)
    if reader is safetensors_file.read and not file.name.endswith(".index.json"):
        return shared(source, safetensors_file.other_names(file))
    return source


def companions(folder: Path) -> dict[str, Path]:
    """Return the files that go with the weights, by name."""
    return {name: folder / name for name in names_of_companions(folder)}


NAME = "Hugging Face"

# The formats that transformers wrote before version 5, and no longer reads.
DROPPED: dict[Reader, str] = {h5_file.read: "Hugging Face TensorFlow", msgpack_file.read: "Hugging Face Flax"}

TORCH_MAGICS = (b"PK\x03\x04", b"\x80")  # a zip archive, a pickle

# First bytes of a file → its reader.
READERS: tuple[tuple[tuple[bytes, ...], Reader], ...] = (
    (TORCH_MAGICS, torch_file.read),
    ((h5_file.MAGIC,), h5_file.read),
    (msgpack_file.MAGICS, msgpack_file.read),
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")

# What trainers write beside the weights, with the same endings.
NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "random_states*")


def reader_of(file: Path) -> Reader:
    """Return the reader of a file, chosen by its first bytes."""
    with file.open("rb") as opened:
        head = opened.read(safetensors_file.LENGTH_BYTES + 1)
    # safetensors is first: it begins with a length, and a byte of that may look like the start of a pickle or a map.
    if head[-1:] == b"{" and int.from_bytes(head[:-1], "little") <= safetensors_file.MAX_HEADER_BYTES:
        return safetensors_file.read
    return next((reader for magics, reader in READERS if head.startswith(magics)), safetensors_file.read)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold weights, by their endings."""
    files = (entry for entry in sorted(folder.iterdir()) if entry.suffix in (*SUFFIXES, ".gguf") and entry.is_file())
    return [file for file in files if not any(fnmatchcase(file.name, pattern) for pattern in NO_WEIGHTS)]


def has_weights(folder: Path, apart: Collection[str] = ()) -> bool:
    """Tell whether a folder has a file that may hold weights, ``apart`` from some."""
    known = choose_weight_file([entry.name for entry in folder.iterdir()])
    return known is not None or any(file.name not in apart for file in weight_files(folder))


def _is_folder(path: Path) -> bool:
    """Tell whether a folder has a config, and its weights under transformers' names or not at all."""
    if not (path / CONFIG).is_file():
        return False
    return choose_weight_file([entry.name for entry in path.iterdir()]) is not None or not weight_files(path)


def _is_file(path: Path) -> bool:
    """Tell whether a file has a config beside it, and an ending or a beginning of files of weights."""
    described = path.is_file() and (path.parent / CONFIG).is_file()
    return described and (path.suffix in SUFFIXES or torch_file.is_torch_file(path))


FOLDER = Format("a Hugging Face folder", _is_folder, read)
FILE = Format("a file of weights beside its config.json", _is_file, read_file)
