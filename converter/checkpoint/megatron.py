"""Read Megatron-LM's ``model_optim_rng.pt``: a GPT-2 in nested dicts, with the arguments of its training.

Projections are ``torch.nn.Linear``, [out, in]. Query, key and value are one joint projection; the order of its rows
depends on ``checkpoint_version``. Names and orders are those of transformers' convert_megatron_gpt2_checkpoint.py and
of Megatron-LM's checkpointing.py. Both of Megatron-LM's model codes are read: the older ``megatron.model`` and
``megatron.core``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.checkpoint import pickle_machine, torch_file
from converter.checkpoint.linear import PROJECTIONS, config_values, integer
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Format, Source
from converter.checkpoint.tensor import LazyTensor, row_major, zeros
from converter.errors import CheckpointError, ConfigError

NAME = "Megatron-LM"
FILE = "model_optim_rng.pt"
FIRST_RANK = "mp_rank_00"
TRACKER = "latest_checkpointed_iteration.txt"  # in the folder of all checkpoints

# Hugging Face's name → the attribute of ``args``.
ARGUMENTS = {
    "vocab_size": "padded_vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_attention_heads",
    "n_inner": "ffn_hidden_size",
}

# NVIDIA released megatron_gpt2_345m without ``args``. These are the sizes and the activation that transformers assumes.
RELEASED = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_inner": 4096,
}  # fmt: skip
RELEASED_ACTIVATION = "gelu_new"

# Argument → activation; the first argument that is set counts. The fused kernel always uses the tanh approximation.
ACTIVATIONS = {"bias_gelu_fusion": "gelu_fast", "openai_gelu": "gelu_new"}
EXACT = "gelu"

# Arguments that are not set in a GPT-2.
REFUSED = (
    "swiglu", "squared_relu", "quick_geglu", "use_rotary_position_embeddings", "apply_layernorm_1p",
    "apply_residual_connection_post_layernorm", "group_query_attention", "num_experts", "multi_latent_attention",
    "qk_layernorm", "retro_add_retriever",
)  # fmt: skip

# Arguments that have this value in a GPT-2, if they are there.
EXPECTED = {"normalization": "LayerNorm", "position_embedding_type": "learned_absolute", "add_position_embedding": True}

SHARDING = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "model_parallel_size")

# The prefixes of layers and embeddings in ``megatron.model`` and ``megatron.core``.
_PREFIX = re.compile(r"^(?:module\.)*(?:language_model\.)?(?:(?:transformer|encoder|decoder)\.(?=layers\.|final_))?")
_LAYER = re.compile(r"^layers\.(0|[1-9][0-9]{0,5})\.(.+)$")

WHOLE = {
    "embedding.word_embeddings.weight": "transformer.wte.weight",
    "embedding.position_embeddings.weight": "transformer.wpe.weight",
    "final_layernorm.weight": "transformer.ln_f.weight",
    "final_layernorm.bias": "transformer.ln_f.bias",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "output_layer.weight": "lm_head.weight",
}

# Megatron-LM's name of a module in a layer → Hugging Face's. Each module has a weight and a bias.
MODULES = {
    "input_layernorm": "ln_1",
    "input_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "self_attention.query_key_value": "attn.c_attn",
    "self_attention.linear_qkv": "attn.c_attn",
    "attention.dense": "attn.c_proj",
    "self_attention.dense": "attn.c_proj",
    "self_attention.linear_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "post_attention_norm": "ln_2",
    "pre_mlp_layernorm": "ln_2",
    "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.linear_fc1": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
    "mlp.linear_fc2": "mlp.c_proj",
}
OF_LAYER = {f"{module}.{kind}": f"{target}.{kind}" for module, target in MODULES.items() for kind in ("weight", "bias")}
# Transformer Engine's projections contain the layer norm that comes before them.
OF_LAYER |= {f"self_attention.linear_qkv.layer_norm_{kind}": f"ln_1.{kind}" for kind in ("weight", "bias")}
OF_LAYER |= {f"mlp.linear_fc1.layer_norm_{kind}": f"ln_2.{kind}" for kind in ("weight", "bias")}

FP8_STATE = "_extra_state"  # Transformer Engine's state, not weights

JOINT = (".attn.c_attn.weight", ".attn.c_attn.bias")

# ``checkpoint_version`` → the order of the joint rows. s: query, key or value; n: the head; d: the dimension in it.
ORDERS = {0: "snd", 1: "nds", 2: "nsd", 3: "nsd"}


def find(path: Path) -> Path:
    """Return the checkpoint's file in a folder: of the latest checkpoint, if the folder holds several.

    If there is no such file, return ``path``.
    """
    folder = path
    if (path / TRACKER).is_file():
        with (path / TRACKER).open("rb") as opened:
            latest = opened.read(20).strip()
        folder = path / (f"iter_{int(latest):07d}" if latest.isdigit() else "release")
    file = folder / FIRST_RANK / FILE
    return file if path.is_dir() and file.is_file() else path


def recognises(path: Path) -> bool:
    """Tell whether a file has the parts of a Megatron-LM checkpoint."""
    try:
        found = torch_file.parts(find(path))
    except OSError:
        return False
    model = found.get("model")
    return "checkpoint_version" in found or (isinstance(model, dict) and "language_model" in model)


def read(path: Path, options: SourceOptions) -> Source:
    """Read a checkpoint, given its file, its folder, or the folder of all checkpoints.

    Raises:
        ConfigError: it is not a GPT-2, or an argument is missing.
        CheckpointError: it is damaged, one of several parts, or of an unknown version.
    """
    file = find(path)
    checkpoint = torch_file.load(file)
    args = _args(file, checkpoint)
    _refuse_parts(file, checkpoint, args)
    _refuse_others(file, args)
    sizes = _sizes(file, args) if args else RELEASED
    head_dim = sizes["n_embd"] // sizes["n_head"]
    if args.get("kv_channels") not in (None, head_dim):
        raise ConfigError(f"{file}: kv_channels in args is not {head_dim}; expected n_embd divided by n_head")
    tensors = dict(_tensors(file, checkpoint, sizes["n_head"], head_dim))
    if not args:
        wte = tensors.get("transformer.wte.weight")
        if wte is not None and wte.shape[:1] > (sizes["vocab_size"],):
            tensors["transformer.wte.weight"] = wte.rows(sizes["vocab_size"])
    biases = dict(_absent_biases(file, tensors)) if args.get("add_bias_linear") is False else {}
    values = config_values(
        sizes,
        activation_function=_activation(file, args, options),
        tie_word_embeddings="lm_head.weight" not in tensors,
        **_epsilon(args),
    )
    notes = () if args else (f"{file} records no args; its sizes and activation are taken to be megatron_gpt2_345m's",)
    name = str(file.relative_to(path)) if path.is_dir() else file.name
    return Source(NAME, name, values, tensors | biases, notes=notes)


def _sizes(file: Path, args: Mapping[Any, Any]) -> dict[str, int]:
    """Return the sizes by Hugging Face's names.

    Raises:
        ConfigError: a size is missing, or the sizes do not fit together.
    """
    if args.get("ffn_hidden_size") is None:  # as in the first versions
        args = {**args, "ffn_hidden_size": 4 * integer(file, args, "hidden_size", "args")}
    sizes = {name: integer(file, args, key, "args") for name, key in ARGUMENTS.items()}
    if min(sizes.values()) < 1 or sizes["n_embd"] % sizes["n_head"]:
        found = ", ".join(f"{name} {value}" for name, value in sizes.items())
        raise ConfigError(f"{file}: args have {found}; expected positive integers, and n_head to divide n_embd")
    return sizes


def _args(file: Path, checkpoint: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the training arguments by name; empty if the checkpoint has none."""
    args = checkpoint.get("args")
    if isinstance(args, pickle_machine.Inert):
        return args.attributes
    if args is None or isinstance(args, dict):
        return args or {}
    raise ConfigError(f"{file}: args are a {type(args).__name__}; expected an argparse.Namespace")


