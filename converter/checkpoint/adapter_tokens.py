"""Merge single tokens that an adapter trained: their rows take the place of the base's, as with PEFT.

``trainable_token_indices`` of the config says which tokens these are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converter.checkpoint.adapter_config import saves, trained_tokens
from converter.checkpoint.adapter_file import Adapter
from converter.checkpoint.adapter_rows import floats, matrix_shape, rows, with_rows
from converter.checkpoint.source import ADAPTER_CONFIG
from converter.checkpoint.tensor import LazyTensor
from converter.errors import CheckpointError


def with_tokens(adapter: Adapter, tensors: Mapping[str, LazyTensor], tied: bool, base: str) -> dict[str, LazyTensor]:
    """Return the matrices of which single rows were trained, with these rows, by tensor name.

    Args:
        tensors: what is merged so far, by canonical name.
        tied: whether embedding and head are one matrix. The embedding's tokens are the head's, too, then.
        base: the name of the base in messages.

    Raises:
        CheckpointError: the rows are not those that the config asks for, or do not fit the base.
    """
    _refuse_missing(adapter, tied)
    if tied:
        _refuse_apart(adapter, base)
    known = {module: adapter.modules[module] for module in adapter.tokens}
    trained = dict(adapter.tokens)
    if tied and "wte" in trained:
        known["lm_head"], trained["lm_head"] = known["wte"], trained["wte"]
    found: dict[str, LazyTensor] = {}
    for module, new in trained.items():
        if module in adapter.updates or saves(adapter.values, adapter.modules.get(module, module)):
            raise CheckpointError(f"{adapter.config} names single tokens of {module} and changes all of it, too")
        weight = tensors.get(f"{module}.weight")
        if weight is not None:
            tokens = trained_tokens(adapter.values, known[module])
            found[f"{module}.weight"] = _merged(adapter, weight, tokens, new, base)
        elif not tied:  # of a tied matrix, a base may hold one name only
            raise CheckpointError(f"{adapter.file} has rows of {module}, and {base} has no {module}.weight")
    return found


def _refuse_missing(adapter: Adapter, tied: bool) -> None:
    """Refuse an adapter that lacks the rows of a module whose tokens its config names."""
    asked = adapter.values.get("trainable_token_indices") or {}
    present = [adapter.modules[module] for module in adapter.tokens]
    if tied and "wte" in adapter.tokens:
        present.append("lm_head")
    for name in asked if isinstance(asked, dict) else ("wte",):
        if not any(module.endswith(name) for module in present):
            raise CheckpointError(f"{adapter.file} has no rows of {name}, whose tokens {ADAPTER_CONFIG} names")


def _refuse_apart(adapter: Adapter, base: str) -> None:
    """Refuse tokens of a tied head that are not the embedding's.

    PEFT gives them two meanings: before merging they change only one of the two matrices, after merging both.
    """
    of_head = trained_tokens(adapter.values, "lm_head")
    of_embedding = trained_tokens(adapter.values, adapter.modules["wte"]) if "wte" in adapter.tokens else None
    if of_head not in (None, of_embedding):
        raise CheckpointError(
            f"{adapter.config} names tokens of lm_head that are not those of wte, and {base} ties the two: with peft, "
            f"merging such an adapter changes what the model computes"
        )


def _merged(adapter: Adapter, weight: LazyTensor, tokens: list[int] | None, new: LazyTensor, base: str) -> LazyTensor:
    """Return a matrix with the rows of some tokens replaced."""
    if tokens is None:
        raise CheckpointError(f"{adapter.file}: tensor {new.name} is not asked for by {ADAPTER_CONFIG}")
    count, width = matrix_shape(weight)
    if new.shape != (len(tokens), width):
        raise CheckpointError(
            f"{adapter.file}: tensor {new.name} is {list(new.shape)}; expected {[len(tokens), width]}, as "
            f"{ADAPTER_CONFIG} names {len(tokens)} tokens and {weight.name} of {base} is {[count, width]}"
        )
    last = max(tokens, default=0)
    if last >= count:
        raise CheckpointError(
            f"{adapter.config} names token {last}, and {weight.name} of {base} has {count} rows: resize it as it was "
            f"for the training, save it with its tokenizer, and give that as SOURCE"
        )
    places = np.array(tokens, np.int64)

    def compute(first: int, end: int) -> np.ndarray:
        """Return rows of the matrix, float64."""
        found = rows(weight, first, end)
        inside = (places >= first) & (places < end)
        found[places[inside] - first] = floats(new)[inside]
        return found

    return with_rows(weight, compute)
