"""What every format's reader returns: a checkpoint in Hugging Face's terms, whatever it was written by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.config import parse_config
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.tensor import LazyTensor
from reference.config import GPT2Config
from reference.head import head_of


@dataclass(frozen=True)
class Source:
    """A checkpoint as a reader found it.

    Attributes:
        format: what it is called in messages: ``Hugging Face``, ``nanoGPT``, …
        weight_file: the file that holds the weights, or indexes their shards; a name in the folder.
        values: a ``config.json``, read or put together.
        tensors: Hugging Face's name → tensor, in Hugging Face's layout; ``tensor.name`` is the source's own.
        companions: what travels with the weights: its name in a model folder → the source's file.
        transformers_reads: whether transformers opens it itself, and so proves the mapping independently.
        notes: sentences for the user, on what was taken for granted.
        tokenizer: writes a tokenizer that the weights' own file holds into a folder, as Hugging Face's files.
    """

    format: str
    weight_file: str
    values: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    companions: Mapping[str, Path] = field(default_factory=dict)
    transformers_reads: bool = False
    notes: tuple[str, ...] = field(default=())
    tokenizer: Callable[[Path], None] | None = None


def tied(source: Source) -> Source:
    """A source of TensorFlow's with its head tied: the code that wrote it multiplies with wte, whatever a config says.

    Both do: TFGPT2LMHeadModel of transformers 4, and model.py of openai/gpt-2.
    """
    if source.values.get("tie_word_embeddings", True) is not False:
        return source
    note = f"config.json unties the head, which the {source.format} code that wrote {source.weight_file} never did: wte"
    return replace(
        source, values={**source.values, "tie_word_embeddings": True}, notes=(*source.notes, f"{note} was taken for it")
    )


ADAPTER_CONFIG = "adapter_config.json"  # as peft names it


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint: how it is recognised by its content, and read.

    ``recognises`` is given a file or a folder and never raises for what is none of its own.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, SourceOptions], Source]


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
