"""Proves that a model folder is its source: ``check``. Needs torch and transformers; imports them when called."""

from __future__ import annotations

import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint import open_checkpoint
from converter.errors import CheckError
from converter.weights import Ledger, account

if TYPE_CHECKING:
    import numpy as np

    from converter.parity.cases import Case
    from converter.parity.legs import Leg
    from converter.parity.metrics import Error
    from converter.parity.verdict import Kind, Report
    from converter.runtime.session import Model

NEEDED = ("torch", "transformers")

Progress = Callable[[str], None]  # told what is about to be computed


def available() -> bool:
    """Whether ``check`` can run: whether the extra ``check`` is installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def check(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ignore: Iterable[str] = (),
    provider: str = "cpu",
    progress: Progress = lambda step: None,
) -> Report:
    """Judge whether the model folder ``out`` computes what ``source`` computes.

    Weights are compared bit for bit, mathematics in float64 (Hugging Face, the from-scratch reference and the shipped
    graph), and float32 by how far Hugging Face's own float32 is from that truth.

    Args:
        source: as for ``convert``.
        ignore: the globs that ``convert`` was given.
        provider: of ONNX Runtime, for the shipped graph.
        progress: called before each step with its name.

    Raises:
        CheckError: torch or transformers is missing, or ``out`` is a model of other dimensions.
        GPT2Error: source or folder cannot be opened.
    """
    if not available():
        raise CheckError("check needs torch and transformers; install them with: pip install 'gpt2onnx[check]'")
    from converter.parity.exactness import compare_initializers
    from converter.parity.verdict import Report
    from converter.runtime.session import OPEN_ERRORS, load, model_file

    checkpoint = open_checkpoint(source)
    ledger = account(checkpoint, ignore)
    progress("every initializer, bit for bit")
    exactness = compare_initializers(model_file(Path(out)), ledger)
    model = load(out, provider)
    _refuse_another_model(model, ledger, source)
    try:
        legs, judge, text = _compare_legs(checkpoint.folder, ledger, model, progress)
    except OPEN_ERRORS as error:
        raise CheckError(f"{model_file(model.folder)} cannot be run by ONNX Runtime ({error})") from error
    notes = ledger.warnings + tuple(f"{e.tensor.name} was left aside" for e in ledger.entries if e.role == "ignored")
    return Report(
        source=os.fspath(source),
        out=os.fspath(out),
        text=text,
        provider=model.session.get_providers()[0],
        scale=judge.scale,
        floor_rms=judge.floor_rms / judge.scale,
        floor_maximum=judge.floor_maximum / judge.scale,
        initializers=exactness.compared,
        exactness_faults=exactness.faults,
        legs=tuple(legs),
        notes=notes,
    )


def _refuse_another_model(model: Model, ledger: Ledger, source: str | os.PathLike[str]) -> None:
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_dim"):
        ours, theirs = getattr(model.config, name), getattr(ledger.config, name)
        if ours != theirs:
            raise CheckError(
                f"{model.folder} is another model than {source}: its {name} is {ours}, the source's {theirs}"
            )


def _compare_legs(folder: Path, ledger: Ledger, model: Model, progress: Progress):  # type: ignore[no-untyped-def]
    """Run every leg over the grid, one in memory at a time; returns the reports, the judge, and what the text is."""
    import torch

    from converter.parity import legs, metrics
    from converter.parity.cases import grid, held_out_tokens
    from converter.parity.verdict import GRAPH_FLOAT64_LIMIT, HUGGINGFACE_FLOAT64_LIMIT, Judge, Kind
    from converter.parity.widen import widened_session
    from converter.runtime.session import model_file

    config, weights = ledger.config, ledger.weights
    tokens, text = held_out_tokens(model.tokenizer, config)
    cases = grid(config, tokens)

    progress("the truth: reference in float64")
    truths = _truths(legs.uncached(legs.reference(config, weights, torch.float64)), cases)
    scale = metrics.scale(truths, {case.name: case.real for case in cases})

    table: tuple[tuple[str, Kind, float, Callable[[], Leg]], ...] = (
        ("Hugging Face float64 eager", Kind.SEMANTICS, HUGGINGFACE_FLOAT64_LIMIT,
         lambda: legs.huggingface(folder, torch.float64, "eager")),
        ("ONNX graph in float64", Kind.SEMANTICS, GRAPH_FLOAT64_LIMIT,
         lambda: legs.widened(widened_session(model_file(model.folder)), config)),
        ("Hugging Face float32 eager", Kind.NOISE, 0.0, lambda: legs.huggingface(folder, torch.float32, "eager")),
        ("Hugging Face float32 SDPA", Kind.NOISE, 0.0, lambda: legs.huggingface(folder, torch.float32, "sdpa")),
        ("reference float32", Kind.NUMERICS, 0.0, lambda: legs.reference(config, weights, torch.float32)),
        ("ONNX Runtime float32", Kind.NUMERICS, 0.0, lambda: legs.shipped(model)),
    )  # fmt: skip
    measured: list[tuple[str, Kind, float, dict[str, Error], float]] = []
    for name, kind, limit, open_leg in table:
        progress(name)
        began = time.monotonic()
        errors = _measure(open_leg(), cases, truths)
        measured.append((name, kind, limit, errors, time.monotonic() - began))
        gc.collect()  # a model and its logits before the next come in
    noise = [sum(errors.values(), metrics.Error()) for _, kind, _, errors, _ in measured if kind is Kind.NOISE]
    judge = Judge.of(scale, noise)
    return [judge.report(name, kind, errors, limit, took) for name, kind, limit, errors, took in measured], judge, text


def _truths(leg: Leg, cases: list[Case]) -> dict[str, np.ndarray]:
    """The truth of each case; cases that feed the same tokens in other chunks share one."""
    by_tokens: dict[int, np.ndarray] = {}
    for case in cases:
        if id(case.input_ids) not in by_tokens:
            by_tokens[id(case.input_ids)] = leg(case)
    return {case.name: by_tokens[id(case.input_ids)] for case in cases}


def _measure(leg: Leg, cases: list[Case], truths: dict[str, np.ndarray]) -> dict[str, Error]:
    from converter.parity.metrics import compare

    return {case.name: compare(truths[case.name], leg(case), case.real) for case in cases}