def _refuse_parts(file: Path, checkpoint: Mapping[Any, Any], args: Mapping[Any, Any]) -> None:
    """Refuse a model that is split over several files.

    Raises:
        CheckpointError: it is one of several parts.
    """
    rank = file.parent.name.startswith("mp_rank_")
    ranks = sorted(entry.name for entry in file.parent.parent.glob("mp_rank_*")) if rank else []
    sharded = any(args.get(key) not in (None, 1) for key in SHARDING) or (rank and file.parent.name != FIRST_RANK)
    if sharded or len(ranks) > 1 or "model" not in checkpoint:
        others = f" ({', '.join(ranks[:4])})" if len(ranks) > 1 else ""
        raise CheckpointError(
            f"{file} is one of the parts of a model that was trained on several devices{others}; join them with "
            f"Megatron-LM's tools/checkpoint, to tensor and pipeline parallel sizes of 1"
        )


def _refuse_others(file: Path, args: Mapping[Any, Any]) -> None:
    """Refuse a model whose arguments ask for something that GPT-2 does not have.

    Raises:
        ConfigError: an argument does.
    """
    for key in REFUSED:
        if args.get(key):
            raise ConfigError(f"{file} is not a GPT-2: it was trained with {key}")
    for key, expected in EXPECTED.items():
        if args.get(key, expected) != expected:
            raise ConfigError(f"{file} is not a GPT-2: its {key} is not {expected}")


