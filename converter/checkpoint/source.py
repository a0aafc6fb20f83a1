"""The result of every format's reader: a checkpoint in Hugging Face's names and layout, whatever program wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.checkpoint.config import parse_config
from converter.checkpoint.names import canonical, outer_name
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.tensor import LazyTensor
from reference.config import GPT2Config
from reference.head import head_of


@dataclass(frozen=True)
class Source:
    """A checkpoint, as a reader found it.

    Attributes:
        format: its name in messages: ``Hugging Face``, ``nanoGPT``, …
        weight_file: the file that holds the weights, or indexes their shards; a name in the folder.
        values: a ``config.json``, read from a file or put together.
        tensors: Hugging Face's name → tensor, in Hugging Face's layout; ``tensor.name`` is the source's own.
        companions: what travels with the weights: its name in a model folder → the source's file.
        transformers_reads: whether transformers can open it too, which proves the mapping independently.
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
    """Return a TensorFlow source with its head tied, whatever its config says.

    The code that wrote it multiplies with wte: TFGPT2LMHeadModel of transformers 4, and model.py of openai/gpt-2.
    """
    if source.values.get("tie_word_embeddings", True) is not False:
        return source
    note = f"config.json unties the head, but the {source.format} code that wrote {source.weight_file} ties it: wte"
    return replace(
        source, values={**source.values, "tie_word_embeddings": True}, notes=(*source.notes, f"{note} was taken for it")
    )


def typed(source: Source) -> Source:
    """Return a source whose config names no model with GPT-2's name, if its tensors are a GPT-2's.

    A ``config.json`` of 2019 has neither ``model_type`` nor ``architectures``.
    """
    if source.values.get("model_type") is not None or source.values.get("architectures"):
        return source
    outer = outer_name(source.tensors)
    if not {canonical(name, outer) for name in source.tensors} >= MARKS:
        return source
    note = "config.json names no model_type; gpt2 was taken for it, as its tensors are a GPT-2's"
    return replace(source, values={**source.values, "model_type": "gpt2"}, notes=(*source.notes, note))


# What a GPT-2 may hold under several names: the matrix of a tied head, and the weights of layers that share them.
SHARED = re.compile(r"(wte|lm_head)\.weight|h\.[0-9]+\..+")


def shared(source: Source, names: Mapping[str, str]) -> Source:
    """Return a source with its tensors under the other names that they have, as far as the source lacks these.

    Of a tensor with several names, safetensors' ``save_model`` keeps one, and tells the others in the file's metadata.
    A head that ``config.json`` ties is left out: transformers and the ledger find it without being told.

    Args:
        names: another name → the name under which the source holds the tensor.
    """
    outer = outer_name(source.tensors)
    held = {canonical(name, outer) for name in source.tensors}
    if source.values.get("tie_word_embeddings", True) is not False:
        held |= {"wte.weight", "lm_head.weight"}
    added: dict[str, LazyTensor] = {}
    for name, kept in names.items():
        short = canonical(name, outer)
        if kept in source.tensors and SHARED.fullmatch(short) and short not in held:
            added[name] = replace(source.tensors[kept], name=name)
            held.add(short)
    if not added:
        return source
    name, more = next(iter(added)), f" (and {len(added) - 1} more)" if len(added) > 1 else ""
    return replace(
        source,
        tensors={**source.tensors, **added},
        transformers_reads=False,  # it gives random numbers to a weight whose name is missing
        notes=(*source.notes, f"{source.weight_file} says that {name} is its {names[name]}, which was taken{more}"),
    )


# Weights that only a GPT-2 has together; the ledger looks at all others.
MARKS = {"wpe.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.weight", "h.0.attn.c_proj.bias", "ln_f.bias"}

ADAPTER_CONFIG = "adapter_config.json"  # as peft names it


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint: how to recognise it by its content, and how to read it.

    ``recognises`` takes a file or a folder. It never raises for one of another format.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, SourceOptions], Source]


@dataclass(frozen=True)
class Checkpoint:
    """A GPT-2 checkpoint as its files describe it, before the ledger accounts for its weights.

    Attributes:
        name: the name of the folder or file, or ``user/model@commit`` for a Hub model.
        format: the program that wrote it: ``Hugging Face``, ``nanoGPT``, …
        folder: the folder of its files.
        weight_file: the file that holds the weights, or indexes their shards.
        config: the architecture.
        config_values: the ``config.json``, read from a file or put together.
        tensors: every tensor of the source by Hugging Face's name; ``tensor.name`` is the source's own.
        companions: what travels with the weights: its name in a model folder → the source's file.
        transformers_reads: whether transformers can open it too.
        notes: sentences for the user, on what was taken for granted.
        tokenizer: writes a tokenizer that the weights' own file holds into a folder, as Hugging Face's files.
        adapter: the weight file of the LoRA adapter that was merged into it; None if there is none.
        adapter_name: the adapter's name, in the form of ``name``.
        asked_head: the head that the user asked for, which overrides the config.
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
        """Tell whether the user or the config names the head. Otherwise the tensors decide."""
        return bool(self.asked_head or head_of(self.config_values.get("architectures")))

    def with_head(self, head: str) -> Checkpoint:
        """Return the checkpoint with another head. The config sets its number of labels."""
        return replace(self, config=parse_config(self.config_values, self.config_file, head))

    @property
    def config_file(self) -> Path:
        """Return the file that describes the architecture: ``config.json``, or the weight file itself."""
        file = self.folder / "config.json"
        return file if file.is_file() else self.folder / self.weight_file

    @property
    def described_by(self) -> set[Path]:
        """Return the files that are read beside the weights: the config, and a merged adapter's files."""
        adapter = {self.adapter, self.adapter.with_name(ADAPTER_CONFIG)} if self.adapter else set()
        return {self.config_file, *adapter}
