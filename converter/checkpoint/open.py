"""Open a checkpoint, given a folder, a file or a Hub id."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from converter.checkpoint.adapter import merge
from converter.checkpoint.adapter_file import refuse_as_source
from converter.checkpoint.config import parse_config
from converter.checkpoint.folder import links_out
from converter.checkpoint.formats import read
from converter.checkpoint.hub import ADAPTER, MODEL, Repository, fetch, is_hub_id
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError, ConfigError
from converter.files import refuse_special
from reference.head import ASKED


def open_checkpoint(
    source: str | os.PathLike[str], asked: SourceOptions | None = None, bars: bool = False
) -> Checkpoint:
    """Open a checkpoint: a Hugging Face folder, a Hub id such as ``openai-community/gpt2`` or ``user/model@revision``,
    or a folder or file of another format (see docs/sources.md).

    A source that exists on this machine is never looked up on the network.

    Args:
        asked: options for reading it.
        bars: whether a download may show its progress on standard error.

    Raises:
        ConfigError: it is not a GPT-2, or it has parts that GPT-2 does not have.
        CheckpointError: it does not exist, is incomplete, or is damaged.
    """
    asked = asked or SourceOptions()
    if asked.head is not None and asked.head not in ASKED:
        raise ConfigError(f"there is no head {asked.head!r}; expected one of {', '.join(ASKED)}")
    path, name = _locate(source, MODEL, bars)
    try:
        refuse_as_source(path)
        found = read(path, asked)
        folder = path if path.is_dir() else path.parent
        described = folder / "config.json"
        recorded = found.values.get("activation_function")
        if asked.activation is not None and recorded not in (None, asked.activation):
            raise ConfigError(f"{source} records its activation, {recorded}; omit --activation {asked.activation}")
        config = parse_config(
            found.values, described if described.is_file() else folder / found.weight_file, asked.head
        )
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    _refuse_half_characters(path, found.tensors)
    outside = links_out(found.companions, folder)
    checkpoint = Checkpoint(
        name=name,
        format=found.format,
        folder=folder,
        weight_file=found.weight_file,
        config=config,
        config_values=dict(found.values),
        tensors=dict(found.tensors),
        companions={name: file for name, file in found.companions.items() if name not in outside},
        transformers_reads=found.transformers_reads,
        notes=(*found.notes, *(f"{folder / name} is a link out of the source: left behind" for name in outside)),
        tokenizer=found.tokenizer,
        asked_head=asked.head,
    )
    if asked.adapter is None:
        return checkpoint
    try:
        return merge(checkpoint, *_locate(asked.adapter, ADAPTER, bars))
    except OSError as error:
        raise CheckpointError(f"{error.filename or asked.adapter} cannot be read: {error.strerror or error}") from error


def _refuse_half_characters(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse names that no file of ours can hold.

    Raises:
        CheckpointError: the name of a tensor has half of a UTF-16 pair.
    """
    for name in (name for key, tensor in tensors.items() for name in (key, tensor.name)):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{path} is corrupt: the name of its tensor {name!r} is no text") from error


# What a message says was expected, where a source is neither a path that exists nor a Hub id.
EXPECTED = {
    MODEL: "a Hugging Face model folder, or a Hub id such as openai-community/gpt2",
    ADAPTER: "the folder of a PEFT adapter, or a Hub id such as user/lora",
}


def _locate(source: str | os.PathLike[str], kind: Repository, bars: bool) -> tuple[Path, str]:
    """Return the folder or file of a model or adapter, and its name.

    A source that does not exist here is fetched from the Hub.
    """
    path = Path(source)
    try:
        exists, name = path.exists(), os.fsencode(path.resolve().name).decode(errors="backslashreplace")
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, links in a circle
        raise CheckpointError(f"{os.fspath(source)!r} cannot be a folder ({error})") from error
    if exists:
        refuse_special(path)
        return path, name
    if not is_hub_id(os.fspath(source)):
        raise CheckpointError(f"there is no folder {source}; expected {EXPECTED[kind]}")
    return fetch(os.fspath(source), bars, kind)