def _activation(file: Path, args: Mapping[Any, Any], options: SourceOptions) -> str:
    if not args:
        return options.activation or RELEASED_ACTIVATION
    if any(key in args for key in ACTIVATIONS):
        return next((name for key, name in ACTIVATIONS.items() if args.get(key)), EXACT)
    if options.activation is None:
        raise ConfigError(
            f"{file} does not record its activation: give --activation gelu_new if it was trained with --openai-gelu, "
            f"--activation gelu_fast if with the fused kernel, else --activation gelu"
        )
    return options.activation


def _epsilon(args: Mapping[Any, Any]) -> dict[str, float]:
    found = args.get("layernorm_epsilon", args.get("norm_epsilon"))
    return {"layer_norm_epsilon": found} if isinstance(found, float) else {}


def _tensors(file: Path, checkpoint: Mapping[Any, Any], n_head: int, head_dim: int) -> Iterator[tuple[str, LazyTensor]]:
    """Yield Hugging Face's name and the tensor in its layout.

    An unknown name gets the prefix ``megatron.``, and the ledger refuses it.

    Raises:
        CheckpointError: a name is there twice, or the version is unknown.
    """
    version = checkpoint.get("checkpoint_version", 0)
    if type(version) not in (int, float) or version not in ORDERS:
        found = version if type(version) in (int, float) else type(version).__name__
        raise CheckpointError(f"{file} is of checkpoint_version {found}; expected one of {', '.join(map(str, ORDERS))}")
    seen: dict[str, str] = {}
    for own_name, tensor in _flat(file, checkpoint["model"], "", set()):
        name = _translated(own_name)
        if name in seen:
            raise CheckpointError(f"{file} holds {name} twice: as {seen[name]} and as {own_name}")
        seen[name] = own_name
        if name.endswith(JOINT):
            tensor = _ordered(tensor, ORDERS[int(version)], n_head, head_dim)
        yield name, tensor.transposed() if name.endswith(PROJECTIONS) and not name.endswith(JOINT) else tensor


def _flat(file: Path, value: Any, path: str, above: set[int]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield each tensor with its path: the keys that lead to it, joined by dots.

    Raises:
        CheckpointError: a value is neither a dict nor a tensor, or a dict is there twice.
    """
    if isinstance(value, LazyTensor):
        yield path, value
        return
    if not isinstance(value, dict) or id(value) in above:  # a dict may hold itself, or another a billion times
        raise CheckpointError(f"{file}: model.{path[:80]} is a {type(value).__name__}; expected dicts of tensors")
    above.add(id(value))
    for key, item in value.items():
        if not str(key).endswith(FP8_STATE):
            yield from _flat(file, item, f"{path}.{key}" if path else str(key), above)


def _translated(own_name: str) -> str:
    name = _PREFIX.sub("", own_name)
    layer = _LAYER.match(name)
    if layer is None:
        return WHOLE.get(name, f"megatron.{own_name}")
    target = OF_LAYER.get(layer[2])
    return f"transformer.h.{layer[1]}.{target}" if target else f"megatron.{own_name}"


def _ordered(tensor: LazyTensor, order: str, n_head: int, head_dim: int) -> LazyTensor:
    """Return the joint projection with its outputs in order: query, key, value, and in each of them head after head.

    A weight is also transposed.

    Args:
        tensor: [3·E, E] or [3·E].
        order: of its first dimension, as in ``ORDERS``.

    Raises:
        CheckpointError: it has another shape.
    """
    extents = {"s": 3, "n": n_head, "d": head_dim}
    width = n_head * head_dim
    if tensor.shape not in ((3 * width, width), (3 * width,)):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} is {list(tensor.shape)}; args, or megatron_gpt2_345m where "
            f"there are none, ask for {[3 * width, width]} and a bias of {[3 * width]}"
        )
    step, *column = tensor.strides or row_major(tensor.shape)
    steps = dict(zip(order, row_major(tuple(extents[axis] for axis in order)), strict=True))
    return replace(
        tensor,
        shape=tensor.shape[::-1],
        view=(*tensor.shape[1:], *(extents[axis] for axis in "snd")),
        strides=(*column, *(steps[axis] * step for axis in "snd")),
    )


def _absent_biases(file: Path, tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield a zero bias for every projection that has none.

    Its length is the number of outputs; weights are [in, out] by now.
    """
    for name, weight in tensors.items():
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(PROJECTIONS) and bias not in tensors:
            yield bias, zeros(bias, weight.shape[-1:], file)


FORMAT = Format("a Megatron-LM checkpoint", recognises, read)
