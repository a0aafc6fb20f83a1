"""Recognise what holds the weights of a model and cannot be read, and say what makes a checkpoint of it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from converter.checkpoint.huggingface import has_weights
from converter.errors import CheckpointError
from converter.files import starts_with

GGML_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt, ggla as little-endian numbers
GGML = "is a ggml file, which names no sizes by which it could be checked; convert the checkpoint that it was made of"

# Files and folders that a sharded checkpoint is known by → what they are, and what puts the shards together.
SHARDS = {
    ("zero_to_fp32.py", "global_step[0-9]*", "*zero_pp_rank_*"): (
        "holds shards of DeepSpeed; put them together with python zero_to_fp32.py . . in the folder of that script, "
        "which writes pytorch_model.bin there, beside config.json"
    ),
    ("*.distcp",): (
        "holds shards of torch.distributed.checkpoint; put them together with "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt, and convert FILE.pt beside "
        "config.json"
    ),
}

# What a weight without numbers tells: a training with ZeRO-3 keeps them in shards, and saves empty tensors beside.
IN_SHARDS = "its numbers lie in shards of DeepSpeed, so put them together with zero_to_fp32.py, which lies beside them"

FSDP_FOLDERS = "pytorch_model_fsdp_[0-9]*"  # in which accelerate, and so the Trainer, puts shards of torch

DEEPSPEED_PART = "mp_rank_"  # beside shards: the model, whole or only its buffers


def refuse(path: Path) -> None:
    """Refuse a file of ggml, and shards that are no checkpoint before they are put together.

    Raises:
        CheckpointError: ``path`` is such a file, or a folder of such shards without other weights.
    """
    if starts_with(path, *GGML_MAGICS):
        raise CheckpointError(f"{path} {GGML}")
    for folder in sorted(path.glob(FSDP_FOLDERS)) if path.is_dir() and not has_weights(path) else ():
        refuse(folder)
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else [path.name]
    for patterns, sentence in SHARDS.items():
        shards = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        parts = {name for name in names if name.startswith(DEEPSPEED_PART)}
        if shards and not (path.is_dir() and has_weights(path, shards | parts)):
            folder = path if path.is_dir() else path.parent
            raise CheckpointError(f"{path} {sentence.format(folder=folder)}")
