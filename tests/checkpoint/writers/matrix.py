"""Every format that is read, each with a way to write it: the rows of the matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.numpy import load_file
from torch.nn import functional as F

from tests.checkpoint.conftest import linear_logits
from tests.checkpoint.writers import flax, llmc, lora, megatron, nanogpt, openai
from tests.checkpoint.writers import gguf_files as gguf
from tests.checkpoint.writers import keras as tensorflow
from tests.conftest import SMALL, random_gpt2

IDS = torch.tensor([5, 60, 0, 17, 17, 3, 42])
TANH = partial(F.gelu, approximate="tanh")
SQUARE = SMALL["n_embd"]  # as n_inner: then three of four projections are square


@dataclass(frozen=True)
class Case:
    """A file or folder of some format, how to convert it, and the logits [S, V] that its own code gives for IDS."""

    source: Path
    expected: torch.Tensor
    options: dict[str, Any]


Make = Callable[[Path, bool, bool], Case]  # where to write; with a tied head; with biases


# --- Hugging Face's names and layout


def hugging_face(tied: bool, bias: bool, n_inner: int | None = SQUARE) -> transformers.GPT2LMHeadModel:
    model = random_gpt2(tie_word_embeddings=tied, n_inner=n_inner)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not bias:
            parameter.data.zero_()
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS[None]).logits[0]
    return found


def saved(folder: Path, tied: bool, bias: bool, **options: Any) -> Case:
    model = hugging_face(tied, bias)
    model.save_pretrained(folder, **options)
    return Case(folder, logits(model), {})


def as_bin(folder: Path, tied: bool, bias: bool, name: str = "pytorch_model.bin", prefix: str = "") -> Case:
    case = saved(folder, tied, bias)
    (folder / "model.safetensors").unlink()
    torch.save({prefix + key: tensor for key, tensor in hugging_face(tied, bias).state_dict().items()}, folder / name)
    return case


def as_one_file(folder: Path, tied: bool, bias: bool) -> Case:
    case = as_bin(folder, tied, bias, "epoch3.pt", "module._orig_mod.")
    return Case(folder / "epoch3.pt", case.expected, {})


def as_rewritten(rewrite: Callable[[Path, Path], Path], folder: Path, tied: bool, bias: bool) -> Case:
    """A format of transformers before 5, made of a folder of today's."""
    case = saved(folder / "source", tied, bias)
    return Case(rewrite(folder / "source", folder / "rewritten"), case.expected, {})


def as_openai(folder: Path, tied: bool, bias: bool) -> Case:
    model = hugging_face(tied, bias, n_inner=None)
    model.save_pretrained(folder / "source")
    state = load_file(folder / "source" / "model.safetensors")
    return Case(openai.write(folder / "117M", state), logits(model), {})


# --- layouts of their own


def as_nanogpt(folder: Path, tied: bool, bias: bool) -> Case:
    state = nanogpt.state_dict(bias, tied)
    file = nanogpt.save(nanogpt.checkpoint(state, "_orig_mod.", bias=bias), folder)
    return Case(file, linear_logits(state, IDS[None], nanogpt.H, F.gelu)[0], {"activation": "gelu"})


def as_llmc(folder: Path, tied: bool, bias: bool) -> Case:
    state = {n: t * (bias or not n.endswith("bias")) for n, t in llmc.state_dict().items()}
    return Case(llmc.write(folder / "model.bin", state), linear_logits(state, IDS[None], llmc.H, TANH)[0], {})


def as_megatron(folder: Path, tied: bool, bias: bool) -> Case:
    state = megatron.layers(megatron.NEW, bias)
    made = megatron.checkpoint(state, add_bias_linear=bias)
    head = None if tied else torch.randn(megatron.V, megatron.E)
    if head is not None:
        made["model"]["language_model"]["output_layer"] = {"weight": head}
    expected = megatron.forward(state, megatron.NEW, 3.0, TANH, head)
    return Case(megatron.save(made, folder), expected, {})


def as_gguf(kind: str, folder: Path, tied: bool, bias: bool) -> Case:
    """The gguf package writes the file and reads it back; its projections are [out, in]."""
    weights = gguf.arrays(gguf.random_gpt2(tie_word_embeddings=tied), tied)
    weights = {name: array * (bias or not name.endswith("bias")) for name, array in weights.items()}
    file = gguf.write(folder / "model.gguf", weights, kind)
    held = {name: torch.tensor(array) for name, array in gguf.dequantized(file).items()}
    names = [name for name in gguf.random_gpt2().state_dict() if gguf.llama_name(name) in held]
    state = {name: held[gguf.llama_name(name)] for name in names}
    return Case(file, linear_logits(state, IDS[None], gguf.SIZES["n_head"], TANH)[0], {})


# --- on top of another


