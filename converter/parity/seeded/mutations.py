"""List the seeded defects that logits show.

The verdict and the diagnosis never see this room; they see only the files. A mutation knows which cause a good
diagnosis would name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from converter.checkpoint.names import canonical
from converter.files import read_json
from converter.parity.seeded.graphs import (
    activation,
    count_padding,
    epsilon,
    forget_padding,
    head_reads,
    kept_is,
    larger_logits,
    look_ahead,
    no_padding,
    on_nodes,
    scale,
    shift_positions,
    size_is,
    swap_inputs,
    swap_layers,
    swap_outputs,
    to_identity,
    when,
)
from converter.parity.seeded.mutation import Apply, Mutation
from converter.parity.seeded.weights import (
    both,
    element,
    in_layer,
    interleave,
    rounded,
    spoil,
    swap_q_and_k,
    transpose,
)
from converter.weights.precisions import FULL, PRECISIONS
from converter.weights.table import TABLE
from reference.config import GPT2Config


def untie(folder: Path) -> None:
    """Give the source a head of its own: its embedding with the columns rolled by one."""
    weights = load_file(folder / "model.safetensors")
    embedding = next(weight for name, weight in weights.items() if canonical(name) == "wte.weight")
    own = {name: weight for name, weight in weights.items() if canonical(name) != "lm_head.weight"}
    save_file(own | {"lm_head.weight": embedding.roll(1, dims=1)}, folder / "model.safetensors", {"format": "pt"})
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8")


def flag(**values: Any) -> Apply:
    """Set keys in both configs, but leave the graph as it is."""
    return lambda copy: copy.edit_config(**values)


GELUS = ("gelu_new", "gelu_accurate", "gelu_fast", "gelu_python_tanh", "gelu_pytorch_tanh")


def several_positions(config: GPT2Config) -> bool:
    """Tell whether the model has more than one position."""
    return config.n_positions > 1


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("square weight transposed", ("transposed",), in_layer("attn.c_proj.weight", transpose)),
    Mutation("weight transposed", ("transposed",), in_layer("mlp.c_fc.weight", transpose)),
    Mutation("q and k swapped in the weights", ("order",), both("attn.c_attn", swap_q_and_k)),
    Mutation("k and v swapped in the graph", ("order",), on_nodes(swap_outputs, False, "h.{i}.attn.q")),
    Mutation("q and k swapped at the attention", ("order",), on_nodes(swap_inputs(0, 1), False, "h.{i}.attn.sdpa")),
    Mutation("q, k, v interleaved per head", ("interleaved",), both("attn.c_attn", interleave)),
    Mutation("another GELU in one layer", ("activation",), on_nodes(activation("Gelu"), False, "h.{i}.mlp.act"),
             possible=lambda c: c.activation_function in GELUS),
    Mutation("ReLU in all layers", ("activation",), on_nodes(activation("Relu"), True, "h.{i}.mlp.act"),
             possible=lambda c: c.activation_function in GELUS),
    Mutation("activation of the config unheeded", ("activation",), flag(activation_function="silu"),
             possible=lambda c: c.activation_function not in ("silu", "swish", "prelu")),
    Mutation("epsilon × 10 in one place", ("epsilon",), on_nodes(epsilon(10), False, "h.{i}.ln_2")),
    Mutation("epsilon ÷ 10 everywhere", ("epsilon",), on_nodes(epsilon(0.1), True, "h.{i}.ln_1", "h.{i}.ln_2", "ln_f")),
    Mutation("attention scale missing", ("scale",),
             on_nodes(scale(lambda s, i, c: s * c.head_dim**0.5), True, "h.{i}.attn.sdpa"),
             possible=lambda c: c.scale_attn_weights),
    Mutation("attention scale doubled", ("scale",),
             on_nodes(scale(lambda s, i, c: s * c.head_dim**-0.5), True, "h.{i}.attn.sdpa")),
    Mutation("scaled by the layer's number", ("inverse_layer",),
             on_nodes(scale(lambda s, i, c: s / (i + 1)), True, "h.{i}.attn.sdpa"),
             possible=lambda c: c.n_layer > 1 and not c.scale_attn_by_inverse_layer_idx),
    Mutation("scale by the layer's number unheeded", ("inverse_layer",), flag(scale_attn_by_inverse_layer_idx=True),
             possible=lambda c: c.n_layer > 1 and not c.scale_attn_by_inverse_layer_idx),
    Mutation("positions off by one", ("position",), shift_positions, possible=several_positions),
    Mutation("positions count the padding", ("position",), count_padding, possible=several_positions),
    Mutation("mask off by one", ("mask",), look_ahead, possible=several_positions),
    Mutation("padding not masked", ("mask",), forget_padding, possible=several_positions),
    Mutation("one logit wrong when only it is asked for", ("scaled", "unexplained"), when(kept_is(1), larger_logits)),
    Mutation("wrong when two logits are asked for", ("scaled", "unexplained"), when(kept_is(2), larger_logits)),
    Mutation("wrong in batches of more than 16", ("scaled", "unexplained"),
             when(size_is("Greater", 0, 16), larger_logits)),
    Mutation("wrong for 16 tokens at once", ("scaled", "unexplained"), when(size_is("Equal", 1, 16), larger_logits),
             possible=lambda c: c.n_positions >= 16),
    Mutation("padding seen in batches of more than 4", ("mask",), when(size_is("Greater", 0, 4), no_padding),
             possible=several_positions),
    Mutation("bias dropped in the graph", ("bias",), on_nodes(to_identity, False, "h.{i}.mlp.c_proj"),
             needs="h.{i}.mlp.c_proj.bias"),
    Mutation("bias zero in the weights", ("bias",), in_layer("attn.c_attn.bias", lambda b, c: b * 0)),
    Mutation("residual dropped", ("left_out",), on_nodes(to_identity, False, "h.{i}.attn_residual")),
    Mutation("two layers swapped", ("layers",), swap_layers, possible=lambda c: c.n_layer > 1),
    Mutation("head tied to the wrong matrix", ("head",), head_reads("wte.weight"), variant=untie),
    Mutation("weight rounded to bfloat16", ("rounded",), in_layer("mlp.c_proj.weight", rounded(torch.bfloat16))),
    Mutation("weight rounded to float8", ("rounded",), in_layer("attn.c_proj.weight", rounded(torch.float8_e4m3fn))),
    Mutation("NaN in a weight", ("overflow",), in_layer("mlp.c_fc.weight", spoil(np.nan))),
    Mutation("weight that overflows", ("overflow", "element"), in_layer("mlp.c_fc.weight", spoil(3e38))),
)  # fmt: skip

# The defects for graphs of every precision: they change operations that all of these graphs have.
OF_ALL_GRAPHS = (
    "k and v swapped in the graph",
    "q and k swapped at the attention",
    "another GELU in one layer",
    "ReLU in all layers",
    "epsilon × 10 in one place",
    "epsilon ÷ 10 everywhere",
    "attention scale missing",
    "attention scale doubled",
    "positions off by one",
    "positions count the padding",
    "mask off by one",
    "padding not masked",
    "residual dropped",
)


def lossy() -> Iterator[Mutation]:
    """Yield the defects of graphs for every precision that has a budget."""
    for precision in PRECISIONS:
        for mutation in MUTATIONS:
            if precision != FULL and mutation.name in OF_ALL_GRAPHS:
                yield replace(mutation, name=f"{mutation.name}, {precision}", precision=precision)


def elements(config: GPT2Config) -> Iterator[Mutation]:
    """Yield defects that change one number: one in each tensor of the middle layer and of the rest of the model."""
    for weight in TABLE:
        if weight.needed(config):
            name = weight.name.format(i=config.n_layer // 2)
            yield Mutation(f"1 % on one element of {name}", ("element",), element(weight.name))
