"""The folder's side of a check: its files and its graph against a source's baseline, and if they differ, why."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from google.protobuf.message import DecodeError

from converter.errors import CheckError
from converter.folder import manifest
from converter.folder.staging import second_graph
from converter.parity.baseline import Baseline, Row, short
from converter.parity.diagnosis.diagnose import FLOAT32_LIMIT, FLOAT64_LIMIT, Diagnosis, Subject, diagnose
from converter.parity.diagnosis.operations import Operations
from converter.parity.diagnosis.taps import (
    TAP_FLOAT64_LIMIT,
    Localisation,
    Taps,
    graph_taps,
    huggingface_taps,
    localise,
    tap_names,
    truth_taps,
)
from converter.parity.legs import leg as legs
from converter.parity.legs.cases import Case, Level
from converter.parity.legs.half import Rounded
from converter.parity.legs.huggingface import HuggingFace
from converter.parity.legs.memory import release_memory
from converter.parity.legs.widen import graph_session, widened_session
from converter.parity.report.report import Details, Report
from converter.parity.verdict.beside import compare_config, compare_tokenizer
from converter.parity.verdict.exactness import Exactness, compare_initializers
from converter.parity.verdict.judge import Judge, Kind, Measured
from converter.runtime.heads import load as load_head
from converter.runtime.in_place import rewritten
from converter.runtime.ort import OPEN_ERRORS
from converter.runtime.session import load, model_file
from converter.version import VERSION
from converter.weights.precisions import PRECISIONS
from reference.config import MULTIPLE_CHOICE

FULL = "fp32"  # the precision that is held against the noise floor; the others have budgets
BUDGET_OF = {"fp16": "float16", "int8": "int8", "int4": "int4"}

HALF_LEG = "float16, every operation rounded"
IN_PLACE = ", cache in place"
HUGGINGFACE, FLOAT64_LEG, RUNTIME_LEG = "Hugging Face", "ONNX graph in float64", "ONNX Runtime float32"


@dataclass(frozen=True)
class Options:
    """How a folder is examined.

    Attributes:
        provider: of ONNX Runtime, for the shipped graph.
        files: compare the files too; without, the logits alone decide.
        layers: localise even if nothing is wrong.
        also: other ONNX files with Optimum's inputs and outputs, to be held against the same source.
    """

    provider: str = "cpu"
    files: bool = True
    layers: bool = False
    also: tuple[Path, ...] = ()


@dataclass
class TapCache:
    """The taps of the source, by case: the truth's and Hugging Face's in float32."""

    baseline: Baseline
    known: dict[str, tuple[Taps, Taps]] = field(default_factory=dict)

    def __getitem__(self, case: Case) -> tuple[Taps, Taps]:
        if case.name not in self.known:
            ledger = self.baseline.ledger
            huggingface = HuggingFace(self.baseline.checkpoint, ledger)
            truth = truth_taps(ledger, case)
            self.known[case.name] = truth, huggingface_taps(huggingface, case, torch.float32)
        return self.known[case.name]


def precision_leg(precision: str) -> str:
    """What the leg of a precision is called."""
    return f"ONNX Runtime {precision}"


def graphs_of(out: Path, head: str) -> dict[str, Path]:
    """The graphs of a model folder that have this head, by precision; a folder without our manifest has one."""
    there = manifest.read(out).get("precisions")
    names = list(there) if isinstance(there, dict) and there else [None]
    files = {name or FULL: model_file(out, name) for name in names}
    return {name: second_graph(file) if head == MULTIPLE_CHOICE else file for name, file in files.items()}


def examine(
    baseline: Baseline, out: Path, options: Options, step: Callable[[str], None], cache: TapCache | None = None
) -> Report:
    """Hold a model folder against its source.

    Raises:
        CheckError: it is a model of other dimensions, or ONNX Runtime cannot run its graph.
        GPT2Error: the folder cannot be opened.
    """
    began = time.monotonic()
    graphs = graphs_of(out, baseline.ledger.config.head)
    beside, exactness = _files(baseline, out, graphs, options, step)
    settings: dict[str, Any] = {}
    measured = [*baseline.legs, *_legs(baseline, out, options, settings, step)]
    notes = baseline.notes
    if "fp16" in graphs:
        leg, overflow = half_precision(baseline, step)
        measured.append(leg)
        notes = (*notes, *([overflow] if overflow else []))
    release_memory()
    judge = baseline.judge
    reports = tuple(judge.report(leg) for leg in sorted(measured, key=lambda leg: list(Kind).index(leg.kind)))
    located = diagnosis = None
    guilty = [leg for leg in measured if leg.kind not in (Kind.OTHER, Kind.LOSSY) and judge.fault(leg)]
    if FULL in graphs and (guilty or options.layers):
        step("where the error comes from")
        with running(graphs[FULL]):
            located, diagnosis = _explain(baseline, graphs[FULL], guilty, judge, cache or TapCache(baseline))
    whole = judge.floor({case.name: measured[0].distances[case.name] for case in baseline.cases if short(case)})
    return Report(
        source=os.fspath(baseline.checkpoint.name),
        out=os.fspath(out),
        level=baseline.level,
        text=baseline.text,
        settings=settings,
        limits=baseline.limits.named(),
        scale=baseline.scale,
        floor_rms=whole[0] / baseline.scale,
        floor_maximum=whole[1] / baseline.scale,
        exactness=options.files,
        initializers=exactness.compared,
        exactness_faults=exactness.faults,
        beside_faults=tuple(beside),
        legs=reports,
        localisation=located,
        diagnosis=diagnosis,
        notes=notes,
        seconds=time.monotonic() - began,
        details=Details(baseline, tuple(measured), judge),
    )


def _files(
    baseline: Baseline, out: Path, graphs: Mapping[str, Path], options: Options, step: Callable[[str], None]
) -> tuple[list[str], Exactness]:
    """What the files themselves say."""
    step("every initializer, bit for bit")
    beside = compare_config(out, baseline.checkpoint, baseline.ledger)
    if not options.files:
        return [], Exactness(0, ())
    beside += compare_tokenizer(out, baseline.checkpoint)
    found = [compare_initializers(file, baseline.ledger, PRECISIONS[name]) for name, file in graphs.items()]
    return beside, Exactness(sum(one.compared for one in found), tuple(fault for one in found for fault in one.faults))


@contextmanager
def running(file: Path, how: str = "") -> Iterator[None]:
    """Say of which file ONNX Runtime complains.

    Raises:
        CheckError: ONNX Runtime cannot open or run it.
    """
    try:
        yield
    except (*OPEN_ERRORS, DecodeError, legs.InterfaceError) as error:
        raise CheckError(f"{file} cannot be run{how} by ONNX Runtime ({error})") from error


def folder_rows(
    baseline: Baseline, out: Path, options: Options, settings: dict[str, Any]
) -> Sequence[tuple[Path, Row]]:
    """The legs of the shipped graphs and of other files, each with its file; ``settings`` takes in the runtime's."""
    config, limits, graphs = baseline.ledger.config, baseline.limits, graphs_of(out, baseline.ledger.config.head)
    named = None if len(graphs) == 1 else list(graphs)

    def runtime(precision: str, in_place: bool = False) -> legs.Leg:
        asked = precision if named else None
        if config.head != "lm":
            model = load_head(out, options.provider, precision=asked)
            settings.update(describe(model.session))
            return legs.shipped_head(model)
        generating = load(out, options.provider, precision=asked, in_place=in_place)
        settings.update(describe(generating.session))
        return legs.shipped(generating)

    def lossy(precision: str) -> Row:
        return Row(precision_leg(precision), Kind.LOSSY, partial(runtime, precision), budget=BUDGET_OF[precision])

    def in_place(precision: str) -> Row:
        """As ``generate`` runs it; one precision stands for all, whose weights alone differ."""
        row = lossy(precision) if precision != FULL else Row(RUNTIME_LEG, Kind.NUMERICS, partial(runtime, FULL))
        return replace(row, name=f"{row.name}{IN_PLACE}", open=partial(runtime, precision, in_place=True))

    def widened() -> legs.Leg:
        return legs.graph(widened_session(graphs[FULL]), config, np.float64)

    def other(file: Path) -> Row:
        return Row(os.fspath(file), Kind.OTHER, lambda: legs.graph(graph_session(file), config))

    cases = (lambda case: True) if baseline.level is Level.FULL else short
    exact = [
        Row(RUNTIME_LEG, Kind.NUMERICS, partial(runtime, FULL)),
        Row(FLOAT64_LEG, Kind.SEMANTICS, widened, limit=limits.graph_float64, cases=cases),
    ]
    asked = config.head == "lm" and options.provider == "cpu"
    can = ((file, in_place(name)) for name, file in graphs.items() if asked and rewritten(file) is not None)
    return [
        *((graphs[FULL], row) for row in exact if FULL in graphs),
        *((file, lossy(precision)) for precision, file in graphs.items() if precision != FULL),
        *islice(can, 1),
        *((file, other(file)) for file in options.also),
    ]


