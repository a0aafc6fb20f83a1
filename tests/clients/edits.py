"""Mistakes in exports of others, made in the finished files of real exporters: one row for each."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.clients.surgery import Nodes, Surgery, Written

Change = Callable[[Surgery], None]

HIDDEN = -1e9  # a score that no probability comes from


@dataclass(frozen=True)
class Edit:
    """One mistake.

    Attributes:
        kind: what is wrong, for the table.
        change: makes it.
        where: the operation or the weight that a report should name; several words if it may name one or the other.
        on: the exports in which it is made, by their names in ``exports.py``.
        shown: whether some case can show it. What none can is said in a note.
        faint: whether it is so small that it is first seen where others have added to it.
    """

    kind: str
    change: Change
    where: tuple[str, ...]
    on: tuple[str, ...] = ("torch",)
    shown: bool = True
    faint: bool = False


# --- what takes the place of a value ----------------------------------------------------------------------------------


def times(factor: Any) -> Written:
    return lambda write, x: write.Mul(x, factor)


def plus(term: Any) -> Written:
    return lambda write, x: write.Add(x, term)


def clipped(low: float, high: float) -> Written:
    return lambda write, x: write.Clip(x, np.float32(low), np.float32(high))


def gathered(order: list[int], axis: int) -> Written:
    return lambda write, x: write.Gather(x, np.array(order), axis=axis)


def cast(there: int, back: int = TensorProto.FLOAT) -> Written:
    return lambda write, x: write.Cast(write.Cast(x, to=there), to=back)


def where(told: Callable[[Nodes, str], str], other: Written) -> Written:
    """Something else, if something holds."""
    return lambda write, x: write.Where(told(write, x), other(write, x), x)


def size_is(axis: int, compare: str, number: int) -> Callable[[Nodes, str], str]:
    return lambda write, x: write.node(compare, write.length(x, axis), np.array(number))


def columns(write: Nodes, x: str) -> tuple[str, str]:
    """The column of each slot, and of the token of each row, in scores ``[…, tokens, slots]``."""
    tokens, slots = write.length(x, 2), write.length(x, 3)
    column = write.Range(np.array(0), slots, np.array(1))
    own = write.Range(write.Sub(slots, tokens), slots, np.array(1))
    return column, write.Unsqueeze(own, [1])


def window(size: int) -> Written:
    """No token looks further back than so many."""

    def write_window(write: Nodes, x: str) -> str:
        column, own = columns(write, x)
        return write.Where(write.Less(column, write.Sub(own, np.array(size))), HIDDEN, x)

    return write_window


def sees_next(write: Nodes, x: str) -> str:
    """Each token sees the one after it, with a score of 0."""
    column, own = columns(write, x)
    return write.Where(write.Equal(column, write.Add(own, np.array(1))), 0.0, x)


def hides_itself(write: Nodes, x: str) -> str:
    """Each token but the first sees only those before it."""
    column, own = columns(write, x)
    itself = write.And(write.Equal(column, own), write.Greater(own, np.array(0)))
    return write.Where(itself, HIDDEN, x)


def without_padding_mask(write: Nodes, x: str) -> str:
    """What is hidden in all rows of tokens is seen again: columns before a token that are hidden are padding."""
    column, own = columns(write, x)
    hidden = write.And(write.Less(x, -1e4), write.LessOrEqual(column, own))
    return write.Where(hidden, 0.0, x)


def soft_mask(write: Nodes, x: str) -> str:
    """What is hidden is hidden by a small number only."""
    return write.Max(x, -8.0)


# --- edits of a part of the model -------------------------------------------------------------------------------------


def scores(written: Written, layer: int = 1) -> Change:
    return lambda g: g.feed(g.softmax(layer).input[0], written, g.softmax(layer))


def probabilities(written: Written, layer: int = 1) -> Change:
    return lambda g: g.change(g.softmax(layer).output[0], written)


def values(written: Written, layer: int = 1) -> Change:
    return lambda g: g.feed(g.context(layer).input[1], written, g.context(layer))


def context(written: Written, layer: int = 1) -> Change:
    return lambda g: g.change(g.context(layer).output[0], written)


def activated(written: Written, layer: int = 1) -> Change:
    return lambda g: g.feed(g.mlp(layer)[1].input[0], written, g.mlp(layer)[1])


def normed(written: Written, at: int) -> Change:
    return lambda g: g.change(g.norm(at).output[0], written)


def logits(written: Written) -> Change:
    return lambda g: g.give(g.logits, written)


def token_ids(written: Written) -> Change:
    return lambda g: g.feed("input_ids", written)


def positions(written: Written) -> Change:
    return lambda g: g.feed(
        g.embedding(g.config["n_positions"]).input[1], written, g.embedding(g.config["n_positions"])
    )


def looked_up(written: Written, rows: str = "vocab_size") -> Change:
    return lambda g: g.change(g.embedding(g.config[rows]).output[0], written)


def past(written: Written, at: int = 2) -> Change:
    def change(g: Surgery) -> None:
        g.feed([value.name for value in g.graph.input if "past" in value.name][at], written)

    return change


def present(written: Written, at: int = 2) -> Change:
    return lambda g: g.give(g.graph.output[1 + at].name, written)


def attribute(node: Callable[[Surgery], onnx.NodeProto], **values: Any) -> Change:
    def change(g: Surgery) -> None:
        found = node(g)
        kept = [each for each in found.attribute if each.name not in values]
        del found.attribute[:]
        found.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])

    return change


def swapped_outputs(first: int, second: int) -> Change:
    def change(g: Surgery) -> None:
        names = [g.graph.output[1 + at].name for at in (first, second)]
        for name in names:
            g.give(name, lambda write, x: write.Identity(x))
        identities = [g.maker(g.maker(name).input[0]) for name in names]
        one, other = (identity.input[0] for identity in identities)
        identities[0].input[0], identities[1].input[0] = other, one

    return change


def swapped_inputs(node: Callable[[Surgery], onnx.NodeProto], first: int, second: int) -> Change:
    def change(g: Surgery) -> None:
        found = node(g)
        found.input[first], found.input[second] = found.input[second], found.input[first]

    return change


def first_residual_doubled(g: Surgery) -> None:
    node = g.residual(1)
    first = node.input[0]
    g.change(node.output[0], lambda write, x: write.Add(x, first))


def residual_dropped(g: Surgery) -> None:
    node = g.residual(1)
    branch = next(name for name in node.input if name not in g.norm(2).input)
    node.op_type, node.input[:] = "Identity", [branch]


def norms_exchanged(g: Surgery) -> None:
    first, second = g.norm(2), g.norm(3)
    for at in (1, 2):
        first.input[at], second.input[at] = second.input[at], first.input[at]


def final_norm_skipped(g: Surgery) -> None:
    node = g.norm(-1)
    x = node.input[0]
    g.change(node.output[0], lambda write, was: write.Identity(x))


def norm_spelled(variance: Callable[[Nodes, str], str]) -> Change:
    """The second norm of a layer, written out with another variance."""

    def change(g: Surgery) -> None:
        node = g.norm(3)
        x, weight, bias = node.input

        def written(write: Nodes, was: str) -> str:
            centred = write.Sub(x, write.ReduceMean(x, [-1], keepdims=1))
            return write.Add(write.Mul(write.Div(centred, variance(write, centred)), weight), bias)

        g.change(node.output[0], written)

    return change


def _mean_square(write: Nodes, x: str) -> str:
    return write.ReduceMean(write.Mul(x, x), [-1], keepdims=1)


def unbiased(write: Nodes, x: str) -> str:
    size = 24
    return write.Sqrt(write.Add(write.Mul(_mean_square(write, x), size / (size - 1)), 1e-5))


def outside(write: Nodes, x: str) -> str:
    return write.Add(write.Sqrt(_mean_square(write, x)), 1e-3)


def root_mean_square(g: Surgery) -> None:
    """The second norm of a layer, without the mean taken away."""
    node = g.norm(3)
    x, weight, bias = node.input

    def written(write: Nodes, was: str) -> str:
        root = write.Sqrt(write.Add(_mean_square(write, x), 1e-5))
        return write.Add(write.Mul(write.Div(x, root), weight), bias)

    g.change(node.output[0], written)


# --- edits of weights -------------------------------------------------------------------------------------------------


def numbers(shape: tuple[str, ...], changed: Callable[[np.ndarray], None], at: int = 0) -> Change:
    """Change the numbers of a weight that has these dimensions."""
    return lambda g: g.numbers(g.of_shape(*(g.config[name] for name in shape))[at], changed)


def bias_of(norm: int, changed: Callable[[np.ndarray], None], at: int = 2) -> Change:
    return lambda g: g.numbers(g.tensor(g.norm(norm).input[at]), changed)


def one_more(array: np.ndarray) -> None:
    array.reshape(-1)[7] += np.float32(1e-3)


def one_bit(array: np.ndarray) -> None:
    flat = array.reshape(-1)
    [bits] = struct.unpack("<I", struct.pack("<f", flat[11]))
    [flat[11]] = struct.unpack("<f", struct.pack("<I", bits ^ 1))


def rows_swapped(first: int, second: int) -> Callable[[np.ndarray], None]:
    def changed(array: np.ndarray) -> None:
        array[[first, second]] = array[[second, first]]

    return changed


def negated(array: np.ndarray) -> None:
    array.reshape(-1)[3] *= -1


def zeroed(array: np.ndarray) -> None:
    array[:] = 0


def one_row_zeroed(array: np.ndarray) -> None:
    array[-1] = 0


def not_a_number(array: np.ndarray) -> None:
    array[-1, 0] = np.nan


def another(array: np.ndarray) -> None:
    array[:] = np.random.default_rng(1).normal(size=array.shape, scale=float(array.std()))


def halved_precision(array: np.ndarray) -> None:
    array[:] = array.astype(np.float16)


def layers_exchanged(shape: tuple[str, ...]) -> Change:
    """Two layers have each other's weight."""

    def change(g: Surgery) -> None:
        first, second = g.of_shape(*(g.config[name] for name in shape))[:2]
        first.name, second.name = second.name, first.name

    return change


