"""What a graph returns beside its answer, for ``gpt2onnx run``: a table of shapes, and a file of the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli import tables, terminal
from converter.errors import OutputError
from converter.files import reason

if TYPE_CHECKING:
    import numpy as np

Arrays = Mapping[str, "np.ndarray"]


def _npz(file: Path, arrays: Arrays) -> None:
    import numpy as np

    named: Any = dict(arrays)
    np.savez(file, **named)


def _safetensors(file: Path, arrays: Arrays) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)


# The end of a file's name → what writes it.
FORMATS: dict[str, Callable[[Path, Arrays], None]] = {".npz": _npz, ".safetensors": _safetensors}


def refuse_another_format(file: Path | None) -> None:
    """Refuse a file whose name does not say how it is written."""
    if file is not None and file.suffix not in FORMATS:
        raise click.UsageError(f"--save writes {' and '.join(FORMATS)} files, not {file.name}")


def save(file: Path, found: Sequence[Arrays]) -> None:
    """Write arrays by their names; of several texts with the number of the text before, as in ``2/attentions.0``.

    Raises:
        OutputError: the file cannot be written.
    """
    several = len(found) > 1
    arrays = {
        f"{number}/{name}" if several else name: array
        for number, each in enumerate(found, 1)
        for name, array in each.items()
    }
    try:
        FORMATS[file.suffix](file, arrays)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def print_shapes(arrays: Arrays) -> None:
    """Print the name and the shape of each array."""
    rows = tables.table("output", "shape")
    for name, shape in shapes(arrays).items():
        rows.add_row(tables.named(name), " × ".join(map(str, shape)) or "a number")
    tables.show(terminal.console(), rows)


def shapes(arrays: Arrays) -> dict[str, Any]:
    """Return the shape of each array, for JSON."""
    return {name: list(array.shape) for name, array in arrays.items()}
