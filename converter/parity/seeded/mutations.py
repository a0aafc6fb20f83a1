"""Seeded defects: each changes the files of a conversion as a bug in an exporter would.

Neither the verdict nor the diagnosis ever sees this module; they are given the files. A mutation knows by which name a
good diagnosis would call it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from converter.files import read_json, write_json
from converter.parity.legs.cases import SHORT_TOKENS
from converter.runtime.session import model_file
from converter.weights.table import TABLE, canonical
from reference.config import GPT2Config

# A changed element is that of median magnitude in its tensor: neither one that hardly counts nor one that stands out.
ELEMENT_CHANGE = 0.01


@dataclass(frozen=True)
class Copy:
    """A conversion that may be spoilt.

    Attributes:
        source: a copy of the source's folder.
        out: the model folder made from it.
        config: the architecture.
    """

    source: Path
    out: Path
    config: GPT2Config

    @property
    def layer(self) -> int:
        """The layer that single defects go into: one in the middle."""
        return self.config.n_layer // 2

    def edit_graph(self, edit: Callable[[GraphProto], None]) -> None:
        """Change the graph and write it back."""
        file = model_file(self.out)
        model = onnx.load(file, load_external_data=False)
        before = model.SerializeToString(deterministic=True)
        edit(model.graph)
        if model.SerializeToString(deterministic=True) != before:
            onnx.save(model, file)

    def edit_weight(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change a tensor of the data file in its bytes."""
        file = model_file(self.out)
        tensor = next(t for t in onnx.load(file, load_external_data=False).graph.initializer if t.name == name)
        where = {entry.key: entry.value for entry in tensor.external_data}
        mapped = np.memmap(
            file.parent / where["location"], "<f4", "r+", offset=int(where["offset"]), shape=tuple(tensor.dims)
        )
        mapped[...] = change(np.array(mapped))
        mapped.flush()

    def edit_config(self, **values: Any) -> None:
        """Change what both configs say; the graph stays as it is."""
        for folder in (self.source, self.out):
            write_json(folder / "config.json", read_json(folder / "config.json") | values)


Apply = Callable[[Copy], None]


@dataclass(frozen=True)
class Mutation:
    """A defect.

    Attributes:
        name: for the matrix.
        causes: what a diagnosis may call it, by ``Finding.cause``.
        apply: seeds it.
        variant: config and weights with which the source is rewritten and converted anew before; nothing for as it is.
        possible: whether the model has a place for it.
        needs: a weight, ``{i}`` for the middle layer, without which it would change nothing: one that is not all zeros.
    """

    name: str
    causes: tuple[str, ...]
    apply: Apply
    variant: Callable[[Path], None] | None = None
    possible: Callable[[GPT2Config], bool] = lambda config: True
    needs: str = ""


# --- of weights -------------------------------------------------------------------------------------------------------


def in_layer(name: str, change: Callable[[np.ndarray, GPT2Config], np.ndarray]) -> Apply:
    """Change one weight of the middle layer."""

    def apply(copy: Copy) -> None:
        copy.edit_weight(f"h.{copy.layer}.{name}", lambda weight: change(weight, copy.config))

    return apply