def queries_for_keys(g: Surgery) -> None:
    """The columns of queries and keys are exchanged in a weight."""
    width = g.config["n_embd"]

    def changed(array: np.ndarray) -> None:
        parts = [array[..., :width].copy(), array[..., width : 2 * width].copy()]
        array[..., :width], array[..., width : 2 * width] = parts[1], parts[0]

    g.numbers(g.of_shape(width, 3 * width)[1], changed)


# --- edits that show in some cases only -------------------------------------------------------------------------------


def for_token(token: int) -> Written:
    """One token is taken for another."""
    return lambda write, x: write.Where(write.Equal(x, np.array(token)), np.array(0), x)


def for_tokens_of_a_kind(write: Nodes, x: str) -> str:
    """Tokens whose number leaves a remainder are taken for others: 19, 38 and 57."""
    odd = write.Equal(write.Sub(x, write.Mul(write.Div(x, np.array(19)), np.array(19))), np.array(0))
    return write.Where(write.And(odd, write.Greater(x, np.array(30))), np.array(3), x)


def wrong_if(told: Callable[[Nodes, str], str]) -> Change:
    """The logits are a tenth too large, if something about them holds."""
    return logits(where(told, times(1.1)))


def past_is(compare: str, number: int) -> Change:
    """The logits are too large, if the cache holds so many tokens."""

    def change(g: Surgery) -> None:
        name = g.input("past")

        def told(write: Nodes, x: str) -> str:
            return write.node(compare, write.length(name, 2), np.array(number))

        g.give(g.logits, where(told, times(1.1)))

    return change


