"""Record what a graph returns beside its answer: in the truth, in Hugging Face, and in the graph itself.

Each array is ``[batch, tokens, numbers]``. The probabilities of attention stand at their query, those of all heads side
by side, ``[batch, tokens, n_head · tokens]``; what lies after the last key that a query is fed with is 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from converter.graph.outputs import ATTENTIONS, BEFORE, HIDDEN_STATES, WORDS
from converter.parity.diagnosis.taps import huggingface_taps, module_of
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.truth import stream, to_torch
from converter.parity.legs.widen import OpenedGraph
from converter.weights.ledger import Ledger
from reference.config import GPT2Config

Arrays = dict[str, np.ndarray]


class Parts:
    """The outputs of one case, chunk by chunk."""

    def __init__(self, case: Case) -> None:
        self.tokens = case.input_ids.shape[1]
        self.parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, name: str, value: np.ndarray) -> None:
        """Add an output of a chunk, as a graph returns it."""
        if name.startswith(f"{ATTENTIONS}.") and value.ndim == 4:
            beyond = self.tokens - value.shape[-1]
            value = np.pad(value, ((0, 0), (0, 0), (0, 0), (0, max(beyond, 0))))
            value = np.moveaxis(value, 1, 2).reshape(len(value), value.shape[2], -1)
        self.parts[name].append(np.array(value, np.float64))

    def arrays(self) -> Arrays:
        """Return the outputs with their chunks put together, without those whose chunks have other shapes."""
        return {name: np.concatenate(parts, axis=1) for name, parts in self.parts.items() if _fit(parts)}


def _fit(parts: Sequence[np.ndarray]) -> bool:
    """Tell whether arrays have three dimensions, and differ in the second at most."""
    return all(part.ndim == 3 for part in parts) and len({(part.shape[0], part.shape[2]) for part in parts}) == 1


def truth_inside(ledger: Ledger, case: Case, names: Collection[str]) -> Arrays:
    """Return these outputs of the from-scratch reference in float64. All tokens are fed at once."""
    config, seen = ledger.config, dict[str, Tensor]()
    paths = {name: _path(name, config) for name in names}

    def observe(path: str, value: Tensor) -> None:
        if path in paths.values():
            seen[path] = value

    stream(config, ledger.weights, [case], observe)
    parts = Parts(case)
    for name, path in paths.items():
        value = seen[path]
        if name == f"{HIDDEN_STATES}.{config.n_layer}":  # of all positions, where a head normalises one
            weight, bias = (to_torch(ledger.weights[f"ln_f.{part}"]).double() for part in ("weight", "bias"))
            value = F.layer_norm(value, weight.shape, weight, bias, config.layer_norm_epsilon)
        if path.endswith("c_attn") and name != path:
            value = value.chunk(3, dim=-1)["qkv".index(name[-1])]
        parts.add(name, value.numpy())
    return parts.arrays()


def _path(name: str, config: GPT2Config) -> str:
    """Return the module of the reference whose output a graph's output is, or is made of."""
    word, _, number = name.partition(".")
    if word == ATTENTIONS:
        return f"h.{number}.attn.sdpa.dropout"
    if word == HIDDEN_STATES:
        return f"h.{int(number) - 1}.mlp_residual" if int(number) else BEFORE[-1]
    if name.startswith("h.") and name.endswith((".attn.q", ".attn.k", ".attn.v")):
        return f"{name[:-1]}c_attn"
    return module_of(name, config.head)


def huggingface_inside(huggingface: HuggingFace, case: Case, dtype: torch.dtype, names: Collection[str]) -> Arrays:
    """Return these outputs of transformers: its own tuples, and single operations by hooks."""
    parts = Parts(case)
    if any(name.startswith(WORDS) for name in names):
        for name, value in _tuples(huggingface.model(dtype, "eager").base_model, case):
            if name in names:
                parts.add(name, value)
    operations = set(names) - parts.parts.keys()
    taps: Mapping[str, np.ndarray] = huggingface_taps(huggingface, case, dtype) if operations else {}
    return parts.arrays() | {name: taps[name] for name in operations if name in taps}


@torch.inference_mode()
def _tuples(body: Any, case: Case) -> list[tuple[str, np.ndarray]]:
    """Return ``output_hidden_states`` and ``output_attentions`` of transformers' body, chunk after chunk."""
    found, cache, begin = [], None, 0
    for size in case.chunks:
        end = begin + size
        fed = {"input_ids": case.input_ids[:, begin:end], "attention_mask": case.attention_mask[:, :end]}
        fed["position_ids"] = case.position_ids[:, begin:end]
        out = body(
            **{name: torch.tensor(array) for name, array in fed.items()},
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
            output_attentions=True,
        )
        cache, begin = out.past_key_values, end
        for word in WORDS:
            found += [(f"{word}.{i}", value.numpy()) for i, value in enumerate(out[word])]
    return found


def graph_inside(opened: OpenedGraph, config: GPT2Config, case: Case, names: Sequence[str], dtype: Any) -> Arrays:
    """Return these outputs of a graph.

    Args:
        dtype: the element type of its cache.
    """
    parts, fed = Parts(case), legs.feeder(opened, config, names, dtype)

    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        values, longer = fed(ids, mask, positions, cache, keep)
        for name, value in zip(names, values, strict=True):
            parts.add(name, value)
        return ids, longer

    legs.run(step, case)
    return parts.arrays()
