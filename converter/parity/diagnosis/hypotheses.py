"""Hypotheses about what is wrong with an operation. Each is the same operation with one thing changed.

A guess is a function that takes an operation and yields hypotheses, each with its cause. Where a value can be solved
for (an epsilon, a factor, one changed number), it is solved for from the graph's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from converter.parity.diagnosis.operations import Operation, Operations, Sort, owner_of, short_name
from reference.activations import FUNCTIONS
from reference.model import causal_mask

# The types to which a tensor may have been rounded.
ROUNDINGS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}

# The activations that checkpoints are trained with. They are tried before other names of the same functions.
USUAL_ACTIVATIONS = ("gelu", "gelu_new", "quick_gelu", "relu", "silu")

POSITION_OFFSETS = (1, -1, 2, -2)
ORDERS = ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1))

# Another layer's weights are tried on all positions if they leave at most this share of the error at two positions.
SCREEN = 0.1
PARTS = ("q", "k", "v")

MAX_LABELS = 1024  # a head with more rows is not searched for another order of them
LABELS_SHOWN = 10


@dataclass(frozen=True)
class Cause:
    """What is wrong with an operation.

    Attributes:
        key: the kind of defect, one word that does not change.
        sentence: a sentence that a user can act on; ``{}`` stands for the place.
    """

    key: str
    sentence: str


Hypothesis = tuple[Cause, Operation]
Guess = Callable[[Operation, Operations], Iterator[Hypothesis]]


def changed_weights(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: the weight or the bias is rounded, scaled, or left out."""
    assert op.weight is not None
    weight = f"{_owner(op, given)}.weight"
    for name, dtype in ROUNDINGS.items():
        rounded = op.but(weight=_round(op.weight, dtype), bias=None if op.bias is None else _round(op.bias, dtype))
        yield Cause("rounded", f"{weight} was rounded to {name}"), rounded.but(bias=op.bias)
        if op.bias is not None:
            yield Cause("rounded", f"{weight} and its bias were rounded to {name}"), rounded
            yield Cause("rounded", f"{_owner(op, given)}.bias was rounded to {name}"), rounded.but(weight=op.weight)
    if op.bias is not None:
        yield Cause("bias", f"{_owner(op, given)}.bias is left out"), op.but(bias=torch.zeros_like(op.bias))
    if op.sort in (Sort.LINEAR, Sort.HEAD, Sort.EMBEDDING):
        yield from _scaled(op, weight)


def _scaled(op: Operation, weight: str) -> Iterator[Hypothesis]:
    """Yield: the whole weight is multiplied by a factor, which is solved for."""
    assert op.weight is not None
    base = op.but(weight=torch.zeros_like(op.weight)).compute()
    product = op.compute() - base
    if op.output.shape == product.shape and bool(op.output.isfinite().all()):
        factor = float(((op.output - base) * product).sum() / product.square().sum().clamp(min=1e-300))
        if math.isfinite(factor):
            yield Cause("scaled", f"{weight} is {factor:.9g} times the source's"), op.but(weight=op.weight * factor)


