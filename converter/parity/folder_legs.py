"""Say what of a model folder is run: its graphs, as shipped and as rewritten, each with its limit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.folder import manifest
from converter.folder.staging import second_graph
from converter.parity.baseline import LegSpec, usual
from converter.parity.exports.asked import Asked
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case, Level
from converter.parity.legs.half import Rounded
from converter.parity.legs.identity import LegKind, Runner
from converter.parity.legs.settings import describe, settings_of
from converter.parity.legs.shipped import as_shipped
from converter.parity.legs.truth import truths
from converter.parity.legs.widen import threads_for, widened_session
from converter.parity.verdict.limits import Limits
from converter.runtime.eight_bits import is_offered
from converter.runtime.gpu.graph import can_be_captured
from converter.runtime.heads import load as load_head
from converter.runtime.in_place import can_be_rewritten
from converter.runtime.opening import CAPTURING, load, model_file
from converter.runtime.ort import provider_name
from converter.weights.ledger import Ledger
from converter.weights.precisions import FULL, PRECISIONS
from reference.head import HEADS, LM


@dataclass(frozen=True)
class Examination:
    """How to examine a folder.

    Attributes:
        provider: the provider of ONNX Runtime for the shipped graph.
        files: also compare the files; otherwise the logits alone decide.
        whole: the ledger of the whole model, from which every file of the folder is derived and compared. None for the
            second graph of a model, as the files were compared with the first.
        edited: whether files of the folder are known to differ from what a conversion writes.
        allowed: files and keys that may differ, as ``parse_allowed`` returns them.
        layers: compare every operation, even on a match.
        until_fault: stop after the first leg that fails, which is enough to prove that a defect is caught.
        shipped_truths: precision → float64 logits of its own numbers, if they are kept between examinations.
        also: exports of other programs to compare with the source.
    """

    provider: str = "cpu"
    files: bool = True
    whole: Ledger | None = None
    edited: bool = False
    allowed: tuple[tuple[str, str], ...] = ()
    layers: bool = False
    until_fault: bool = False
    shipped_truths: dict[str, Mapping[str, np.ndarray]] | None = None
    also: tuple[Asked, ...] = ()


def graphs_of(out: Path, head: str) -> dict[str, Path]:
    """Return the graphs of a model folder that have this head, by precision; one if the manifest names no precision."""
    there = manifest.read(out).get("precisions")
    names = list(there) if isinstance(there, dict) and there else [None]
    files = {name or FULL: model_file(out, name) for name in names}
    return {name: second_graph(file) if HEADS[head].part_of else file for name, file in files.items()}


@dataclass(frozen=True)
class FolderRows:
    """The legs of a folder. Nothing is opened yet.

    Attributes:
        legs: the legs, each with its file.
        settings: versions and machine. ONNX Runtime's are filled in when a leg is opened.
    """

    legs: Sequence[tuple[Path, LegSpec]]
    settings: dict[str, Any] = field(default_factory=dict)


def folder_rows(ledger: Ledger, limits: Limits, level: Level, out: Path, asked: Examination) -> FolderRows:
    """Return the legs of the shipped graphs and of other files."""
    config, settings = ledger.config, settings_of(provider_name(asked.provider))
    graphs = graphs_of(out, config.head)
    several, threads = len(graphs) > 1, threads_for(ledger.parameters)

    def runtime(precision: str, in_place: bool = False, **layout: Any) -> legs.Leg:
        named = precision if several else None
        if config.head != LM:
            model = load_head(out, asked.provider, threads, named)
            settings.update(describe(model.session))
            return legs.shipped_head(model)
        generating = load(out, asked.provider, threads, named, in_place=in_place, **layout)
        settings.update(describe(generating.session))
        return legs.shipped(generating)

    def shipped(precision: str) -> LegSpec:
        which: dict[str, Any] = {"precision": precision, "graph": os.fspath(graphs[precision])}
        opened = partial(runtime, precision)
        if precision == FULL:
            return LegSpec("ONNX Runtime float32", LegKind.NUMERICS, opened, **which)
        name, budget = f"ONNX Runtime {precision}", PRECISIONS[precision].budget_name
        return LegSpec(name, LegKind.LOSSY, opened, cases=usual, budget=budget, **which)

    def widened(precision: str) -> LegSpec:
        return _widened(graphs[precision], precision, ledger, limits, level, asked.shipped_truths)

    def in_place(precision: str) -> LegSpec:
        leg, opened = shipped(precision), partial(runtime, precision, in_place=True)
        return replace(leg, name=f"{leg.name}, cache in place", in_place=True, open=opened)

    def rounded_cache(precision: str) -> LegSpec:
        leg, opened = in_place(precision), partial(runtime, precision, in_place=True, cache="int8")
        name = f"ONNX Runtime {precision}, cache of 8 bits"
        return replace(leg, name=name, open=lambda: legs.from_cache(opened()), cases=legs.leaves_a_cache)

    def captured(precision: str) -> LegSpec:
        leg, opened = shipped(precision), partial(runtime, precision, cuda_graphs=True)
        return replace(leg, name=f"{leg.name}, CUDA graphs", in_place=True, open=opened)

    rows: list[tuple[Path, LegSpec]] = []
    if FULL in graphs:
        rows += [(graphs[FULL], widened(FULL)), (graphs[FULL], shipped(FULL))]
    for precision, file in graphs.items():
        if precision != FULL:
            rows += [(file, widened(precision)), (file, shipped(precision))]
    if config.head == LM and asked.provider == "cpu":  # as in ``generate``
        can = [(file, in_place(precision)) for precision, file in graphs.items() if can_be_rewritten(file)]
        # Without integer products one precision is enough, as only the weights differ.
        quantized = [row for row in can if PRECISIONS[row[1].precision].scheme]
        rows += [*(row for row in can[:1] if row not in quantized), *quantized]
        if is_offered() and config.n_positions >= 2 * legs.FROM_CACHE:  # what comes first is kept in float32
            rows += [(file, rounded_cache(leg.precision)) for file, leg in quantized]
    if config.head == LM and provider_name(asked.provider) in CAPTURING:
        rows += [(file, captured(precision)) for precision, file in graphs.items() if can_be_captured(file)]
    if "fp16" in graphs:
        rows.append((graphs["fp16"], _rounded(ledger)))
    return FolderRows(rows, settings)


def _in_float64(case: Case, everything: bool) -> bool:
    """Tell whether a case is fed to a graph in float64.

    Long texts are fed only if ``everything`` is. The whole vocabulary never is: it costs as much as all other cases.
    """
    return not case.long or (everything and usual(case))


def _widened(
    file: Path,
    precision: str,
    ledger: Ledger,
    limits: Limits,
    level: Level,
    known: dict[str, Mapping[str, np.ndarray]] | None,
) -> LegSpec:
    """Return the leg of a shipped graph in float64. It is compared with the reference that has the same numbers for
    weights.

    So the mathematics is judged alone. The budget of a precision limits the error of the rounded weights.

    Args:
        known: see ``Examination.shipped_truths``.
    """
    config = ledger.config

    def truth(cases: list[Case]) -> Mapping[str, np.ndarray]:
        found = (known or {}).get(precision)
        if found is None:
            found = truths(config, as_shipped(ledger, file, PRECISIONS[precision]).weights, cases)
        if known is not None:
            known[precision] = found
        return found

    return LegSpec(
        "ONNX graph in float64" if precision == FULL else f"ONNX {precision} graph in float64",
        LegKind.SEMANTICS,
        lambda: legs.graph(widened_session(file, config=config), config, np.float64),
        limits.graph_float64,
        partial(_in_float64, everything=level is Level.FULL and precision == FULL),
        truths=None if precision == FULL else truth,
        runner=Runner.WIDENED,
        precision=precision,
        graph=os.fspath(file),
    )


def _rounded(ledger: Ledger) -> LegSpec:
    """Return the leg in which every operation rounds to float16. Its note says what overflows."""
    rounded = Rounded(ledger.config, ledger.weights)
    return LegSpec(
        "float16, every operation rounded",
        LegKind.LOSSY,
        rounded.open,
        cases=usual,
        note=lambda: rounded.sentence,
        runner=Runner.ROUNDED,
        precision="fp16",
        budget=PRECISIONS["fp16"].budget_name,
    )
