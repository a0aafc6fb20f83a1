"""Record taps: the output of every operation in the truth, in Hugging Face and in the shipped graph.

A tap has the name of the module in ``reference/`` and of the value in the graph, such as ``h.3.mlp.act``. Its shape is
``[batch, tokens, width]``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converter import onnx_file
from converter.graph.outputs import BEFORE, operations
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case
from converter.parity.legs.huggingface import HuggingFace, answer, knows_padding, step_of
from converter.parity.legs.truth import stream
from converter.parity.legs.widen import OpenedGraph, expose, graph_session, widened_session
from converter.parity.verdict.metrics import FLOAT32_EPSILON
from converter.weights.ledger import Ledger
from reference.config import GPT2Config
from reference.head import HEADS, LM

Taps = dict[str, np.ndarray]

tap_names = operations

# A single operation of ONNX Runtime may be this many times as far from the truth as Hugging Face's. Two ways to compute
# one operation vary more than the logits, where much averages out.
TAP_LIMIT = 16.0

# The limit of the widened graph, the same as for logits.
TAP_FLOAT64_LIMIT = 1e-6

ANY_TOKEN = 0

TAPS_BYTES = 2**30  # the most bytes of a graph's taps at a time; the case is run again for the rest


def module_of(tap: str, head: str) -> str:
    """Return the name of the module whose output is a tap."""
    return HEADS[head].modules.get(tap, tap)


def layer_of(tap: str) -> int | None:
    """Return the layer of a tap; None if it is in no layer."""
    return int(tap.split(".")[1]) if tap.startswith("h.") else None


class Recorder:
    """Records taps chunk by chunk. Of a long case it keeps only the positions that are compared."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def __call__(self, name: str, value: Tensor) -> None:
        """Record one tap."""
        whole = name.endswith((".attn.k", ".attn.v"))  # attention needs all positions
        self.parts[name].append(np.array((value if whole else self.case.kept(value)).double().numpy()))

    def with_thirds(self, name: str, value: Tensor) -> None:
        """Record one tap. For the projection to q, k and v also record its thirds, which torch does not name."""
        self(name, value)
        if name.endswith(".attn.c_attn"):
            for part, third in zip("qkv", value.chunk(3, dim=-1), strict=True):
                self(f"{name.removesuffix('c_attn')}{part}", third)

    def taps(self) -> Taps:
        """Return the taps, with their chunks put together."""
        return {name: np.concatenate(parts, axis=1) for name, parts in self.parts.items()}


def truth_taps(ledger: Ledger, case: Case) -> Taps:
    """Return the taps of the from-scratch reference in float64."""
    record, config = Recorder(case), ledger.config
    taps = {module_of(tap, config.head): tap for tap in tap_names(config)}

    def observe(path: str, value: Tensor) -> None:
        if path in taps:
            record.with_thirds(taps[path], value)

    stream(ledger.config, ledger.weights, [case], observe)
    return record.taps()


def huggingface_taps(huggingface: HuggingFace, case: Case, dtype: torch.dtype) -> Taps:
    """Return the taps of transformers, recorded by hooks on its modules."""
    model, head, record = huggingface.model(dtype, "eager"), huggingface.head, Recorder(case)
    handles = [*_hooks(model, record), *_head_hooks(model, head, case, record)]
    padding = model.config.pad_token_id
    if head != LM and not knows_padding(model):
        model.config.pad_token_id = ANY_TOKEN  # else a batch goes row by row; the result is not used
    try:
        leg = partial(legs.run, step_of(model)) if head == LM else partial(answer, model, head)
        leg(case)
    finally:
        model.config.pad_token_id = padding
        for handle in handles:
            handle.remove()
    return record.taps()


def _head_hooks(model: Any, head: str, case: Case, record: Recorder) -> Iterator[Any]:
    """Hook the modules after the blocks; yields the handles.

    The heads of transformers see all positions; only the one that answers is recorded.
    """

    def picked(value: Tensor) -> Tensor:
        rows = value.reshape(len(case.input_ids), -1, value.shape[-1])
        if case.last is None or rows.shape[1] == 1:
            return rows
        return rows[torch.arange(len(rows)), torch.tensor(case.last)][:, None]

    def output(tap: str) -> Callable[..., None]:
        return lambda module, args, out: record(tap, picked(out))

    body = model.base_model
    if HEADS[head].pools:
        yield body.ln_f.register_forward_pre_hook(lambda module, args: record("pool", picked(args[0])))
    for tap in (tap for tap in HEADS[head].taps if tap != "pool"):
        path = module_of(tap, head)
        yield (body if path == "ln_f" else model).get_submodule(path).register_forward_hook(output(tap))