def as_lora(folder: Path, tied: bool, bias: bool) -> Case:
    """Of a Conv1D, the update is added to what the module gives, as peft does while it trains."""
    model = hugging_face(tied, bias)
    model.save_pretrained(folder / "base")
    adapted = {name: module for name, module in model.named_modules() if name.endswith(ADAPTED)}
    pairs = {name: random_update(*module.weight.shape) for name, module in adapted.items()}
    for name, module in adapted.items():
        module.register_forward_hook(partial(with_update, *pairs[name]))
    return Case(folder / "base", logits(model), {"adapter": write_adapter(folder / "adapter", pairs)})


def as_lora_of_linears(folder: Path, tied: bool, bias: bool) -> Case:
    """Of a Linear, [out, in], the update is added to the weight."""
    state = nanogpt.state_dict(bias, tied)
    file = nanogpt.save(nanogpt.checkpoint(state, bias=bias), folder)
    weights = [name for name in state if name.endswith(tuple(f"{module}.weight" for module in ADAPTED))]
    pairs = {name.removesuffix(".weight"): random_update(*state[name].shape[::-1]) for name in weights}
    merged = {f"{name}.weight": state[f"{name}.weight"] + SCALE * b @ a for name, (a, b) in pairs.items()}
    expected = linear_logits(state | merged, IDS[None], nanogpt.H, F.gelu)[0]
    return Case(file, expected, {"activation": "gelu", "adapter": write_adapter(folder / "adapter", pairs)})


ADAPTED = ("c_attn", "mlp.c_proj")  # what the config of writers/lora.py targets
RANK, SCALE = 3, 2


def random_update(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B."""
    return torch.randn(RANK, inputs) * 0.4, torch.randn(outputs, RANK) * 0.4


def with_update(
    a: torch.Tensor, b: torch.Tensor, module: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor
) -> torch.Tensor:
    """A forward hook."""
    return out + SCALE * args[0] @ a.T @ b.T


def write_adapter(folder: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": tensor.numpy()
        for name, pair in pairs.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    return lora.write(folder, tensors, r=RANK, lora_alpha=SCALE * RANK)


# --- the table

YES = "yes"
ZEROS = "as zeros"
TIES = "no: always wte"


@dataclass(frozen=True)
class Row:
    """What a format can express: yes, as zeros (biases that it always has), or no and why; and the other side."""

    name: str
    make: Make
    tied: str
    untied: str
    bias: str
    no_bias: str
    other_side: str

    def cells(self) -> Iterable[tuple[bool, bool]]:
        """The combinations that there are, as (tied, bias)."""
        heads = [tied for tied, found in ((True, self.tied), (False, self.untied)) if not found.startswith("no")]
        biases = [bias for bias, found in ((True, self.bias), (False, self.no_bias)) if not found.startswith("no")]
        return product(heads, biases)


TRANSFORMERS = "transformers, which wrote it"
REWRITTEN = (
    "transformers, on the weights it was written from; [files of the library itself](../tests/checkpoint/written)"
)
LINEAR = "a forward pass of `nn.Linear` in the tests"

ROWS = (
    Row("Hugging Face safetensors", saved, YES, YES, YES, ZEROS, TRANSFORMERS),
    Row("… sharded", partial(saved, max_shard_size="3KB"), YES, YES, YES, ZEROS, TRANSFORMERS),
    Row("Hugging Face `.bin`", as_bin, YES, YES, YES, ZEROS, TRANSFORMERS),
    Row("one file, wrapper prefixes", as_one_file, YES, YES, YES, ZEROS, TRANSFORMERS),
    Row("TensorFlow h5", partial(as_rewritten, tensorflow.as_keras), YES, TIES, YES, ZEROS, REWRITTEN),
    Row("Flax msgpack", partial(as_rewritten, flax.as_flax), YES, YES, YES, ZEROS, REWRITTEN),
    Row("OpenAI", as_openai, YES, TIES, YES, ZEROS, REWRITTEN),
    Row("nanoGPT", as_nanogpt, YES, YES, YES, YES, LINEAR),
    Row("llm.c", as_llmc, YES, TIES, YES, ZEROS, LINEAR),
    Row("Megatron-LM", as_megatron, YES, YES, YES, "yes, but of norms", f"{LINEAR}, q, k, v interleaved"),
    Row("GGUF F32", partial(as_gguf, "F32"), YES, YES, YES, ZEROS, f"{LINEAR}, on what the gguf package reads"),
    Row("GGUF F16", partial(as_gguf, "F16"), YES, YES, YES, ZEROS, f"{LINEAR}, on what the gguf package reads"),
    Row("GGUF Q8_0", partial(as_gguf, "Q8_0"), YES, YES, YES, ZEROS, f"{LINEAR}, on what the gguf package dequantizes"),
    Row("LoRA on Hugging Face", as_lora, YES, YES, YES, ZEROS, "transformers, the update added to modules' outputs"),
    Row("LoRA on nanoGPT", as_lora_of_linears, YES, YES, YES, YES, f"{LINEAR}, the update added to its weights"),
)
