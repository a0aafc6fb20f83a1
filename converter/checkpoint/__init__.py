"""Sources: from a folder or a Hub id to a mapping of tensor name → lazy tensor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.adapter import CONFIG as ADAPTER_CONFIG
from converter.checkpoint.adapter import merge
from converter.checkpoint.config import parse_config
from converter.checkpoint.formats import read
from converter.checkpoint.hub import ADAPTER, MODEL, Kind, fetch, is_hub_id
from converter.checkpoint.source import Options
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError, ConfigError
from reference.config import HEADS, GPT2Config, head_of

__all__ = ["Checkpoint", "LazyTensor", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A GPT-2 checkpoint as its files describe it, before any weight is accounted for.

    Attributes:
        name: the folder's or file's name, or ``user/model@commit`` for a Hub model: the same wherever it lies.
        format: what wrote it: ``Hugging Face``, ``nanoGPT``, …
        folder: where its files are.
        weight_file: the file that holds the weights, or indexes their shards.
        config: the architecture.
        config_values: ``config.json`` as it stands, or as it would be.
        tensors: every tensor of the source by Hugging Face's name; ``tensor.name`` is the source's own.
        companions: what travels with the weights: its name in a model folder → the source's file.
        transformers_reads: whether transformers opens it itself.
        notes: sentences for the user, on what was taken for granted.
        tokenizer: writes a tokenizer that the weights' own file holds into a folder, as Hugging Face's files.
        adapter: the weights of the LoRA adapter that was merged into it.
        adapter_name: what it is called, as ``name``.
        asked_head: the head that the user wants, whatever the config says.
    """

    name: str
    format: str
    folder: Path
    weight_file: str
    config: GPT2Config
    config_values: dict[str, Any]
    tensors: dict[str, LazyTensor]
    companions: dict[str, Path]
    transformers_reads: bool
    notes: tuple[str, ...] = ()
    tokenizer: Callable[[Path], None] | None = None
    adapter: Path | None = None
    adapter_name: str = ""
    asked_head: str | None = None

    @property
    def states_head(self) -> bool:
        """Whether the user or the config says what stands on the body; otherwise the tensors do."""
        return bool(self.asked_head or head_of(self.config_values.get("architectures")))

    def with_head(self, head: str) -> Checkpoint:
        """The same with another head, and as many labels as the config names for it."""
        return replace(self, config=parse_config(self.config_values, self.config_file, head))

    @property
    def config_file(self) -> Path:
        """Where the architecture is written: ``config.json``, or the weights' own file."""
        file = self.folder / "config.json"
        return file if file.is_file() else self.folder / self.weight_file

    @property
    def described_by(self) -> set[Path]:
        """What is read beside the files of its weights: its config, and a merged adapter."""
        adapter = {self.adapter, self.adapter.with_name(ADAPTER_CONFIG)} if self.adapter else set()
        return {self.config_file, *adapter}


def open_checkpoint(
    source: str | os.PathLike[str],
    bars: bool = False,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    head: str | None = None,
) -> Checkpoint:
    """Open a checkpoint: a Hugging Face folder, a Hub id such as ``openai-community/gpt2`` or ``user/model@revision``,
    or a folder or file of another format (see docs/sources.md).

    What exists on this machine is never looked up on the network.

    Args:
        bars: let a download show its progress on standard error.
        activation: ``activation_function`` of a checkpoint that does not record it.
        adapter: the folder or Hub id of a PEFT LoRA adapter, to be merged into it.
        head: one of ``reference.config.HEADS``; by default what the config names, or else what the tensors are.

    Raises:
        ConfigError: it is not a GPT-2, or one with parts that GPT-2 does not have.
        CheckpointError: it does not exist, is incomplete or damaged.
    """
    if head is not None and head not in HEADS:
        raise ConfigError(f"there is no head {head!r}; expected one of {', '.join(HEADS)}")
    path, name = _locate(source, MODEL, bars)
    try:
        found = read(path, Options(activation))
        folder = path if path.is_dir() else path.parent
        described = folder / "config.json"
        recorded = found.values.get("activation_function")
        if activation is not None and recorded not in (None, activation):
            raise ConfigError(f"{source} records its activation, {recorded}; leave --activation {activation} away")
        config = parse_config(found.values, described if described.is_file() else folder / found.weight_file, head)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    checkpoint = Checkpoint(
        name=name,
        format=found.format,
        folder=folder,
        weight_file=found.weight_file,
        config=config,
        config_values=dict(found.values),
        tensors=dict(found.tensors),
        companions=dict(found.companions),
        transformers_reads=found.transformers_reads,
        notes=found.notes,
        tokenizer=found.tokenizer,
        asked_head=head,
    )
    if adapter is None:
        return checkpoint
    try:
        return merge(checkpoint, *_locate(adapter, ADAPTER, bars))
    except OSError as error:
        raise CheckpointError(f"{error.filename or adapter} cannot be read: {error.strerror or error}") from error


# What is asked for where a path does not exist and is no Hub id.
EXPECTED = {
    MODEL: "a Hugging Face model folder, or a Hub id such as openai-community/gpt2",
    ADAPTER: "the folder of a PEFT adapter, or a Hub id such as user/lora",
}


def _locate(source: str | os.PathLike[str], kind: Kind, bars: bool) -> tuple[Path, str]:
    """Where a model or adapter lies, and its name; what does not exist here is fetched from the Hub."""
    path = Path(source)
    try:
        exists, name = path.exists(), path.resolve().name
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, links in a circle
        raise CheckpointError(f"{os.fspath(source)!r} cannot be a folder ({error})") from error
    if exists:
        return path, name
    if not is_hub_id(os.fspath(source)):
        raise CheckpointError(f"there is no folder {source}; expected {EXPECTED[kind]}")
    return fetch(os.fspath(source), bars, kind)
