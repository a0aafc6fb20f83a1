"""What every format's reader returns: a checkpoint in Hugging Face's terms, whatever it was written by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from converter.checkpoint.tensor import LazyTensor


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


class Options(NamedTuple):
    """What a user must say where a format does not."""

    activation: str | None = None


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint: how it is recognised by its content, and read.

    ``recognises`` is given a file or a folder and never raises for what is none of its own.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Options], Source]


def starts_with(file: Path, *magics: bytes) -> bool:
    """Whether ``file`` is a file that begins with one of these bytes."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(max(map(len, magics))).startswith(magics)