def _legs(
    baseline: Baseline, out: Path, options: Options, settings: dict[str, Any], step: Callable[[str], None]
) -> list[Measured]:
    measured = []
    for file, row in folder_rows(baseline, out, options, settings):
        step(row.name)
        with running(file, " in float64" if row.name == FLOAT64_LEG else ""):
            measured.append(baseline.measure(row))
    return measured


def half_precision(baseline: Baseline, step: Callable[[str], None]) -> tuple[Measured, str | None]:
    """What float16 makes of the model where every operation rounds to it, and what overflows."""
    rounded = Rounded(baseline.ledger.config, baseline.ledger.weights)
    row = Row(HALF_LEG, Kind.LOSSY, rounded.open, budget="float16")
    step(row.name)
    return baseline.measure(row), rounded.sentence


def _explain(
    baseline: Baseline, graph_file: Path, guilty: list[Measured], judge: Judge, cache: TapCache
) -> tuple[Localisation, Diagnosis | None]:
    """Where the error arises, and of a mismatch the cause."""
    config, case = baseline.ledger.config, _telling_case(baseline, guilty, judge)
    truth, huggingface = cache[case]
    exact = graph_taps(graph_file, config, case, float64=True)
    rounded = graph_taps(graph_file, config, case, float64=False)
    located = localise(tap_names(config), case, truth, rounded, exact, huggingface)
    if not guilty:
        return located, None
    means = any(not tap.onnx_float64 <= TAP_FLOAT64_LIMIT for tap in located.taps)
    suspect, limit = (exact, FLOAT64_LIMIT) if means else (rounded, FLOAT32_LIMIT)
    subject = Subject.GRAPH
    if any(leg.name.startswith(HUGGINGFACE) and leg.kind is Kind.SEMANTICS for leg in guilty):
        source = HuggingFace(baseline.checkpoint, baseline.ledger)
        other = huggingface_taps(source, case, torch.float64)
        if not means:
            subject, suspect, limit = Subject.HUGGINGFACE, other, FLOAT64_LIMIT
        elif _agree(other, exact, tap_names(config)[-1], case, baseline.limits.graph_float64 * baseline.scale):
            subject = Subject.REFERENCE
    return located, diagnose(Operations(baseline.ledger, case, suspect), limit, located, subject)


