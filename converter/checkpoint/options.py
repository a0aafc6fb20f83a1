"""The options that a user gives for a source. Importing this file costs nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceOptions:
    """Options for reading a source.

    Attributes:
        ignore: globs of tensors to leave aside, matched against the source's name and the canonical one.
        activation: the ``activation_function`` of a checkpoint that does not record it, such as nanoGPT's.
        adapter: the folder or Hub id of a PEFT LoRA adapter that is merged into the weights.
        head: one of ``reference.head.ASKED``; None for the head that the config names, or else the tensors show.
    """

    ignore: tuple[str, ...] = ()
    activation: str | None = None
    adapter: str | os.PathLike[str] | None = None
    head: str | None = None
