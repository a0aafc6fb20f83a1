"""List the formats of checkpoints, in the order in which they are tried.

Each format is recognised by its content, never by a file name alone.
"""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint import foreign, gguf_file, huggingface, llmc, megatron, nanogpt, openai, reference_file
from converter.checkpoint.folder import refuse_steps
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.errors import CheckpointError, ConfigError
from converter.files import refuse_lfs_pointer, starts_with

FORMATS: tuple[Format, ...] = (
    openai.FORMAT,
    reference_file.FORMAT,  # before Hugging Face's formats, which would claim it
    huggingface.FOLDER,
    nanogpt.FORMAT,
    megatron.FORMAT,
    llmc.FORMAT,
    gguf_file.FORMAT,
    huggingface.FILE,
    nanogpt.OTHER_TORCH_FILE,
)


def read(path: Path, options: SourceOptions) -> Source:
    """Read a file or folder with the first format that recognises it.

    Raises:
        CheckpointError: no format recognises it, or it is damaged.
        ConfigError: it is not a GPT-2.
    """
    foreign.refuse(path)
    for known in FORMATS:
        if known.recognises(path):
            return known.read(path, options)
    if path.is_dir():
        return read(_lone_file(path), options)
    refuse_lfs_pointer(path)
    if starts_with(path, *huggingface.TORCH_MAGICS) or path.suffix in huggingface.SUFFIXES:
        raise ConfigError(f"{path.parent} has no config.json, which says what the weights in {path.name} are")
    known_names = ", ".join(dict.fromkeys(known.name for known in FORMATS))
    raise CheckpointError(f"{path} is in none of the known formats ({known_names})")


def _lone_file(folder: Path) -> Path:
    """Return the only file that may hold a checkpoint, in a folder that no format recognises.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    found = huggingface.weight_files(folder)
    present = sorted(entry.name for entry in folder.iterdir())
    if not present:
        raise CheckpointError(f"{folder} is empty; expected a Hugging Face model folder with config.json and weights")
    if not found:
        refuse_steps(folder)
        raise CheckpointError(
            f"{folder} has no config.json and no weights of a known format; found {', '.join(present[:8])}"
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:8])
        raise CheckpointError(
            f"{folder} has several files of weights ({names}), and none by the name that transformers gives it; "
            f"name one of them"
        )
    return found[0]