def transpose(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """The bytes of the transpose, which a square weight hides."""
    return weight.T.reshape(weight.shape)


def swap_q_and_k(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """The first two thirds change places."""
    q, k, v = np.split(weight, 3, axis=-1)
    return np.concatenate([k, q, v], axis=-1)


def interleave(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """q, k and v of a head side by side, as Megatron-LM stores them."""
    parts = weight.reshape(*weight.shape[:-1], 3, config.n_head, config.head_dim)
    return np.swapaxes(parts, -3, -2).reshape(weight.shape)


def both(name: str, change: Callable[[np.ndarray, GPT2Config], np.ndarray]) -> Apply:
    """Change a projection's weight and bias alike."""
    weight, bias = in_layer(f"{name}.weight", change), in_layer(f"{name}.bias", change)

    def apply(copy: Copy) -> None:
        weight(copy)
        bias(copy)

    return apply


def rounded(dtype: torch.dtype) -> Callable[[np.ndarray, GPT2Config], np.ndarray]:
    """Through a narrower type and back."""
    return lambda weight, config: torch.from_numpy(weight).to(dtype).float().numpy()


def spoil(value: float) -> Callable[[np.ndarray, GPT2Config], np.ndarray]:
    """One number, of median magnitude, becomes another."""

    def change(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
        weight.flat[median(weight)] = value
        return weight

    return change


def element(name: str) -> Apply:
    """One number of a tensor, that of median magnitude, grows by one in a hundred."""

    def change(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
        part = weight
        if name.endswith("c_attn.bias"):  # of the keys' bias no logit knows: softmax drops what all keys share
            part = weight[: config.n_embd]
        if name == "wpe.weight":  # of positions that every level feeds
            part = weight[:SHORT_TOKENS]
        part.flat[median(part)] *= np.float32(1 + ELEMENT_CHANGE)
        return weight

    return lambda copy: copy.edit_weight(name.format(i=copy.layer), lambda weight: change(weight, copy.config))


def median(weight: np.ndarray) -> int:
    """The flat index of the number of median magnitude."""
    return int(np.argsort(np.abs(weight), axis=None)[weight.size // 2])


def swap_layers(copy: Copy) -> None:
    """The first layer and the last change places."""
    first, last = "h.0.", f"h.{copy.config.n_layer - 1}."

    def swap(graph: GraphProto) -> None:
        for node in graph.node:
            for at, name in enumerate(node.input):
                if name.endswith((".weight", ".bias")):
                    new = last if name.startswith(first) else first if name.startswith(last) else None
                    node.input[at] = name if new is None else new + name.split(".", 2)[2]

    copy.edit_graph(swap)


# --- of the graph -----------------------------------------------------------------------------------------------------


def on_nodes(edit: Callable[[NodeProto, GPT2Config], None], everywhere: bool, *tails: str) -> Apply:
    """Change the nodes that put out a value of one of these names, in all layers or in the middle one."""

    def apply(copy: Copy) -> None:
        layers = range(copy.config.n_layer) if everywhere else [copy.layer]
        names = {tail.format(i=i) for i in layers for tail in tails}

        def change(graph: GraphProto) -> None:
            for node in graph.node:
                if names & set(node.output):
                    edit(node, copy.config)

        copy.edit_graph(change)

    return apply


def attribute(node: NodeProto, name: str) -> AttributeProto:
    """A node's attribute."""
    return next(a for a in node.attribute if a.name == name)


def activation(op_type: str) -> Callable[[NodeProto, GPT2Config], None]:
    """Another operator in the activation's place."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        node.op_type = op_type
        del node.attribute[:]

    return edit


def epsilon(factor: float) -> Callable[[NodeProto, GPT2Config], None]:
    """A multiple of the epsilon."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        attribute(node, "epsilon").f *= factor

    return edit


def scale(change: Callable[[float, int, GPT2Config], float]) -> Callable[[NodeProto, GPT2Config], None]:
    """Another attention scale, by what it was and the layer's number."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        held = attribute(node, "scale")
        held.f = change(held.f, int(node.output[0].split(".")[1]), config)

    return edit


def swap_inputs(first: int, second: int) -> Callable[[NodeProto, GPT2Config], None]:
    """Two inputs change places."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        node.input[first], node.input[second] = node.input[second], node.input[first]

    return edit


def swap_outputs(node: NodeProto, config: GPT2Config) -> None:
    """The second and third output change places."""
    node.output[1], node.output[2] = node.output[2], node.output[1]


def to_identity(node: NodeProto, config: GPT2Config) -> None:
    """A sum that forgets its second input."""
    node.op_type = "Identity"
    del node.input[1:]


def insert(
    before: str, *nodes: tuple[str, list[str], str], constants: dict[str, int] | None = None
) -> Callable[[GraphProto], None]:
    """Put nodes before the one that puts out ``before``; integers they need become initializers."""

    def edit(graph: GraphProto) -> None:
        at = next(i for i, node in enumerate(graph.node) if before in node.output)
        for number, (op_type, inputs, output) in enumerate(nodes):
            graph.node.insert(at + number, helper.make_node(op_type, inputs, [output]))
        for name, value in (constants or {}).items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))

    return edit


def shift_positions(copy: Copy) -> None:
    """Every position is one too far, the last apart."""

    def edit(graph: GraphProto) -> None:
        insert(
            "wpe",
            ("Add", ["position_ids", "shift"], "shifted"),
            ("Min", ["shifted", "last_position"], "positions"),
            constants={"shift": 1, "last_position": copy.config.n_positions - 1},
        )(graph)
        replace_input(graph, "wpe", "position_ids", "positions")

    copy.edit_graph(edit)


def count_padding(copy: Copy) -> None:
    """Positions are counted over the padding too: those that the mask compares."""

    def edit(graph: GraphProto) -> None:
        queries = [node.output[0] for node in graph.node if node.op_type == "Range"][-1]
        insert("wpe", ("Shape", ["input_ids"], "ids_shape"), ("Expand", [queries, "ids_shape"], "positions"))(graph)
        replace_input(graph, "wpe", "position_ids", "positions")

    copy.edit_graph(edit)


def replace_input(graph: GraphProto, output: str, old: str, new: str) -> None:
    """Have the node of ``output`` read another value."""
    node = next(node for node in graph.node if output in node.output)
    node.input[:] = [new if name == old else name for name in node.input]


def look_ahead(copy: Copy) -> None:
    """Every position sees the one after it."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LessOrEqual")
        output = node.output[0]
        insert(output, ("Add", [node.input[1], "shift"], "ahead"), constants={"shift": 1})(graph)
        replace_input(graph, output, node.input[1], "ahead")

    copy.edit_graph(edit)


def forget_padding(copy: Copy) -> None:
    """The mask is causal and nothing else."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "And")
        causal = next(node.output[0] for node in graph.node if node.op_type == "LessOrEqual")
        node.input[:] = [causal, causal]

    copy.edit_graph(edit)


def head_reads(name: str) -> Apply:
    """The output head multiplies with another initializer."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Gemm")
        node.input[1] = name

    return lambda copy: copy.edit_graph(edit)


# --- of the source ----------------------------------------------------------------------------------------------------


def untie(folder: Path) -> None:
    """Give the source a head of its own: its embedding, each row turned by one."""
    weights = load_file(folder / "model.safetensors")
    embedding = next(weight for name, weight in weights.items() if canonical(name) == "wte.weight")
    own = {name: weight for name, weight in weights.items() if canonical(name) != "lm_head.weight"}
    save_file(own | {"lm_head.weight": embedding.roll(1, dims=1)}, folder / "model.safetensors", {"format": "pt"})
    config = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8")


def flag(**values: Any) -> Apply:
    """Both configs say what the graph does not do."""
    return lambda copy: copy.edit_config(**values)


GELUS = ("gelu_new", "gelu_accurate", "gelu_fast", "gelu_python_tanh", "gelu_pytorch_tanh")


def several_positions(config: GPT2Config) -> bool:
    """Whether there is room for more than one token."""
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


def elements(config: GPT2Config) -> Iterator[Mutation]:
    """One changed number in each tensor that a layer has, and in each that the model has once."""
    for weight in TABLE:
        if weight.needed(config):
            name = weight.name.format(i=config.n_layer // 2)
            yield Mutation(f"1 % on one element of {name}", ("element",), element(weight.name))


def scaled_matrix(name: str, change: float) -> Apply:
    """A whole matrix times 1 + ``change``."""
    return lambda copy: copy.edit_weight(name, lambda weight: weight * np.float32(1 + change))