def _hooks(model: Any, record: Recorder) -> Iterator[Any]:
    def output(name: str) -> Callable[..., None]:
        return lambda module, args, out: record.with_thirds(name, out[0] if isinstance(out, tuple) else out)

    def taken_in(name: str) -> Callable[..., None]:
        return lambda module, args: record(name, args[0])

    body = model.base_model
    for name in BEFORE:
        yield body.get_submodule(name).register_forward_hook(output(name))
    for i, block in enumerate(body.h):
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj"):
            yield block.get_submodule(name).register_forward_hook(output(f"h.{i}.{name}"))
        # transformers has no module for these; the input of the next module is recorded.
        yield block.attn.c_proj.register_forward_pre_hook(taken_in(f"h.{i}.attn.sdpa"))
        yield block.ln_2.register_forward_pre_hook(taken_in(f"h.{i}.attn_residual"))
        yield block.register_forward_hook(output(f"h.{i}.mlp_residual"))


def graph_taps(file: Path, config: GPT2Config, case: Case, float64: bool) -> Taps:
    """Return the taps of the graph in ``file``. They are made outputs of a copy in memory."""
    nodes = onnx_file.read(file).graph.node
    held = {name for node in nodes for name in node.output}
    wanted = [name for name in tap_names(config) if name in held]
    edit = partial(expose, wanted)
    opened = widened_session(file, edit, config) if float64 else graph_session(file, edit)
    taps: Taps = {}
    for names in _groups(wanted, config, case):
        record = Recorder(case)
        legs.run(_recording_step(opened, config, names, record, np.float64 if float64 else np.float32), case)
        taps |= record.taps()
    return taps


def _groups(names: list[str], config: GPT2Config, case: Case) -> Iterator[list[str]]:
    """Return the taps in groups that fit into memory."""
    width = 8 * case.input_ids.size * max(config.inner_dim, 3 * config.n_embd)  # of the widest tap except the logits
    size = max(1, TAPS_BYTES // width)
    return (names[at : at + size] for at in range(0, len(names), size))


def _recording_step(
    opened: OpenedGraph, config: GPT2Config, names: list[str], record: Recorder, dtype: Any
) -> legs.Step:
    """Return a step of a graph that records the values of ``names``."""
    fed = legs.feeder(opened, config, names, dtype)

    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        values, longer = fed(ids, mask, positions, cache, keep)
        for name, value in zip(names, values, strict=True):
            record(name, torch.from_numpy(np.ascontiguousarray(value)))
        return ids, longer

    return step


@dataclass(frozen=True)
class TapReport:
    """The RMS errors of one operation, as shares of the RMS of its right output.

    Attributes:
        name, layer: the tap, and its layer.
        onnx: the shipped graph's in ONNX Runtime; infinite if the output is not finite.
        onnx_float64: the shipped graph's when it is widened to float64; NaN if it cannot be.
        huggingface: Hugging Face's in float32.
        largest: the largest absolute value of the truth, which float16 must hold.
    """

    name: str
    layer: int | None
    onnx: float
    onnx_float64: float
    huggingface: float
    largest: float

    @property
    def diverges(self) -> bool:
        """Tell whether the graph's error is larger here than rounding explains."""
        if self.onnx_float64 > TAP_FLOAT64_LIMIT:
            return True
        return not self.onnx <= TAP_LIMIT * max(self.huggingface, FLOAT32_EPSILON)


@dataclass(frozen=True)
class Localisation:
    """How the error grows through the model.

    Attributes:
        case: the name of the case that was fed.
        first: the first operation that diverges; empty if there is none.
        missing: the taps that the graph has no value for.
        taps: every operation, in the order of the data flow.
    """

    case: str
    first: str
    missing: tuple[str, ...]
    taps: tuple[TapReport, ...]


def localise(
    order: list[str], case: Case, truth: Taps, onnx: Taps, onnx_float64: Taps, huggingface: Taps
) -> Localisation:
    """Compare all taps of one case, in the given order; returns how the error grows."""
    reports = []
    for name in (name for name in order if name in truth and name in onnx):
        true = truth[name]
        real = case.real_of(true.shape[1])
        of = partial(share, true[real], real)
        reports.append(
            TapReport(
                name=name,
                layer=layer_of(name),
                onnx=of(onnx[name]),
                onnx_float64=of(onnx_float64[name]),
                huggingface=of(huggingface[name]),
                largest=float(np.abs(true[real]).max()),
            )
        )
    first = next((tap.name for tap in reports if tap.diverges), "")
    return Localisation(case.name, first, tuple(name for name in order if name not in onnx), tuple(reports))


def share(true: np.ndarray, real: np.ndarray, found: np.ndarray) -> float:
    """Return the RMS of the difference divided by that of the truth; infinite if they cannot be compared."""
    if found.shape[:2] != real.shape or found.shape[-1] != true.shape[-1]:
        return math.inf
    difference = found[real] - true
    if not np.isfinite(difference).all():
        return math.inf
    size = math.sqrt(float((true**2).mean()))
    return math.sqrt(float((difference**2).mean())) / max(size, np.finfo(np.float64).tiny)
