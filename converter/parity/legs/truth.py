"""Compute the truth: the from-scratch GPT-2 in float64, with one layer in memory at a time.

A layer is widened from the mapped file, all token sequences go through it, and it is dropped before the next one. So a
model of any size takes the memory of its embedding and of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from converter.checkpoint.tensor import LazyTensor
from converter.parity.legs.cases import Case
from converter.parity.legs.steps import Steps
from reference.config import GPT2Config
from reference.head import LM
from reference.heads import CLASSES, HeadModel
from reference.model import GPT2, Body, Conv1D, causal_mask

Observe = Callable[[str, Tensor], None]  # called with the path and the output of every module

DTYPE = torch.float64

# So many tokens are computed side by side at most: enough to read a layer's weights seldom, and few enough for memory.
GROUP_TOKENS = 1024

ROW_TYPE = np.dtype(np.int64)

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
    """Return the truth of each case. Each row is computed without cache or padding, which must not change it.

    A language model's rows of one length are computed side by side. A row that another begins with is part of it, as no
    position sees those after it.

    Args:
        step: told of each layer.
    """
    of_case = {case.name: _rows(case) for case in cases}
    rows = [row for each in of_case.values() for row in each]
    whole = _longest(rows) if config.head == LM else {row: row for row in rows}
    groups = list(_side_by_side(dict.fromkeys(whole.values()), GROUP_TOKENS if config.head == LM else 1))
    found: dict[_Row, np.ndarray] = {}
    answers = stream(config, weights, [_as_case(group) for group in groups], step=step)
    for group, logits in zip(groups, answers, strict=True):
        found |= dict(zip(group, logits, strict=True))
    parts = {row: _part(found[root], row, root) for row, root in whole.items()}
    return {case.name: _together(case, [parts[row] for row in of_case[case.name]]) for case in cases}


@dataclass(frozen=True)
class _Row:
    """A row of a case, without padding.

    Attributes:
        tokens, positions: the bytes of int64.
        keep: the number of last positions that are compared; 0 for all.
    """

    tokens: bytes
    positions: bytes
    keep: int

    @property
    def length(self) -> int:
        return len(self.tokens) // ROW_TYPE.itemsize

    def beginning(self, length: int) -> tuple[bytes, bytes]:
        return self.tokens[: length * ROW_TYPE.itemsize], self.positions[: length * ROW_TYPE.itemsize]


def _rows(case: Case) -> list[_Row]:
    real = case.attention_mask > 0
    each = zip(case.input_ids.astype(ROW_TYPE), case.position_ids.astype(ROW_TYPE), real, strict=True)
    return [_Row(ids[row].tobytes(), at[row].tobytes(), case.keep) for ids, at, row in each]


def _longest(rows: Sequence[_Row]) -> dict[_Row, _Row]:
    """Return for each row the longest that begins with it and is compared at all positions, or else itself."""
    lengths = sorted({row.length for row in rows})
    known: dict[tuple[bytes, bytes], _Row] = {}
    for row in sorted((row for row in rows if not row.keep), key=lambda row: row.length):
        known |= {row.beginning(length): row for length in lengths if length <= row.length}
    return {row: known.get(row.beginning(row.length), row) for row in rows}


def _side_by_side(rows: Iterable[_Row], tokens: int) -> Iterator[list[_Row]]:
    """Yield groups of rows of one length that are compared at the same positions, with so many tokens at most."""
    alike: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        alike.setdefault((row.length, row.keep), []).append(row)
    for (length, _), each in alike.items():
        count = max(1, tokens // length)
        yield from (each[at : at + count] for at in range(0, len(each), count))


def _as_case(group: Sequence[_Row]) -> Case:
    ids = np.stack([np.frombuffer(row.tokens, ROW_TYPE) for row in group])
    positions = np.stack([np.frombuffer(row.positions, ROW_TYPE) for row in group])
    return Case("side by side", ids, np.ones_like(ids), (ids.shape[1],), group[0].keep, positions=positions)


def _part(logits: np.ndarray, row: _Row, whole: _Row) -> np.ndarray:
    """Return the logits of a row from those of the row that begins with it."""
    return logits if whole.keep else logits[: row.length][-row.keep :]


def _together(case: Case, logits: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows of a case as one array, with padding where the case has it."""
    if len(logits) == 1:
        return logits[0][None]
    together = np.zeros((*case.real.shape, logits[0].shape[-1]))
    together[case.real] = np.concatenate(logits)
    return together
