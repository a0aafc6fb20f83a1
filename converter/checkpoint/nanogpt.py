"""Read nanoGPT's ``ckpt.pt``: weights and architecture in one dict, ``{'model', 'model_args', 'optimizer', …}``.

Names are Hugging Face's, after the prefix of ``torch.compile``. Projections are ``nn.Linear``, [out, in]. A model
without biases (``bias=False``) has none in its layer norms either. The activation is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint import torch_file
from converter.checkpoint.linear import PROJECTIONS, config_values, integer
from converter.checkpoint.names import unwrapped
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.checkpoint.tensor import LazyTensor, zeros
from converter.errors import CheckpointError, ConfigError

NAME = "nanoGPT"

# Hugging Face's name → the key of ``model_args``. ``bias`` and ``dropout`` need no counterpart.
ARGUMENTS = {
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
    "n_embd": "n_embd",
    "n_layer": "n_layer",
    "n_head": "n_head",
}

WRAPPERS = ("module.", "model.")  # DistributedDataParallel's, Lightning's; torch.compile's is known by its underscore

# Ends of the names of weights that have a bias, unless the model has no biases.
BIASED = (*PROJECTIONS, ".ln_1.weight", ".ln_2.weight", ".ln_f.weight")

# What a message advises for a torch.save file that no format reads: to save it as a nanoGPT checkpoint.
SAVE_AGAIN = (
    "torch.save({'model': model.state_dict(), 'model_args': {'n_layer': …, 'n_head': …, 'n_embd': …, "
    "'block_size': …, 'vocab_size': …, 'bias': True}}, 'ckpt.pt')"
)


def recognises(path: Path) -> bool:
    """Tell whether a file has the two parts of a nanoGPT checkpoint."""
    found = torch_file.parts(path)
    return isinstance(found.get("model"), dict) and isinstance(found.get("model_args"), dict)


def read(file: Path, options: SourceOptions) -> Source:
    """Read a ``ckpt.pt``.

    Raises:
        ConfigError: the activation is not given, or ``model_args`` lacks a size.
        CheckpointError: it is damaged, or holds a name twice.
    """
    if options.activation is None:
        raise ConfigError(
            f"{file} does not record its activation, which nanoGPT changed in May 2023: give --activation gelu if the "
            f"model.py of the training run has nn.GELU, --activation gelu_new if it has new_gelu (the tanh "
            f"approximation)"
        )
    checkpoint = torch_file.load(file)
    tensors = dict(_tensors(file, checkpoint["model"]))
    biases = dict(_absent_biases(file, tensors)) if checkpoint["model_args"].get("bias") is False else {}
    values = config_values(
        {name: integer(file, checkpoint["model_args"], key, "model_args") for name, key in ARGUMENTS.items()},
        activation_function=options.activation,
        tie_word_embeddings=is_tied(tensors),
    )
    return Source(NAME, file.name, values, tensors | biases)


def is_tied(tensors: Mapping[str, LazyTensor]) -> bool:
    """Tell whether the head is the embedding itself, as far as offsets show. ``account`` compares the bytes later."""
    head, embedding = tensors.get("lm_head.weight"), tensors.get("transformer.wte.weight")
    return head is None or (embedding is not None and head.offset == embedding.offset)


def _tensors(file: Path, state: Mapping[Any, Any]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield Hugging Face's name and the tensor, with projections transposed."""
    seen: dict[str, str] = {}
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, LazyTensor):
            raise CheckpointError(f"{file}: model.{key} is not a tensor; expected model.state_dict() under 'model'")
        name = unwrapped(key, WRAPPERS)
        if name in seen:
            raise CheckpointError(f"{file} holds {name} twice: as {seen[name]} and as {key}")
        seen[name] = key
        yield name, tensor.transposed() if name.endswith(PROJECTIONS) else tensor


def _absent_biases(file: Path, tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield a zero bias for every weight that lacks its bias. It is as long as the weight's outputs."""
    for name, weight in tensors.items():
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(BIASED) and bias not in tensors:
            yield bias, zeros(bias, weight.shape[-1:], file)  # [in, out] by now, or [features]


def refuse(file: Path, options: SourceOptions) -> Source:
    """Refuse a file of ``torch.save`` that no other format recognised, and say why.

    Raises:
        CheckpointError: always.
    """
    del options
    loaded = torch_file.load(file)  # raises if the file is damaged or hostile
    if isinstance(loaded, dict) and any(_is_plain(key, value) for key, value in loaded.items()):
        raise CheckpointError(
            f"{file} is a plain state dict, which records neither the number of heads nor whether its projections are "
            f"[out, in] (minGPT) or [in, out] (Hugging Face); put Hugging Face's config.json beside it, or save a "
            f"minGPT as nanoGPT does: {SAVE_AGAIN}, and give --activation gelu_new"
        )
    keys = ", ".join(str(key)[:40] for key in list(loaded)[:8]) if isinstance(loaded, dict) else type(loaded).__name__
    raise CheckpointError(
        f"{file} holds {keys or 'nothing'}; expected a checkpoint of nanoGPT (model, model_args) or of Megatron-LM "
        f"(model, args), or a state dict beside its config.json"
    )


def _is_plain(key: str | int, value: Any) -> bool:
    return isinstance(value, LazyTensor) and str(key).endswith((*PROJECTIONS, "wte.weight"))


FORMAT = Format("a nanoGPT checkpoint", recognises, read)
OTHER_TORCH_FILE = Format("a torch.save file", torch_file.is_torch_file, refuse)