def row_of_another(write: Nodes, x: str) -> str:
    """The second row gets the logits of the first."""
    rows = write.Range(np.array(0), write.length(x, 0), np.array(1))
    return write.Gather(x, write.Where(write.Equal(rows, np.array(1)), np.array(0), rows), axis=0)


def shifted(write: Nodes, x: str) -> str:
    """Every position gets the logits of the one before it."""
    length = write.length(x, 1)
    before = write.Sub(write.Range(np.array(0), length, np.array(1)), np.array(1))
    return write.Gather(x, write.Max(before, np.array(0)), axis=1)


def suppressed(token: int) -> Written:
    row = np.zeros(61, np.float32)
    row[token] = -1e4
    return plus(row)


def dropout(write: Nodes, x: str) -> str:
    return write.Dropout(x, np.float32(0.1), np.array(True), seed=3)


def seldom_noise(write: Nodes, x: str) -> str:
    """A hundred-millionth of noise."""
    return write.Add(x, write.Mul(write.RandomNormalLike(x, seed=1.0), 1e-12))


def if_of_half(condition: Callable[[Nodes, Surgery], str]) -> Change:
    """An If of which one branch makes the logits larger."""

    def change(g: Surgery) -> None:
        name = g.logits
        dtype = TensorProto.FLOAT
        one = numpy_helper.from_array(np.array(1.1, np.float32))

        def branch(which: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
            value = helper.make_tensor_value_info(f"{which}/out", dtype, None)
            return helper.make_graph(list(nodes), which, [], [value])

        def written(write: Nodes, x: str) -> str:
            right = branch("right", helper.make_node("Identity", [x], ["right/out"]))
            wrong = branch(
                "wrong",
                helper.make_node("Constant", [], ["wrong/factor"], value=one),
                helper.make_node("Mul", [x, "wrong/factor"], ["wrong/out"]),
            )
            return write.If(condition(write, g), then_branch=wrong, else_branch=right)

        g.give(name, written)

    return change


def activation(function: Callable[[Nodes, str], str]) -> Change:
    """Another activation in the second layer, of what the first product of its MLP gives."""

    def change(g: Surgery) -> None:
        first, second = g.mlp(1)
        given = first.output[0]
        if first.op_type == "MatMul":
            given = next(node for node in g.users(given) if node.op_type == "Add").output[0]

        def written(write: Nodes, was: str) -> str:
            done = function(write, given)
            return write.Reshape(done, write.Shape(was))

        g.feed(second.input[0], written, second)

    return change


def erf_gelu(write: Nodes, x: str) -> str:
    return write.Mul(write.Mul(x, 0.5), write.Add(write.Erf(write.Mul(x, np.sqrt(0.5))), 1.0))


def tanh_gelu(cubic: float = 0.044715, root: float = np.sqrt(2 / np.pi)) -> Callable[[Nodes, str], str]:
    def gelu(write: Nodes, x: str) -> str:
        inner = write.Add(x, write.Mul(write.Mul(write.Mul(x, x), x), cubic))
        return write.Mul(write.Mul(x, 0.5), write.Add(write.Tanh(write.Mul(inner, root)), 1.0))

    return gelu


def quick_gelu(write: Nodes, x: str) -> str:
    return write.Mul(x, write.Sigmoid(write.Mul(x, 1.702)))


SDPA, ACT, SECOND_NORM = ("h.1.attn.sdpa",), ("h.1.mlp.act",), ("h.1.ln_2",)
SUM = ("h.1.attn_residual", "h.1.ln_2")  # the right sum may still be there, for something else
TWO = ("torch", "optimum")

EDITS: dict[str, Edit] = {
    # attention
    "the next token is seen in one layer": Edit("mask", scores(sees_next), SDPA, TWO),
    "a token does not see itself": Edit("mask", scores(hides_itself), SDPA),
    "a window of 16 tokens": Edit("mask", scores(window(16)), SDPA, TWO),
    "a window of 37 tokens": Edit("mask", scores(window(37)), SDPA),
    "padding is seen in one layer": Edit("mask", scores(without_padding_mask), SDPA, TWO),
    "what is hidden shows through": Edit("mask", scores(soft_mask), SDPA),
    "1/d for 1/√d": Edit("attention", scores(times(1 / np.sqrt(8))), SDPA, TWO),
    "scores a thousandth too large": Edit("attention", scores(times(1.001)), SDPA),
    "scores clipped at 3": Edit("attention", scores(lambda write, x: write.Min(x, 3.0)), SDPA),
    "softmax over tokens": Edit("attention", attribute(lambda g: g.softmax(1), axis=2), SDPA),
    "probabilities of less than 1": Edit("attention", probabilities(times(0.98)), ("h.1.attn.c_proj.weight is 0.98",)),
    "heads rolled": Edit("attention", values(gathered([1, 2, 0], 1)), SDPA, TWO),
    "one head without values": Edit("attention", values(times(np.array([1.0, 1, 0]).reshape(3, 1, 1))), SDPA),
    "heads joined in another order": Edit("attention", context(gathered([2, 1, 0], 1)), ("h.1.attn",)),
    "probabilities in float16": Edit("types", probabilities(cast(TensorProto.FLOAT16)), SDPA),
    "dropout of a tenth": Edit("chance", probabilities(dropout), SDPA),
    # cache
    "the past after the present": Edit(
        "cache", swapped_inputs(lambda g: [n for n in g.nodes("Concat") if any("past" in i for i in n.input)][2], 0, 1),
        SDPA, TWO,
    ),
    "a layer is given the cache of another": Edit("cache", swapped_outputs(0, 2), ("h.0.attn.sdpa",), TWO),
    "keys are given as values": Edit("cache", swapped_outputs(2, 3), ("h.1.attn",), TWO),
    "the cache loses its first token": Edit(
        "cache", present(lambda write, x: write.Slice(x, [1], [99], [2])), ("cannot be run", "h.1.attn.sdpa",),
    ),
    "the cache is kept in float16": Edit("cache", present(cast(TensorProto.FLOAT16)), SDPA, faint=True),
    "the past is a thousandth larger": Edit("cache", past(times(1.001)), SDPA),
    "the first token of the past is another": Edit(
        "cache", past(lambda write, x: write.Where(write.Equal(write.Unsqueeze(write.Range(
            np.array(0), write.length(x, 2), np.array(1)), [1]), np.array(0)), 0.0, x)), SDPA,
    ),
    # mlp
    "gelu in one layer": Edit("activation", activation(erf_gelu), ACT, TWO),
    "quick_gelu in one layer": Edit("activation", activation(quick_gelu), ACT),
    "0.0447 in gelu": Edit("activation", activation(tanh_gelu(0.0447)), ACT),
    "0.8 in gelu": Edit("activation", activation(tanh_gelu(root=0.8)), ACT),
    "activations clipped at 2": Edit("activation", activated(lambda write, x: write.Min(x, 2.0)), ("h.1.mlp.c_proj",)),
    "activations in bfloat16": Edit("types", activated(cast(TensorProto.BFLOAT16)), ("h.1.mlp.c_proj", "h.1.mlp.act")),
    # residual stream
    "a residual doubled": Edit("residual", first_residual_doubled, SUM, TWO),
    "a residual dropped": Edit("residual", residual_dropped, SUM),
    "a residual scaled, which its norm undoes": Edit(
        "residual", lambda g: g.change(g.residual(1).output[0], times(1.01)), ("h.1.mlp_residual",),
    ),
    # layer norm
    "no epsilon": Edit("norm", attribute(lambda g: g.norm(3), epsilon=0.0), SECOND_NORM, TWO),
    "an epsilon of 1e-6": Edit("norm", attribute(lambda g: g.norm(3), epsilon=1e-6), SECOND_NORM),
    "an unbiased variance": Edit("norm", norm_spelled(unbiased), SECOND_NORM),
    "epsilon outside of the root": Edit("norm", norm_spelled(outside), SECOND_NORM),
    "the mean is left": Edit("norm", root_mean_square, SECOND_NORM),
    "norms of a layer exchanged": Edit("norm", norms_exchanged, ("h.1.ln_1",)),
    "weight and bias of a norm exchanged": Edit("norm", swapped_inputs(lambda g: g.norm(3), 1, 2), SECOND_NORM),
    "no last norm": Edit("norm", final_norm_skipped, ("ln_f", "logits"), TWO),
    # embedding
    "positions clipped at 30": Edit("positions", positions(lambda write, x: write.Min(x, np.array(30))), ("wpe",), TWO),
    "positions modulo 32": Edit("positions", positions(lambda write, x: write.Mod(x, np.array(32))), ("wpe",)),
    "positions from 1": Edit(
        "positions", positions(lambda write, x: write.Min(write.Add(x, np.array(1)), np.array(39))), ("wpe",), TWO
    ),
    "one position for another": Edit("positions", positions(for_token(13)), ("wpe",)),
    "positions added twice": Edit("positions", looked_up(times(2.0), "n_positions"), ("wpe", "drop"), TWO),
    "embeddings scaled": Edit("embedding", looked_up(times(np.sqrt(24))), ("wte", "drop")),
    "one token for another": Edit("one token", token_ids(for_token(57)), ("wte", "drop"), TWO),
    "some tokens for others": Edit("one token", token_ids(for_tokens_of_a_kind), ("wte", "drop"), TWO),
    "a token of the padding is always 0": Edit("one token", token_ids(for_token(1)), ("wte", "drop")),
    # weights
    "one number changed": Edit("weights", numbers(("n_embd", "n_inner"), one_more, 2), ("h.1.mlp.c_fc.weight",), TWO),
    "one bit flipped": Edit("weights", numbers(("n_embd", "n_embd"), one_bit, 1), ("h.1.attn.c_proj.weight",), TWO),
    "one sign changed": Edit("weights", bias_of(3, negated), ("h.1.ln_2.bias",)),
    "two rows of the embedding swapped": Edit(
        "weights", numbers(("vocab_size", "n_embd"), rows_swapped(50, 51)), ("wte.weight",), TWO
    ),
    "two positions swapped": Edit("weights", numbers(("n_positions", "n_embd"), rows_swapped(38, 39)), ("wpe.weight",)),
    "a bias of zero": Edit("weights", bias_of(3, zeroed), ("h.1.ln_2.bias",), TWO),
    "the last token's row zero": Edit("weights", numbers(("vocab_size", "n_embd"), one_row_zeroed), ("wte.weight",)),
    "a NaN for the last token": Edit("weights", numbers(("vocab_size", "n_embd"), not_a_number), ("wte.weight",)),
    "a weight of another checkpoint": Edit("weights", numbers(("n_embd", "n_inner"), another), ("c_fc", "c_proj")),
    "one weight rounded to float16": Edit("weights", numbers(("n_embd", "n_embd"), halved_precision), ("attn.c_proj",)),
    "layers have each other's weight": Edit(
        "weights", layers_exchanged(("n_embd", "n_embd")), ("h.0.attn.c_proj",), TWO
    ),
    "queries and keys exchanged": Edit("weights", queries_for_keys, ("h.1.attn.c_attn",), TWO),
    # logits
    "logits of the position before": Edit("logits", logits(shifted), ("logits",), TWO),
    "logits a millionth larger and more": Edit("logits", logits(times(1.00001)), ("logits",)),
    "logits shifted for all tokens": Edit("logits", logits(plus(0.5)), ("logits",), TWO),
    "log-probabilities for logits": Edit("logits", logits(lambda write, x: write.LogSoftmax(x, axis=-1)), ("logits",)),
    "one token suppressed": Edit("logits", logits(suppressed(44)), ("logits",)),
    "logits clipped at 12": Edit("logits", logits(clipped(-12, 12)), ("it bounds values by Clip",), shown=False),
    "logits in float16": Edit("types", logits(cast(TensorProto.FLOAT16)), ("logits",), TWO),
    "noise of a billionth": Edit("chance", logits(seldom_noise), ("random",), TWO),
    # some sizes only
    "wrong for several rows": Edit("some sizes", wrong_if(size_is(0, "Greater", 1)), ("batch",)),
    "the second row is the first": Edit("some sizes", logits(row_of_another), ("batch", "padded", "rows"), TWO),
    "wrong for 4 rows": Edit("some sizes", wrong_if(size_is(0, "Equal", 4)), ("4 rows",), TWO),
    "wrong for more than 40 rows": Edit("some sizes", wrong_if(size_is(0, "Greater", 40)), ("rows",), TWO),
    "wrong for 21 tokens": Edit("some sizes", wrong_if(size_is(1, "Equal", 21)), ("21",), TWO),
    "wrong from 34 tokens on": Edit("some sizes", wrong_if(size_is(1, "Greater", 33)), ("prefill", "34")),
    "wrong with a cache of more than 16": Edit("some sizes", past_is("Greater", 16), ("decode", "17"), TWO),
    "wrong with a cache of 11": Edit("some sizes", past_is("Equal", 11), ("11",), TWO),
    "a branch for 6 rows": Edit(
        "some sizes",
        if_of_half(lambda write, g: write.Equal(write.length("input_ids", 0), np.array(6))), ("6 rows", "branch"), TWO,
    ),
    "a branch for one token": Edit(
        "one token",
        if_of_half(lambda write, g: write.Equal(write.ReduceMax(write.Cast(
            write.Equal("input_ids", np.array(58)), to=TensorProto.INT32), keepdims=0), np.array(1, np.int32))),
        ("token 58", "branch"), TWO,
    ),
}  # fmt: skip
