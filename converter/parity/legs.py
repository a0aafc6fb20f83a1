"""Legs: everything that computes logits of the same model, behind one call.

A leg is a function of a ``Case`` that returns its logits, ``[batch, tokens, vocab_size]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from converter.checkpoint import LazyTensor
from converter.parity.cases import Case
from converter.parity.widen import Widened
from converter.runtime.session import Model
from converter.weights import Ledger
from reference import config as architecture
from reference.model import GPT2

Leg = Callable[[Case], np.ndarray]

# (input_ids, attention_mask, position_ids, cache or None, logits to keep) → the logits of a chunk, the longer cache.
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, Any, int], tuple[np.ndarray, Any]]


def run(step: Step, case: Case) -> np.ndarray:
    """Feed a case chunk by chunk, and put the logits together."""
    parts, cache, begin = [], None, 0
    for size in case.chunks:
        end = begin + size
        window = slice(begin, end)
        fed = case.input_ids[:, window], case.attention_mask[:, :end], case.position_ids[:, window]
        logits, cache = step(*fed, cache, case.keep)
        parts.append(logits)
        begin = end
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def reference(config: architecture.GPT2Config, weights: Mapping[str, LazyTensor], dtype: torch.dtype) -> Leg:
    """The from-scratch GPT-2, with the weights as the ledger maps them."""
    if dtype == torch.float64:
        config = _exact(config)
    model = GPT2.from_weights(config, {name: to_torch(weight) for name, weight in weights.items()}, dtype)

    @torch.inference_mode()
    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        fed = torch.tensor(ids), cache, torch.tensor(mask), torch.tensor(positions)
        out = model(*fed, logits_to_keep=keep)
        return out.logits.numpy(), out.past_key_values

    return partial(run, step)


def alone(leg: Leg) -> Leg:
    """The same leg on each row by itself, all tokens at once: what no cache, padding or company may change."""

    def by_itself(case: Case) -> np.ndarray:
        if len(case.input_ids) == 1 and case.attention_mask.all():
            return leg(replace(case, chunks=(case.input_ids.shape[1],)))
        rows = []
        for ids, mask in zip(case.input_ids, case.attention_mask, strict=True):
            tokens = ids[mask > 0][None]
            logits = leg(Case(case.name, tokens, np.ones_like(tokens), (tokens.shape[1],)))[0]
            rows.append(np.pad(logits, ((len(ids) - len(logits), 0), (0, 0))))
        return np.stack(rows)

    return by_itself


class HuggingFace:
    """transformers' GPT-2, opened by transformers' own loader with its own reading of the config.

    Where that loader does not find every weight (a checkpoint saved through a wrapper, say), transformers' code is
    given the weights as the ledger maps them, and ``note`` says that the mapping is not proven by a second reader.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.note: str | None = None

    def open(self, dtype: torch.dtype, attention: str) -> Leg:
        """The leg in one dtype, with ``eager`` or ``sdpa`` attention."""
        # transformers raises in float64 when the flag is set, which is about rounding and not about mathematics.
        override = {"reorder_and_upcast_attn": False} if dtype == torch.float64 else {}
        options = {"dtype": dtype, "attn_implementation": attention, **override}
        if self.note is None:
            with quiet_transformers():
                model, found = GPT2LMHeadModel.from_pretrained(
                    self.folder, local_files_only=True, output_loading_info=True, **options
                )
            if not found["missing_keys"]:
                return partial(run, huggingface_step(model.eval()))
            missing = sorted(found["missing_keys"])
            self.note = (
                f"transformers does not find {missing[0]} and {len(missing) - 1} other weights in {self.folder}: its "
                f"code was given them as gpt2onnx maps them, so the mapping is not independently proven"
            )
        return partial(run, huggingface_step(self._mapped(dtype, attention, override)))

    def _mapped(self, dtype: torch.dtype, attention: str, override: dict[str, Any]) -> GPT2LMHeadModel:
        values = asdict(self.ledger.config) | override
        with torch.device("meta"):
            model = GPT2LMHeadModel(GPT2Config(**values, attn_implementation=attention))
        weights = {name: to_torch(weight) for name, weight in self.ledger.weights.items()}
        head = weights.pop("lm_head.weight", weights["wte.weight"])
        state = {f"transformer.{name}": weight for name, weight in weights.items()} | {"lm_head.weight": head}
        model.load_state_dict(state, assign=True)
        return model.to(dtype).eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without its bars and warnings; afterwards as talkative as before."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def huggingface_step(model: GPT2LMHeadModel) -> Step:
    """One call of transformers' GPT-2."""

    @torch.inference_mode()
    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        out = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.numpy(), out.past_key_values

    return step


def shipped(model: Model) -> Leg:
    """The shipped graph in ONNX Runtime, as ``generate`` runs it."""

    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        return model.step(ids, mask, positions, model.empty_cache(len(ids)) if cache is None else cache, keep)

    return partial(run, step)


def widened(graph: Widened, config: architecture.GPT2Config) -> Leg:
    """The shipped graph in float64."""
    inputs = [value.name for value in graph.session.get_inputs() if value.name.startswith("past_key_values.")]

    def step(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any, keep: int) -> tuple[np.ndarray, Any]:
        empty = np.empty((len(ids), config.n_head, 0, config.head_dim))
        past = dict(zip(inputs, cache or [empty] * len(inputs), strict=True))
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
        }
        if keep:  # else the graph's own default, which other clients get
            feeds["num_logits_to_keep"] = np.array(keep)
        logits, *longer = graph.session.run(None, {name: np.ascontiguousarray(a) for name, a in feeds.items()} | past)
        return logits, longer

    return partial(run, step)


def to_torch(weight: LazyTensor) -> torch.Tensor:
    """A weight as a tensor that lies in the mapped file."""
    mapped = weight.memmap()
    if weight.dtype == "bfloat16":
        return torch.from_numpy(mapped.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(mapped)


def _exact(config: architecture.GPT2Config) -> architecture.GPT2Config:
    """Without the flag that asks for float32 inside float16 models; in float64 it would only lose digits."""
    return replace(config, reorder_and_upcast_attn=False)
