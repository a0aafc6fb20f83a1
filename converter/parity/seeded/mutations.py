"""Seeded defects. Each changes the files of a conversion as a bug in an exporter would.

The verdict and the diagnosis never see this module; they see only the files. A mutation knows which cause a good
diagnosis would name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from converter.checkpoint.names import canonical
from converter.files import read_json, write_json
from converter.parity.legs.cases import SHORT_TOKENS
from converter.runtime.session import model_file
from converter.weights.precisions import FULL, PRECISIONS
from converter.weights.table import TABLE
from reference.config import GPT2Config

# The element that is changed has the median magnitude of its tensor: it matters, and it does not stand out.
ELEMENT_CHANGE = 0.01


@dataclass(frozen=True)
class Copy:
    """A conversion that may be changed.

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
        """Return the layer in the middle, which takes defects of a single layer."""
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
        """Change a tensor in the data file."""
        file = model_file(self.out)
        tensor = next(t for t in onnx.load(file, load_external_data=False).graph.initializer if t.name == name)
        where = {entry.key: entry.value for entry in tensor.external_data}
        mapped = np.memmap(
            file.parent / where["location"], "<f4", "r+", offset=int(where["offset"]), shape=tuple(tensor.dims)
        )
        mapped[...] = change(np.array(mapped))
        mapped.flush()

    def edit_config(self, **values: Any) -> None:
        """Change both configs, and leave the graph as it is."""
        for folder in (self.source, self.out):
            write_json(folder / "config.json", read_json(folder / "config.json") | values)


Apply = Callable[[Copy], None]


@dataclass(frozen=True)
class Mutation:
    """A defect.

    Attributes:
        name: its row in the matrix of defects.
        causes: the values of ``Finding.cause`` that name it.
        apply: seeds the defect into a copy.
        variant: rewrites the source, which is then converted anew; None if the source stays as it is.
        possible: tells whether a model has a place for it.
        needs: a weight that must not be all zeros, as the defect would change nothing; ``{i}`` is the middle layer.
        precision: the precision of the conversion that is changed.
        said: for a defect that no logits show, the beginning of the sentence that names it.
    """

    name: str
    causes: tuple[str, ...]
    apply: Apply
    variant: Callable[[Path], None] | None = None
    possible: Callable[[GPT2Config], bool] = lambda config: True
    needs: str = ""
    precision: str = FULL
    said: str = ""


# --- in weights -------------------------------------------------------------------------------------------------------


def in_layer(name: str, change: Callable[[np.ndarray, GPT2Config], np.ndarray]) -> Apply:
    """Change one weight of the middle layer."""

    def apply(copy: Copy) -> None:
        copy.edit_weight(f"h.{copy.layer}.{name}", lambda weight: change(weight, copy.config))

    return apply


