"""Define the legs: everything that computes logits of the same model, behind one call.

A leg is a function that takes a ``Case`` and returns its logits, ``[batch, compared tokens, vocab_size]``. ``run``
feeds the case chunk by chunk. A leg only defines how one step is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from converter.checkpoint.tensor import LazyTensor
from converter.parity.legs.cases import Case
from converter.parity.legs.heads import STACKED, choices
from converter.parity.legs.truth import to_torch
from converter.parity.legs.widen import OpenedGraph
from converter.runtime.heads import HeadModel
from converter.runtime.session import Model
from reference.config import GPT2Config
from reference.head import HEADS, LM
from reference.heads import CLASSES

Leg = Callable[[Case], np.ndarray]

KNOWN = ("input_ids", "attention_mask", "position_ids")  # inputs that a graph may have besides its cache
PAST, PRESENT = "past_key_values.", "present."  # prefixes of the cache's names


class InterfaceError(Exception):
    """A graph has an input that GPT-2 does not have."""


# (input_ids, attention_mask, position_ids, cache or None, logits to keep) → the logits of a chunk, the longer cache.
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, Any, int], tuple[np.ndarray, Any]]


def run(step: Step, case: Case) -> np.ndarray:
    """Feed a case chunk by chunk; returns the logits of all chunks."""
    parts, cache, begin = [], None, 0
    for size in case.chunks:
        end = begin + size
        window = slice(begin, end)
        fed = case.input_ids[:, window], case.attention_mask[:, :end], case.position_ids[:, window]
        logits, cache = step(*fed, cache, case.keep)
        parts.append(logits)
        begin = end
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def reference(config: GPT2Config, weights: Mapping[str, LazyTensor], dtype: torch.dtype) -> Leg:
    """Return the leg of the from-scratch GPT-2, with the weights as the ledger maps them."""
    given = {name: to_torch(weight) for name, weight in weights.items()}
    return of_reference(CLASSES[config.head].from_weights(config, given, dtype), config.head)


def of_reference(model: Any, head: str) -> Leg:
    """Return the leg of a from-scratch model that has its weights."""

    @torch.inference_mode()
    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        fed = torch.tensor(ids), cache, torch.tensor(mask), torch.tensor(positions)
        out = model(*fed, logits_to_keep=keep)
        return out.logits.numpy(), out.past_key_values

    @torch.inference_mode()
    def at_once(case: Case) -> np.ndarray:
        return model(torch.tensor(case.input_ids), torch.tensor(case.attention_mask)).numpy()

    return partial(run, step) if head == LM else at_once


def single_threaded(leg: Leg) -> Leg:
    """Return a leg of torch that runs on one thread. It splits sums in other places, and so rounds differently."""

    def alone(case: Case) -> np.ndarray:
        with on_threads(1):
            return leg(case)

    return alone


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Run torch on so many threads in a ``with`` block; None changes nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shipped(model: Model) -> Leg:
    """Return the leg of the shipped graph in ONNX Runtime; ``model`` may hold its cache in place."""

    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        cache = model.empty_cache(len(ids)) if cache is None else cache
        return model.step(ids, mask, positions, cache, keep), cache

    return partial(run, step)


FROM_CACHE = 64  # tokens at the end of a long text that are fed one by one, on top of the cache of the others


def leaves_a_cache(case: Case) -> bool:
    """Tell whether a case is a text long enough for ``from_cache``."""
    return case.long and not case.shape


def from_cache(leg: Leg) -> Leg:
    """Return a leg that reads the end of a long text on top of the cache of its beginning.

    A prompt itself is run without rounding, so that only what follows shows what a cache of 8 bits costs.
    """

    def fed(case: Case) -> np.ndarray:
        first = case.input_ids.shape[1] - FROM_CACHE
        return case.kept(leg(replace(case, chunks=(first, *[1] * FROM_CACHE), keep=0)))

    return fed


def shipped_head(model: HeadModel) -> Leg:
    """Return the leg of a shipped graph with another head, in ONNX Runtime, as the command ``run`` runs it."""
    head = model.config.head
    return lambda case: STACKED[head](model.outputs(choices(head, case.input_ids), choices(head, case.attention_mask)))


def graph(opened: OpenedGraph, config: GPT2Config, dtype: Any = np.float32) -> Leg:
    """Return the leg of any graph with Optimum's names of inputs and outputs. Inputs that it lacks are not fed."""
    session = opened.session
    names = [value.name for value in session.get_inputs()]
    if odd := sorted(name for name in names if name not in KNOWN and not name.startswith(PAST)):
        raise InterfaceError(f"it takes the input {odd[0]}, which is none of a GPT-2's")
    if config.head != LM:
        return _head_graph(opened, config.head, names)
    fed = feeder(opened, config, ["logits"], dtype)

    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        [logits], longer = fed(ids, mask, positions, cache, keep)
        return logits[:, -keep:], longer  # a graph without num_logits_to_keep gives all of them

    return partial(run, step)


# One step of a graph: what a ``Step`` takes → the outputs that were asked for, the longer cache.
Fed = Callable[[np.ndarray, np.ndarray, np.ndarray, Any, int], tuple[list[np.ndarray], list[np.ndarray]]]


def feeder(opened: OpenedGraph, config: GPT2Config, outputs: Sequence[str], dtype: Any) -> Fed:
    """Return a function that runs one step of a graph with Optimum's names of inputs and outputs.

    Args:
        outputs: the values that it returns besides the longer cache.
        dtype: the element type of the cache.
    """
    session = opened.session
    names = [value.name for value in session.get_inputs()]
    optional = [value.name for value in session.get_overridable_initializers()]
    pasts = [name for name in names if name.startswith(PAST)]
    presents = [name.replace(PAST, PRESENT) for name in pasts]

    def fed(
        ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        empty = np.empty((len(ids), config.n_head, 0, config.head_dim), dtype)
        given = zip(KNOWN, (ids, mask, positions), strict=True)
        feeds = {name: np.ascontiguousarray(choices(config.head, array)) for name, array in given if name in names}
        if keep and "num_logits_to_keep" in optional:  # else the graph's default, as in other clients
            feeds["num_logits_to_keep"] = np.array(keep)
        feeds |= dict(zip(pasts, cache or [empty] * len(pasts), strict=True))
        found = opened.session.run([*outputs, *presents], feeds)  # ``opened`` keeps the weights alive
        return found[: len(outputs)], found[len(outputs) :]

    return fed


def _head_graph(opened: OpenedGraph, head: str, names: list[str]) -> Leg:
    """Return the leg of a graph with the names that Optimum gives to the outputs of a head."""
    outputs = list(HEADS[head].outputs)  # ONNX Runtime raises an error if the graph has others

    def leg(case: Case) -> np.ndarray:
        fed = (name for name in KNOWN if name in names)
        feeds = {name: np.ascontiguousarray(choices(head, getattr(case, name))) for name in fed}
        return STACKED[head](dict(zip(outputs, opened.session.run(outputs, feeds), strict=True)))

    return leg