def transposed(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: the weight is transposed."""
    assert op.weight is not None
    shape, owner = op.weight.shape, _owner(op, given)
    cause = Cause("transposed", f"{owner}.weight is transposed: it lies [out, in] where the graph takes [in, out]")
    yield cause, op.but(weight=op.weight.T.reshape(shape))
    if shape[0] != shape[1]:
        yield cause, op.but(weight=op.weight.reshape(shape[::-1]).T)


def other_layers(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: the weights are another layer's. Two positions tell which layer before all are computed."""
    if op.layer is None:
        return
    text = int(op.real.sum(dim=1).argmax())  # the longest
    at = op.real[text].nonzero()[-2:, 0]
    inputs = tuple(x[text, at][None] for x in op.inputs)
    rows = op.but(inputs=inputs, output=op.output[text, at][None], real=op.real[text, at][None])
    for layer in range(given.config.n_layer):
        owner = f"h.{layer}.{short_name(op.tap)}"
        if layer == op.layer:
            continue
        other = {"weight": given.weight(f"{owner}.weight"), "bias": given.weight(f"{owner}.bias")}
        if rows.but(**other).error() <= SCREEN * rows.error():
            yield Cause("layers", f"layer {op.layer} computes with the weights of layer {layer}"), op.but(**other)


def orders(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: q, k and v are in another order, or interleaved for each head or dimension."""
    if op.sort is Sort.LINEAR and not op.tap.endswith("c_attn"):
        return
    for order in ORDERS:
        told = ", ".join(PARTS[at] for at in order)
        cause = Cause("order", f"q, k and v are in another order in {{}}: it computes with {told} in their places")
        yield cause, _reordered(op, partial(_thirds, order=order))
    for unit, axes in (("head", (-2, -3, -1)), ("dimension", (-2, -1, -3))):
        cause = Cause("interleaved", f"q, k and v lie side by side for each {unit} in {{}}, not one after the other")
        if op.sort is not Sort.ATTENTION:
            yield cause, _reordered(op, partial(_interleave, op=op, axes=axes))
            yield cause, _reordered(op, partial(_deinterleave, op=op, axes=axes))


def _thirds(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Reorder q, k and v in ``[…, 3 · n_embd]``."""
    thirds = x.chunk(3, dim=-1)
    return torch.cat([thirds[at] for at in order], dim=-1)


def _interleave(x: Tensor, op: Operation, axes: tuple[int, int, int]) -> Tensor:
    """Reorder the three axes of ``[…, 3 · n_head · head_dim]``."""
    parts = x.unflatten(-1, (3, op.config.n_head, op.config.head_dim))
    lead = tuple(range(parts.dim() - 3))
    return parts.permute(*lead, *(parts.dim() + axis for axis in axes)).flatten(-3)


def _deinterleave(x: Tensor, op: Operation, axes: tuple[int, int, int]) -> Tensor:
    """Undo ``_interleave``."""
    sizes = (3, op.config.n_head, op.config.head_dim)
    parts = x.unflatten(-1, tuple(sizes[axis + 3] for axis in axes))
    lead = tuple(range(parts.dim() - 3))
    back = [axes.index(axis) - 3 for axis in (-3, -2, -1)]
    return parts.permute(*lead, *(parts.dim() + axis for axis in back)).flatten(-3)


def _reordered(op: Operation, change: Callable[[Tensor], Tensor]) -> Operation:
    """Apply ``change`` to the 3 · n_embd columns of an operation on q, k and v."""
    if op.sort is Sort.LINEAR:
        assert op.weight is not None
        return op.but(weight=change(op.weight), bias=None if op.bias is None else change(op.bias))
    if op.sort is Sort.SPLIT:
        return op.but(inputs=(change(op.inputs[0]),))
    return op.but(inputs=change(torch.cat(op.inputs, dim=-1)).chunk(3, dim=-1)) if _alike(op.inputs) else op


def _alike(inputs: tuple[Tensor, ...]) -> bool:
    return all(x.shape == inputs[0].shape for x in inputs)


def epsilons(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: another epsilon, solved for from output − bias = (x − mean) · weight / √(variance + epsilon)."""
    x = op.inputs[0]
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    assert op.weight is not None
    gained = centred * op.weight
    offset = op.output if op.bias is None else op.output - op.bias
    ratio = (offset * gained).sum(dim=-1) / gained.square().sum(dim=-1).clamp(min=1e-300)  # 1/√(variance + epsilon)
    found = float((1 / ratio.square() - variance.squeeze(-1))[op.real].median())
    if math.isfinite(found):
        for epsilon in (float(f"{found:.2g}"), found):
            cause = Cause("epsilon", f"the epsilon in {{}} is {epsilon:.3g}; the source has {op.epsilon:g}")
            yield cause, op.but(epsilon=max(epsilon, 0.0))


def activations(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: another activation of those that a config can name."""
    # Of a summary "linear" comes first: relu does not change scores that are all positive.
    usual = ("linear",) if op.layer is None else USUAL_ACTIVATIONS
    for name in sorted(FUNCTIONS, key=lambda name: name not in usual):
        cause = Cause("activation", f"the activation in {{}} is {name}; the source has {op.activation}")
        yield cause, op.but(activation=name)


def slopes(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: another slope of prelu, solved for."""
    if op.activation == "prelu" and op.weight is not None:
        below = op.inputs[0].clamp(max=0.0)
        yield _element(op, "weight", f"{op.tap}.weight", (0,), _slope(below, op.output - op.compute()))


def scales(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: another factor for q·k."""
    config, layer = op.config, op.layer or 0
    root = config.head_dim**-0.5
    by_layer = config.scale_attn_by_inverse_layer_idx
    told = "is not" if by_layer else "is"
    wanted = "asks for it" if by_layer else "does not"
    inverse = op.scale * (layer + 1) if by_layer else op.scale / (layer + 1)
    missing = op.scale / root if config.scale_attn_weights else op.scale * root
    what = "missing" if config.scale_attn_weights else "there, though the source sets scale_attn_weights to false,"
    by_number = f"attention {told} divided by the layer's number in {{}}; the source's config {wanted}"
    tried = [
        (Cause("scale", f"the attention scale 1/√head_dim is {what} in {{}}"), op.but(scale=missing)),
        (Cause("scale", "the attention scale is applied twice in {}"), op.but(scale=op.scale * root)),
        (Cause("inverse_layer", by_number), op.but(scale=inverse)),
    ]
    # In one layer two of them can be the same number. What the config asks for is then what was forgotten.
    yield from reversed(tried) if by_layer else tried


def masks(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: another attention mask."""
    case = given.case
    padding = torch.tensor(case.attention_mask)
    length = padding.size(1)
    key = torch.arange(length)
    query = key[:, None]
    token = padding[:, None, None, :].bool()
    own = key == query
    begins = torch.cat([torch.full((size,), sum(case.chunks[:i])) for i, size in enumerate(case.chunks)])[:, None]
    yield (
        Cause("mask", "the causal mask in {} is off by one: a position sees the next one"),
        op.but(mask=((key <= query + 1) & token) | own),
    )
    yield (
        Cause("mask", "the causal mask in {} is off by one: a position does not see the one before it"),
        op.but(mask=((key < query - 1) & token) | own),
    )
    yield Cause("mask", "there is no causal mask in {}"), op.but(mask=token.expand(-1, -1, length, -1) | own)
    yield (
        Cause("mask", "padding is not masked in {}"),
        op.but(mask=causal_mask(torch.ones_like(padding), length)),
    )
    yield (
        Cause("mask", "the causal mask in {} does not count the tokens in the cache"),
        op.but(mask=((key <= query - begins) & token) | own),
    )
    yield (
        Cause("mask", "the causal mask in {} does not count the tokens in the cache"),
        op.but(mask=((key <= query - begins) & token) | (key == query - begins)),
    )
    yield Cause("mask", "the first position cannot be seen in {}"), op.but(mask=(op.mask & (key > 0)) | own)  # type: ignore[operator]


def positions(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: other rows of an embedding."""
    assert op.ids is not None
    assert op.weight is not None
    last = len(op.weight) - 1
    for offset in POSITION_OFFSETS:
        cause = Cause("position", f"{op.tap} is read {abs(offset)} row{'s' * (abs(offset) > 1)} too "
                      f"{'far' if offset > 0 else 'early'}")  # fmt: skip
        yield cause, op.but(ids=(op.ids + offset).clamp(0, last))
    if op.tap == "wpe":
        case = given.case
        counted = case.kept(torch.arange(case.input_ids.shape[1])[None]).expand(op.ids.shape)
        yield Cause("position", "positions are counted over the padding too"), op.but(ids=counted.clamp(max=last))
        from_chunk = case.kept(torch.cat([torch.arange(size) for size in case.chunks])[None]).expand(op.ids.shape)
        yield Cause("position", "positions start again at 0 in every chunk"), op.but(ids=from_chunk)
        yield Cause("position", "every token is at position 0"), op.but(ids=torch.zeros_like(op.ids))


def heads(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: the output head uses another matrix, or its own rows in another order."""
    assert op.weight is not None
    own = f"{_owner(op, given)}.weight"
    for name in ("wte.weight", "lm_head.weight", "wpe.weight"):
        other = given.weight(name)
        if name != own and other is not None and other.shape == op.weight.shape:
            yield Cause("head", f"the output head is tied to {name}; the source's is {own}"), op.but(weight=other)
    for shift in (1, -1):
        cause = Cause("head", f"the output head is {own} shifted by {shift} row")
        yield cause, op.but(weight=op.weight.roll(shift, dims=0))
    if 1 < len(op.weight) <= MAX_LABELS and op.output.shape == op.compute().shape:
        yield from _permuted(op, own)


def _permuted(op: Operation, own: str) -> Iterator[Hypothesis]:
    """Yield: the rows are in another order, with or without their biases. For each output the best row is found."""
    assert op.weight is not None
    rows = len(op.weight)
    zeros = torch.zeros(rows, dtype=op.weight.dtype)
    for bias in (zeros,) if op.bias is None else (op.bias, zeros):
        kept = (op.bias if op.bias is not None else zeros) - bias  # the biases that are not reordered
        ours = (op.but(bias=bias).compute())[op.real]
        order = torch.cdist((op.output - kept)[op.real].T, ours.T).argmin(dim=1)
        told = ", ".join(str(int(row)) for row in order[:LABELS_SHOWN]) + (", …" if rows > LABELS_SHOWN else "")
        cause = Cause("head", f"the rows of {own} are in another order: {told}")
        yield cause, op.but(weight=op.weight[order], bias=None if op.bias is None else bias[order] + kept)


def left_out(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: one of the two inputs is not added."""
    for at, name in enumerate(given.inputs_of(op.tap)):
        others = tuple(x for i, x in enumerate(op.inputs) if i != at)
        yield Cause("left_out", f"{name} is not added in {{}}"), op.but(inputs=others)


def single_elements(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: one number of a weight or a bias differs. It is solved for from the one column that differs.

    The difference of column j over the positions is δ for a bias, δ·x[:, i] for element [i, j] of a weight, and
    δ·normalised x[:, j] for the gain of a normalisation.
    """
    difference = (op.output - op.compute())[op.real]
    if not bool(difference.isfinite().all()):
        return
    column = int(difference.abs().amax(dim=0).argmax())
    residue = difference[:, column]
    owner = _owner(op, given)
    if op.bias is not None:
        yield _element(op, "bias", f"{owner}.bias", (column,), float(residue.mean()))
    if op.sort is Sort.NORM and op.weight is not None:
        plain = op.but(weight=torch.ones_like(op.weight), bias=None).compute()[op.real][:, column]
        yield _element(op, "weight", f"{owner}.weight", (column,), _slope(plain, residue))
    if op.sort is Sort.EMBEDDING and op.ids is not None:
        row = int(op.ids[op.real][int(residue.abs().argmax())])
        delta = float(residue[int(residue.abs().argmax())])
        yield _element(op, "weight", f"{owner}.weight", (row, column), delta)
    if op.sort in (Sort.LINEAR, Sort.HEAD):
        x = op.inputs[0][op.real]
        along = (x * residue[:, None]).sum(dim=0).abs() / x.square().sum(dim=0).sqrt().clamp(min=1e-300)
        row = int(along.argmax())
        at = (row, column) if op.sort is Sort.LINEAR else (column, row)
        yield _element(op, "weight", f"{owner}.weight", at, _slope(x[:, row], residue))


def other_places(op: Operation, given: Operations) -> Iterator[Hypothesis]:
    """Yield: another position answers for a text."""
    case = given.case
    assert op.last is not None
    end = torch.full_like(op.last, case.input_ids.shape[1] - 1)
    attended = torch.tensor((case.attention_mask * np.arange(case.input_ids.shape[1])).argmax(axis=1))
    places = {
        "the last position, padding or not,": end,
        "the first position": torch.zeros_like(end),
        "the last token that is not masked, whatever pad_token_id is,": attended,
        "the position before the last token": (op.last - 1).clamp(min=0),
    }
    for what, places_there in places.items():
        yield Cause("position", f"{what} answers for a text"), op.but(last=places_there)


def _element(op: Operation, which: str, name: str, at: tuple[int, ...], delta: float) -> Hypothesis:
    changed = getattr(op, which).clone()
    was = float(changed[at])
    changed[at] += delta
    share = f", {100 * delta / abs(was):+.3g} %" if was else ""
    place = f"[{', '.join(map(str, at))}]"
    sentence = f"{name}{place} is {was + delta:.6g}; the source has {was:.6g}{share}"
    return Cause("element", sentence), op.but(**{which: changed})


def _slope(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / x.square().sum().clamp(min=1e-300))


# The guesses for each sort of operation, the specific ones before the general ones.
GUESSES: dict[Sort, tuple[Guess, ...]] = {
    Sort.EMBEDDING: (positions, changed_weights, single_elements),
    Sort.SUM: (left_out,),
    Sort.NORM: (other_layers, epsilons, changed_weights, single_elements),
    Sort.LINEAR: (other_layers, transposed, orders, changed_weights, single_elements),
    Sort.SPLIT: (orders,),
    Sort.ATTENTION: (scales, masks, orders),
    Sort.ACTIVATION: (activations, slopes),
    Sort.HEAD: (heads, transposed, changed_weights, single_elements),
    Sort.POOL: (other_places,),
}


def _owner(op: Operation, given: Operations) -> str:
    return owner_of(op.tap, given.config)


def _round(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).to(weight.dtype)