def transpose(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """Store the transpose in the same shape. A square weight hides it."""
    return weight.T.reshape(weight.shape)


def swap_q_and_k(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """Swap the first two thirds."""
    q, k, v = np.split(weight, 3, axis=-1)
    return np.concatenate([k, q, v], axis=-1)


def interleave(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
    """Put q, k and v of each head side by side, as Megatron-LM stores them."""
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
    """Round to a narrower type."""
    return lambda weight, config: torch.from_numpy(weight).to(dtype).float().numpy()


def spoil(value: float) -> Callable[[np.ndarray, GPT2Config], np.ndarray]:
    """Replace the number of median magnitude."""

    def change(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
        weight.flat[median(weight)] = value
        return weight

    return change


def element(name: str) -> Apply:
    """Change the number of median magnitude in a tensor by 1 %."""

    def change(weight: np.ndarray, config: GPT2Config) -> np.ndarray:
        part = weight
        if name.endswith("c_attn.bias"):  # the keys' bias changes no logit: softmax drops what all keys share
            part = weight[: config.n_embd]
        if name == "wpe.weight":  # the positions that every level feeds
            part = weight[:SHORT_TOKENS]
        part.flat[median(part)] *= np.float32(1 + ELEMENT_CHANGE)
        return weight

    return lambda copy: copy.edit_weight(name.format(i=copy.layer), lambda weight: change(weight, copy.config))


def median(weight: np.ndarray) -> int:
    """Return the flat index of the number of median magnitude."""
    return int(np.argsort(np.abs(weight), axis=None)[weight.size // 2])


def swap_layers(copy: Copy) -> None:
    """Swap the first and the last layer."""
    first, last = "h.0.", f"h.{copy.config.n_layer - 1}."

    def swap(graph: GraphProto) -> None:
        for node in graph.node:
            for at, name in enumerate(node.input):
                if name.endswith((".weight", ".bias")):
                    new = last if name.startswith(first) else first if name.startswith(last) else None
                    node.input[at] = name if new is None else new + name.split(".", 2)[2]

    copy.edit_graph(swap)


# --- in the graph -----------------------------------------------------------------------------------------------------


def on_nodes(edit: Callable[[NodeProto, GPT2Config], None], everywhere: bool, *tails: str) -> Apply:
    """Change the nodes whose output has one of these names, in all layers or in the middle one."""

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
    """Return an attribute of a node."""
    return next(a for a in node.attribute if a.name == name)


def activation(op_type: str) -> Callable[[NodeProto, GPT2Config], None]:
    """Use another operator as activation."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        node.op_type = op_type
        del node.attribute[:]

    return edit


def epsilon(factor: float) -> Callable[[NodeProto, GPT2Config], None]:
    """Multiply the epsilon."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        attribute(node, "epsilon").f *= factor

    return edit


def scale(change: Callable[[float, int, GPT2Config], float]) -> Callable[[NodeProto, GPT2Config], None]:
    """Change the attention scale: ``change`` takes the old one, the layer and the config."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        held = attribute(node, "scale")
        held.f = change(held.f, int(node.output[0].split(".")[1]), config)

    return edit


def swap_inputs(first: int, second: int) -> Callable[[NodeProto, GPT2Config], None]:
    """Swap two inputs."""

    def edit(node: NodeProto, config: GPT2Config) -> None:
        node.input[first], node.input[second] = node.input[second], node.input[first]

    return edit


def swap_outputs(node: NodeProto, config: GPT2Config) -> None:
    """Swap the second and the third output."""
    node.output[1], node.output[2] = node.output[2], node.output[1]


def to_identity(node: NodeProto, config: GPT2Config) -> None:
    """Turn a sum into its first input."""
    node.op_type = "Identity"
    del node.input[1:]


def insert(
    before: str, *nodes: tuple[str, list[str], str], constants: dict[str, int] | None = None
) -> Callable[[GraphProto], None]:
    """Insert nodes before the node that gives ``before``; ``constants`` become initializers."""

    def edit(graph: GraphProto) -> None:
        at = next(i for i, node in enumerate(graph.node) if before in node.output)
        for number, (op_type, inputs, output) in enumerate(nodes):
            graph.node.insert(at + number, helper.make_node(op_type, inputs, [output]))
        for name, value in (constants or {}).items():
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))

    return edit


def shift_positions(copy: Copy) -> None:
    """Add 1 to every position but the last."""

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
    """Count positions over the padding too, by using the positions that the mask compares."""

    def edit(graph: GraphProto) -> None:
        queries = [node.output[0] for node in graph.node if node.op_type == "Range"][-1]
        insert("wpe", ("Shape", ["input_ids"], "ids_shape"), ("Expand", [queries, "ids_shape"], "positions"))(graph)
        replace_input(graph, "wpe", "position_ids", "positions")

    copy.edit_graph(edit)


def replace_input(graph: GraphProto, output: str, old: str, new: str) -> None:
    """Make the node of ``output`` read another value."""
    node = next(node for node in graph.node if output in node.output)
    node.input[:] = [new if name == old else name for name in node.input]


def look_ahead(copy: Copy) -> None:
    """Let every position see the one after it."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LessOrEqual")
        output = node.output[0]
        insert(output, ("Add", [node.input[1], "shift"], "ahead"), constants={"shift": 1})(graph)
        replace_input(graph, output, node.input[1], "ahead")

    copy.edit_graph(edit)


def forget_padding(copy: Copy) -> None:
    """Drop the padding from the mask; it stays causal."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "And")
        causal = next(node.output[0] for node in graph.node if node.op_type == "LessOrEqual")
        node.input[:] = [causal, causal]

    copy.edit_graph(edit)


def head_reads(name: str) -> Apply:
    """Make the output head use another initializer."""

    def edit(graph: GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Gemm")
        node.input[1] = name

    return lambda copy: copy.edit_graph(edit)


def when(condition: Callable[[GraphProto], str], wrong: Callable[[GraphProto, str], None]) -> Apply:
    """Make the graph wrong only if a condition holds. The condition is a boolean value that is added to the graph."""
    return lambda copy: copy.edit_graph(lambda graph: wrong(graph, condition(graph)))


def kept_is(number: int) -> Callable[[GraphProto], str]:
    """Return a condition that holds if this many logits are asked for."""

    def condition(graph: GraphProto) -> str:
        return _compared(graph, "Equal", "num_logits_to_keep", number)

    return condition


def size_is(op_type: str, axis: int, number: int) -> Callable[[GraphProto], str]:
    """Return a condition that holds if ``op_type`` does, between a dimension of ``input_ids`` and a number."""

    def condition(graph: GraphProto) -> str:
        shape = helper.make_node("Shape", ["input_ids"], ["ids_size"], start=axis, end=axis + 1)
        graph.node.insert(0, shape)
        return _compared(graph, op_type, "ids_size", number, at=1)

    return condition


def _compared(graph: GraphProto, op_type: str, value: str, number: int, at: int = 0) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), "seeded_number"))
    graph.node.insert(at, helper.make_node(op_type, [value, "seeded_number"], ["seeded_condition"]))
    return "seeded_condition"


def larger_logits(graph: GraphProto, condition: str) -> None:
    """Make the logits a tenth too large if the condition holds."""
    node = next(node for node in graph.node if "logits" in node.output)
    node.output[:] = ["right_logits"]
    graph.initializer.append(numpy_helper.from_array(np.array(1.1, np.float32), "seeded_factor"))
    graph.node.append(helper.make_node("Mul", ["right_logits", "seeded_factor"], ["wrong_logits"]))
    graph.node.append(helper.make_node("Where", [condition, "wrong_logits", "right_logits"], ["logits"]))


def no_padding(graph: GraphProto, condition: str) -> None:
    """Treat padding as text if the condition holds."""
    node = next(node for node in graph.node if node.op_type == "And")
    causal = next(node.output[0] for node in graph.node if node.op_type == "LessOrEqual")
    at = list(graph.node).index(node)
    padding = next(name for name in node.input if name != causal)
    graph.node.insert(at, helper.make_node("Or", [padding, condition], ["seen"]))
    replace_input(graph, node.output[0], padding, "seen")


# --- in the source ----------------------------------------------------------------------------------------------------


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


def scaled_matrix(name: str, change: float) -> Apply:
    """Multiply a whole matrix by 1 + ``change``."""
    return lambda copy: copy.edit_weight(name, lambda weight: weight * np.float32(1 + change))