def _agree(a: Taps, b: Taps, tap: str, case: Case, limit: float) -> bool:
    """Whether two models put out the same in the end, where it is not padding."""
    if tap not in a or tap not in b or a[tap].shape != b[tap].shape:
        return False
    real = case.real_of(a[tap].shape[1])
    return bool(np.abs(a[tap][real] - b[tap][real]).max() <= limit)


def _telling_case(baseline: Baseline, guilty: list[Measured], judge: Judge) -> Case:
    """The first case in which a guilty leg is further off than it may be, the simple ones first.

    Of heads that pool a batch: a single row can be explained by anything.
    """
    for case in sorted(baseline.cases, key=lambda case: case.last is not None and len(case.last) == 1):
        for leg in guilty:
            distance = leg.distances.get(case.name)
            if distance is None:
                continue
            allowed = leg.limit * judge.scale or judge.limits.maximum * judge.floor({case.name: distance})[1]
            if not distance.total_maximum <= allowed:
                return case
    return baseline.cases[0]


def describe(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """With what the figures were made: versions, machine, and how ONNX Runtime was set."""
    provider = session.get_providers()[0]
    options = session.get_session_options()
    provider_options = session.get_provider_options().get(provider, {})
    return {
        "gpt2onnx": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "provider": provider,
        "provider_options": provider_options,
        # Multiplies in 10 bits of mantissa where it is on; only CUDA has it.
        "tf32": provider_options["use_tf32"] != "0" if "use_tf32" in provider_options else None,
        "graph_optimization": options.graph_optimization_level.name,
        "execution_mode": options.execution_mode.name,
        "threads": options.intra_op_num_threads or "one a core",
    }
