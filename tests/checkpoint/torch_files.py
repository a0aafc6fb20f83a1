"""Writes files with torch.save: honest, rewritten and hostile ones."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converter.checkpoint.torch_file import read
from converter.errors import CheckpointError

CONTAINERS = ("zip", "legacy")
both = pytest.mark.parametrize("container", CONTAINERS)


def save(value: Any, file: Path, container: str) -> Path:
    torch.save(value, file, _use_new_zipfile_serialization=container == "zip")
    return file


def rewrite(file: Path, change: Callable[[str, bytes], bytes | None], compress: str | None = None) -> Path:
    """Pass every entry of a zip through ``change``, which drops it with None; compress those that match."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            if (changed := change(name, data)) is not None:
                kind = zipfile.ZIP_DEFLATED if compress and re.search(compress, name) else zipfile.ZIP_STORED
                archive.writestr(name, changed, kind)
    return file


def refused(value: Any, message: str, file: Path, container: str) -> None:
    with pytest.raises(CheckpointError, match=f"{re.escape(str(file))}.*{message}"):
        read(save(value, file, container))


class Calls:
    """Pickles as a call of ``function``, with ``state`` put into what it returns."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


# A tuple that holds itself twice, sixty times over: 2^60 elements for whoever walks through it.
LAUGHS = b"\x80\x04)\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
