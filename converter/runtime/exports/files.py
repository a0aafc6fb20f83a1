"""Find the ONNX files of an export: a file, or a folder with one or two that belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from converter import onnx_file
from converter.errors import ModelFolderError
from converter.files import read_json
from converter.folder.staging import MANIFEST
from converter.runtime.external import data_file, locations

# Files that make one model, and where they are looked for: the one for prompts, then the one that has a cache.
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("prefill.onnx", "decode.onnx"),  # transformers' OnnxExporter
    ("decoder_model_merged.onnx",),  # Optimum, and onnx-community
    ("decoder_model.onnx", "decoder_with_past_model.onnx"),
    ("model.onnx",),
    ("decoder_model.onnx",),
)
FOLDERS = ("", "onnx")
GENAI = "genai_config.json"


def is_export(path: Path) -> bool:
    """Tell whether a path is an export of another program: a file, or a folder of ONNX files that gpt2onnx did not
    write.
    """
    if path.is_dir():
        return bool(onnx_files(path)) and not (path / MANIFEST).exists()
    return path.is_file()


def files_of(path: Path) -> list[Path]:
    """Return the files that an export is made of: its ONNX files, and the data files that they name.

    Of our own folder there are none.

    Raises:
        ModelFolderError: it cannot be told which ONNX files are meant.
    """
    graphs = find(path) if is_export(path) else ()
    return [each for file in graphs for each in (file, *data_files(file))]


def data_files(file: Path) -> list[Path]:
    """Return the files of its folder that an ONNX file has its weights in; none if it is damaged."""
    try:
        named = sorted(locations(onnx_file.read(file)))
    except (DecodeError, OSError, ValueError):
        return []
    return [file.parent / name for name in named if _is_inside(file.parent, name)]


def _is_inside(folder: Path, location: str) -> bool:
    """Tell whether a file is one of the folder, and may be read."""
    try:
        data_file(folder, location)
    except ModelFolderError:
        return False
    return True


def find(path: Path) -> tuple[Path, ...]:
    """Return the ONNX files of an export, the one that takes prompts first.

    Raises:
        ModelFolderError: there is none, or it cannot be told which it is.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise ModelFolderError(f"there is no ONNX file or folder {path}")
    named = _named_by_genai(path)
    if named is not None:
        return (named,)
    for names in LAYOUTS:
        for folder in FOLDERS:
            files = tuple(path / folder / name for name in names)
            if all(file.is_file() for file in files):
                return files
    there = onnx_files(path)
    if len(there) == 1:
        return (there[0],)
    if not there:
        raise ModelFolderError(f"{path} holds no ONNX file")
    listed = ", ".join(str(file.relative_to(path)) for file in there)
    raise ModelFolderError(f"{path} holds {len(there)} ONNX files ({listed}); name one of them")


def others(path: Path, chosen: tuple[Path, ...]) -> list[Path]:
    """Return the ONNX files of a folder that are not among the chosen ones."""
    return [file for file in onnx_files(path) if file not in chosen] if path.is_dir() else []


def onnx_files(folder: Path) -> list[Path]:
    """Return the ONNX files of a folder."""
    return [file for inner in FOLDERS for file in sorted((folder / inner).glob("*.onnx"))]


def _named_by_genai(path: Path) -> Path | None:
    """Return the file that ``genai_config.json`` names, if there is one."""
    if not (path / GENAI).is_file():
        return None
    values: Any = read_json(path / GENAI)
    for key in ("model", "decoder", "filename"):
        values = values.get(key) if isinstance(values, dict) else None
    file = path / values if isinstance(values, str) else None
    inside = file is not None and file.resolve().is_relative_to(path.resolve())
    return file if file is not None and inside and file.is_file() else None
