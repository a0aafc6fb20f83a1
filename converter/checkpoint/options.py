"""What a user says of a source, beside where it is. It costs nothing to import."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read.

    Attributes:
        ignore: globs of tensors to leave aside, matched against the source's name and the canonical one.
        activation: ``activation_function`` of a checkpoint that does not record it, as nanoGPT's.
        adapter: the folder or Hub id of a PEFT LoRA adapter that is merged into the weights.
        head: one of ``reference.head.ASKED``; None for what the config names, or else what the tensors are.
    """

    ignore: tuple[str, ...] = ()
    activation: str | None = None
    adapter: str | os.PathLike[str] | None = None
    head: str | None = None
