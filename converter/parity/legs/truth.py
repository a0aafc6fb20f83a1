"""Compute the truth: the from-scratch GPT-2 in float64, with one layer in memory at a time.

A layer is widened from the mapped file, all token sequences go through it, and it is dropped before the next one. So a
model of any size takes the memory of its embedding and of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from converter.checkpoint.tensor import LazyTensor
from converter.parity.legs.cases import Case
from converter.parity.legs.steps import Steps
from reference.config import GPT2Config
from reference.heads import CLASSES, HeadModel
from reference.model import GPT2, Body, Conv1D, causal_mask

Observe = Callable[[str, Tensor], None]  # called with the path and the output of every module

DTYPE = torch.float64

BODY = ("wte", "wpe", "drop", "h")  # modules that have run before the head


def to_torch(weight: LazyTensor) -> Tensor:
    """Return a weight as a tensor that lies in the mapped file."""
    mapped = weight.memmap()
    if weight.dtype == "bfloat16":
        return torch.from_numpy(mapped.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(mapped)


@torch.inference_mode()
def stream(
    config: GPT2Config,
    weights: Mapping[str, LazyTensor],
    cases: list[Case],
    observe: Observe | None = None,
    step: Steps | None = None,
) -> list[np.ndarray]:
    """Return the logits of each case in float64, ``[batch, kept, vocab_size]``; other heads give ``[batch, positions,
    numbers]``. All tokens of a case are fed at once.

    Args:
        observe: called with the output of every module.
        step: told of each layer.
    """
    with torch.device("meta"):
        model = CLASSES[config.head](config, Conv1D).eval()  # Conv1D has the weights as the file has them
    if observe is not None:
        _observe(model, observe)
    for name in ("wte", "wpe"):
        _materialise(model, name, weights)
    masks = [causal_mask(torch.tensor(case.attention_mask), case.input_ids.shape[1]) for case in cases]
    states = [
        model.drop(model.wte(torch.tensor(case.input_ids)) + model.wpe(torch.tensor(case.position_ids)))
        for case in cases
    ]
    for i, block in enumerate(model.h):
        _materialise(model, f"h.{i}", weights)
        states = [block(x, mask, None)[0] for x, mask in zip(states, masks, strict=True)]
        block.to("meta")
        if step is not None:
            step.within(i + 1, config.n_layer + 1)  # the head counts as a layer
    model.tie()
    for name, _ in model.named_children():
        if name not in BODY and not (name == "lm_head" and config.tie_word_embeddings):
            _materialise(model, name, weights)
    return [_answer(model, x, case).numpy() for x, case in zip(states, cases, strict=True)]


def _answer(model: Body, x: Tensor, case: Case) -> Tensor:
    """Return what the head computes from the output of the last block."""
    if isinstance(model, HeadModel):
        return model.head(model.ln_f(model.select(x, torch.tensor(case.input_ids), torch.tensor(case.attention_mask))))
    assert isinstance(model, GPT2)
    return model.lm_head(model.ln_f(case.kept(x)))


def _materialise(model: Body, path: str, weights: Mapping[str, LazyTensor]) -> None:
    """Load the weights of a module in float64."""
    module = model.get_submodule(path)
    names = [name for name, _ in module.named_parameters()]
    state = {name: to_torch(weights[f"{path}.{name}"]).to(DTYPE) for name in names}
    module.load_state_dict(state, assign=True)


def _observe(model: Body, observe: Observe) -> None:
    """Make every module report its output."""

    def report(path: str) -> Callable[..., None]:
        return lambda module, args, output: observe(path, output[0] if isinstance(output, tuple) else output)

    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(report(path))


def truths(
    config: GPT2Config, weights: Mapping[str, LazyTensor], cases: list[Case], step: Steps | None = None
) -> dict[str, np.ndarray]:
    """Return the truth of each case. Each row is computed alone, without cache or padding, which must not change it.

    Rows that feed the same tokens share their computation.

    Args:
        step: told of each layer.
    """
    alone: dict[tuple[bytes, bytes, int], Case] = {}
    for case in cases:
        for tokens, positions in _rows(case):
            alone.setdefault(_key(tokens, positions, case.keep), _by_itself(tokens, positions, case))
    rows = dict(zip(alone, stream(config, weights, list(alone.values()), step=step), strict=True))
    return {case.name: _together(case, rows) for case in cases}


def _together(case: Case, rows: Mapping[tuple[bytes, bytes, int], np.ndarray]) -> np.ndarray:
    """Return the rows of a case as one array, with padding where the case has it."""
    logits = [rows[_key(tokens, positions, case.keep)][0] for tokens, positions in _rows(case)]
    if len(logits) == 1:
        return logits[0][None]
    together = np.zeros((*case.real.shape, logits[0].shape[-1]))
    together[case.real] = np.concatenate(logits)
    return together


def _rows(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the tokens of each row and their positions, without padding."""
    real = case.attention_mask > 0
    return [(ids[row], at[row]) for ids, at, row in zip(case.input_ids, case.position_ids, real, strict=True)]


def _key(tokens: np.ndarray, positions: np.ndarray, keep: int) -> tuple[bytes, bytes, int]:
    return tokens.tobytes(), positions.tobytes(), keep


def _by_itself(tokens: np.ndarray, positions: np.ndarray, case: Case) -> Case:
    alone, at = tokens[None], positions[None]
    return Case("alone", alone, np.ones_like(alone), (alone.shape[1],), case.keep, positions=at)
