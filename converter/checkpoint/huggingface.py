"""Read Hugging Face's format: a folder with ``config.json`` and weights, or a weight file beside a ``config.json``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from converter.checkpoint import h5_file, msgpack_file, safetensors_file, torch_file
from converter.checkpoint.folder import WEIGHT_FILES, Reader, choose_weight_file, read_folder, read_weights
from converter.checkpoint.folder import companions as names_of_companions
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source, tied
from converter.files import read_json

CONFIG = "config.json"


def read(folder: Path, options: SourceOptions) -> Source:
    """Read a folder as transformers writes it, or a folder with one weight file of another name."""
    if choose_weight_file([entry.name for entry in folder.iterdir()]) is None:
        lone = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
        if len(lone) == 1:
            return read_file(lone[0], options)
    values = read_json(folder / CONFIG)
    weight_file, tensors = read_folder(folder)
    reader = dict(WEIGHT_FILES)[weight_file]
    source = Source(DROPPED.get(reader, NAME), weight_file, values, tensors, companions(folder))
    return tied(source) if reader is h5_file.read else replace(source, transformers_reads=reader not in DROPPED)


def read_file(file: Path, options: SourceOptions) -> Source:
    """Read one weight file of any name. transformers opens only files that it named itself."""
    del options
    reader, values = reader_of(file), read_json(file.parent / CONFIG)
    source = Source(DROPPED.get(reader, NAME), file.name, values, read_weights(file, reader), companions(file.parent))
    return tied(source) if reader is h5_file.read else source


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
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")


def reader_of(file: Path) -> Reader:
    """Return the reader of a file, chosen by its first bytes."""
    with file.open("rb") as opened:
        head = opened.read(safetensors_file.LENGTH_BYTES + 1)
    # safetensors is first: it begins with a length, and a byte of that may look like the start of a pickle or a map.
    if head[-1:] == b"{" and int.from_bytes(head[:-1], "little") <= safetensors_file.MAX_HEADER_BYTES:
        return safetensors_file.read
    return next((reader for magics, reader in READERS if head.startswith(magics)), safetensors_file.read)


def _is_file(path: Path) -> bool:
    return path.suffix in SUFFIXES and path.is_file() and (path.parent / CONFIG).is_file()


FOLDER = Format("a Hugging Face folder", lambda path: (path / CONFIG).is_file(), read)
FILE = Format("a file of weights beside its config.json", _is_file, read_file)
