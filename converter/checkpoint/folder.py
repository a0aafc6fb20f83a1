"""Find and read the weight files of a Hugging Face folder, and the shards that an index names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from converter.checkpoint import h5_file, msgpack_file, safetensors_file, torch_file
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError
from converter.files import read_json, refuse_lfs_pointer

Reader = Callable[[Path], dict[str, LazyTensor]]

# In the order of transformers: the first file that exists counts.
WEIGHT_FILES: tuple[tuple[str, Reader], ...] = (
    ("model.safetensors", safetensors_file.read),
    ("model.safetensors.index.json", safetensors_file.read),
    ("pytorch_model.bin", torch_file.read),
    ("pytorch_model.bin.index.json", torch_file.read),
    ("tf_model.h5", h5_file.read),
    ("tf_model.h5.index.json", h5_file.read),
    ("flax_model.msgpack", msgpack_file.read),
    ("flax_model.msgpack.index.json", msgpack_file.read),
)

# Reader → how it names a tensor that an index names, where the two names differ.
RENAMED: dict[Reader, Callable[[str], str]] = {h5_file.read: h5_file.hf_name, msgpack_file.read: msgpack_file.hf_name}


# The files that go with the weights, as far as they exist: clients read them.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
)


STEP = re.compile(r"checkpoint-([0-9]+)")  # a subfolder that transformers' Trainer saves after so many steps
STEPS_SHOWN = 8


def companions(folder: Path) -> list[str]:
    """Return the names of the files in ``folder`` that match ``COMPANIONS``, in alphabetical order."""
    files = {file for pattern in COMPANIONS for file in folder.glob(pattern) if file.is_file()}
    return sorted(file.relative_to(folder).as_posix() for file in files)


def links_out(companions: Mapping[str, Path], folder: Path) -> list[str]:
    """Return the names of files that are links out of ``folder``, sorted: what they lead to is nobody's to pass on.

    In the Hub's cache all files of a model are links to its ``blobs``.
    """
    home = folder.resolve()
    real = {name: file.resolve() for name, file in companions.items()}
    blobs = home.parent.parent / "blobs"
    return sorted(name for name, file in real.items() if not file.is_relative_to(home) and file.parent != blobs)


def choose_weight_file(names: Collection[str]) -> str | None:
    """Return the one of ``names`` that holds or indexes the weights; None if there is none."""
    return next((file for file, _ in WEIGHT_FILES if file in names), None)


def read_folder(folder: Path) -> tuple[str, dict[str, LazyTensor]]:
    """Return the name of the weight file in ``folder``, and every tensor in it or in its shards.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or a file is damaged.
    """
    for name, reader in WEIGHT_FILES:
        file = folder / name
        if not file.is_file():
            continue
        return name, _read_shards(file, reader) if name.endswith(".index.json") else read_weights(file, reader)
    refuse_steps(folder)
    present = sorted(entry.name for entry in folder.iterdir())
    raise CheckpointError(
        f"{folder} has no weights; expected one of {', '.join(name for name, _ in WEIGHT_FILES)}, "
        f"found {', '.join(present[:8]) or 'nothing'}"
    )


def refuse_steps(folder: Path) -> None:
    """Refuse a folder without weights, if a training saved checkpoints in it, each in a subfolder.

    Raises:
        CheckpointError: there are such subfolders. It names them, and advises the last.
    """
    steps = {int(match[1]): path.name for path in folder.iterdir() if (match := STEP.fullmatch(path.name))}
    names = [steps[step] for step in sorted(steps) if (folder / steps[step]).is_dir()]
    if names:
        shown = names if len(names) <= STEPS_SHOWN else [*names[:3], "…", *names[-3:]]
        raise CheckpointError(
            f"{folder} holds no weights itself, but the checkpoints of a training: {', '.join(shown)}; name one of "
            f"them, such as the last: {folder / names[-1]}"
        )


def read_weights(file: Path, reader: Reader) -> dict[str, LazyTensor]:
    """Return every tensor of one file.

    Raises:
        CheckpointError: it is damaged, or only a Git LFS pointer to the weights.
    """
    refuse_lfs_pointer(file)
    return reader(file)


def shards(index: Path) -> list[str]:
    """Return the file names in an index, each once, sorted."""
    return sorted(set(read_weight_map(index).values()))


def read_weight_map(index: Path) -> dict[str, str]:
    """Return an index's tensor name → file name. Each file name is a plain name in the index's folder.

    Raises:
        CheckpointError: the index is malformed or leads out of its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor name → file name")
    for name in set(weight_map.values()):
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} points outside its folder: {name!r}; expected plain file names")
    return weight_map


def _read_shards(index: Path, reader: Reader) -> dict[str, LazyTensor]:
    weight_map = read_weight_map(index)
    tensors: dict[str, LazyTensor] = {}
    for name in sorted(set(weight_map.values())):
        shard = index.parent / name
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing; {index.name} names it, download it too")
        for key, tensor in read_weights(shard, reader).items():
            if key in tensors:
                raise CheckpointError(f"tensor {tensor.name} is in two shards, {tensors[key].file} and {shard}")
            tensors[key] = tensor
    rename = RENAMED.get(reader, str)
    for tensor_name, name in weight_map.items():
        key = rename(tensor_name)
        if key not in tensors or tensors[key].file.name != name:
            raise CheckpointError(f"{index} says that {name} holds tensor {tensor_name}, and it does not")
    return tensors
