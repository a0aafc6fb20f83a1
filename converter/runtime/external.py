"""Where an ONNX file has its weights: in files of its own folder, and nowhere else.

ONNX Runtime refuses others itself only since 1.24. The version before read any file that the user may read.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto

from converter import onnx_file
from converter.errors import CheckpointError, ModelFolderError
from converter.files import refuse_special


def refuse_outside(graph: str | bytes, folder: Path) -> None:
    """Refuse a graph, given as a file's name or as bytes, that has weights outside ``folder``. One that is damaged is
    left to ONNX Runtime, which says more.

    Raises:
        ModelFolderError: it has.
    """
    try:
        model = ModelProto.FromString(graph) if isinstance(graph, bytes) else onnx_file.read(graph)
    except (DecodeError, OSError, ValueError):
        return
    for location in locations(model):
        data_file(folder, location)


def locations(model: ModelProto) -> set[str]:
    """Return the names of the files in which a model has tensors, those of branches and functions too."""
    tensors = onnx_file.tensors_of(model)
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def data_file(folder: Path, location: str) -> Path:
    """Return the file in ``folder`` in which a graph has weights.

    Raises:
        ModelFolderError: it lies elsewhere, a link leads out of the folder, or it is no file.
    """
    file = folder / location
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
        if inside:
            with suppress(FileNotFoundError, NotADirectoryError):
                refuse_special(file)
    except CheckpointError as error:
        raise ModelFolderError(str(error)) from error
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, links in a circle
        inside = False
    if not inside:
        raise ModelFolderError(f"a graph in {folder} has weights outside its folder, at {location!r}: not opened")
    return file
