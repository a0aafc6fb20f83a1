"""Compare a model folder with its source: ``check``. It needs torch and transformers, and imports them when called."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from converter.checkpoint import hub
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.errors import CheckError, OutputError
from converter.folder import certificate as certificates
from converter.folder import manifest
from converter.folder.signature import Sign, signer
from converter.folder.staging import MANIFEST, settle
from converter.weights.ledger import Ledger, read_source

if TYPE_CHECKING:
    from converter.parity.exports.asked import Asked
    from converter.parity.legs.cases import Level
    from converter.parity.report.report import Report
    from converter.parity.verdict.limits import Limits

NEEDED = ("torch", "transformers")
PAGE_NEEDED, PLOT_NEEDED = ("jinja2", "matplotlib"), ("matplotlib",)

# Called with the name of a step, the steps done, and their total. Within a long step a fraction of it counts as done.
Progress = Callable[[str, float, int], None]


def available() -> bool:
    """Tell whether ``check`` can run, that is, whether the extra ``check`` is installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def require(needed: Sequence[str] = NEEDED, what: str = "check") -> None:
    """Check that the packages in ``needed`` are installed; ``what`` needs them.

    Raises:
        CheckError: a package is missing.
    """
    if not all(importlib.util.find_spec(name) for name in needed):
        raise CheckError(f"{what} needs {' and '.join(needed)}; install them with: pip install 'gpt2onnx[check]'")


def check(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    level: str = "quick",
    ignore: Iterable[str] = (),
    provider: str = "cpu",
    text: str | os.PathLike[str] | None = None,
    limits: Mapping[str, float] | None = None,
    files: bool = True,
    allow: Iterable[str] = (),
    layers: bool = False,
    also: Iterable[str | os.PathLike[str]] = (),
    inputs: Mapping[str, str] | None = None,
    certify: bool = True,
    certificate: str | os.PathLike[str] | None = None,
    sign: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    head: str | None = None,
    own_process: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Report:
    """Judge whether ``out`` computes what ``source`` computes; returns the report.

    ``out`` is a model folder of gpt2onnx, or an ONNX file or folder of another exporter. Files of others are known by
    their inputs and outputs, and their weights by the numbers.

    Weights are compared bit for bit. The mathematics of Hugging Face, the from-scratch reference and the shipped graph
    is compared in float64. A float32 leg is compared with the noise floor: how far Hugging Face's own float32 is from
    the float64 truth. On a mismatch, the operation that is wrong is searched for, and hypotheses about its cause are
    tried.

    Args:
        source: see ``convert``.
        level: ``quick``, or ``full``, which runs every leg on every case, adds half precisions, and reads more text.
        ignore: the globs that ``convert`` was given.
        provider: the provider of ONNX Runtime for the graphs as they are. Those in float64 run on the CPU.
        text: a file with the text to feed, plain or JSONL. The default is a held-out text that comes with gpt2onnx.
        limits: values that replace defaults of ``converter.parity.verdict.limits.Limits``, by name.
        files: also compare initializers, config and tokenizer; otherwise the logits alone decide.
        allow: files, or keys of JSON files (``FILE:KEY``), that may differ from what ``convert`` writes.
        layers: compare every operation, even on a match.
        also: more exports of other programs to compare with the source, files or folders.
        inputs: what inputs and outputs of another exporter's file mean, by their names, such as
            ``{"x": "input_ids"}``. It is needed where neither name nor type tells.
        activation, adapter, head: see ``convert``.
        certify: write the verdict and the files' hashes into the folder's manifest, for ``verify``. Nothing is
            written into a folder of another exporter.
        certificate: a file to write them to instead.
        sign: a file with the private key that signs them.
        own_process: whether the process does nothing else, so that its memory allocator may be set for the check,
            and the Hub is not asked again.
        progress: called before each step, and within long ones.

    Raises:
        CheckError: torch or transformers is missing, ``sign`` holds no key, options do not go together, or ``out`` is
            a model of other dimensions.
        GPT2Error: the source or ``out`` cannot be opened, its interface is unknown, or the manifest cannot be read.
    """
    require()
    from converter.parity.exports.asked import ask, refuse_unknown
    from converter.parity.legs.cases import Level
    from converter.parity.legs.leg import on_threads
    from converter.parity.legs.memory import LARGE_MODEL, keep_large_blocks
    from converter.parity.legs.widen import threads_for
    from converter.parity.verdict.limits import Limits
    from converter.parity.verdict.reproduction import parse_allowed
    from converter.runtime.exports.files import is_export
    from converter.runtime.ort import provider_name

    began, target = time.monotonic(), Path(out)
    judged = Limits.from_settings(limits or {}), Level.parse(level)
    allowed = parse_allowed(allow)
    runs_on = provider_name(provider)
    if not target.is_file():
        settle(target)
    theirs = is_export(target)
    _refuse_idle(target, theirs, bool(allowed or layers), files, certify, certificate is not None, sign is not None)
    signs = None if sign is None else signer(Path(sign))
    checkpoint, ledger = read_source(source, SourceOptions(tuple(ignore), activation, adapter, head))
    if own_process:
        hub.go_offline()
        if ledger.parameters < LARGE_MODEL:
            keep_large_blocks()
    # What cannot be compared is refused before anything is computed.
    config = ledger.per_graph[0].config
    others = tuple(ask(Path(other), config, inputs, runs_on) for other in also)
    export = ask(target, config, inputs, runs_on) if theirs else None
    refuse_unknown(inputs or {}, [one for one in (export, *others) if one is not None])
    opened = Opened(checkpoint, ledger, None if text is None else Path(text), *judged, others, progress)
    with on_threads(threads_for(ledger.parameters)):
        if export is not None:
            report = check_export(opened, export, files, began)
        else:
            report = check_folder(opened, target, provider, files, allowed, layers)
    report = replace(report, source=os.fspath(source), seconds=time.monotonic() - began)
    return _certified(report, opened, target, certify and files, certificate, signs)


def _refuse_idle(
    target: Path, theirs: bool, of_folder: bool, files: bool, certify: bool, certificate: bool, sign: bool
) -> None:
    """Refuse options that would do nothing, so that nobody relies on them.

    Args:
        theirs: whether ``target`` is an export of another program.
        of_folder: whether there are options for model folders of gpt2onnx.
        files, certify, certificate, sign: whether these options of ``check`` are on.

    Raises:
        CheckError: one would.
    """
    if theirs and of_folder:
        raise CheckError(f"--allow and --layers are for model folders of gpt2onnx; {target} is none: omit them")
    if (certificate or sign) and not files:
        idle = " and ".join(name for name, given in (("--certificate", certificate), ("--sign", sign)) if given)
        raise CheckError(f"a check of the logits alone compares no files and certifies none: omit {idle}")
    if sign and not certificate and (theirs or not certify):
        raise CheckError("--sign signs a certificate, and none is written: add --certificate FILE, or omit --sign")


@dataclass(frozen=True)
class Opened:
    """A source, and how it is compared.

    Attributes:
        checkpoint, ledger: the source.
        text: the file with the text to feed; None for the held-out text.
        limits, level: the options of the check.
        also: exports to compare besides.
        progress: called before each step.
    """

    checkpoint: Checkpoint
    ledger: Ledger
    text: Path | None
    limits: Limits
    level: Level
    also: tuple[Asked, ...]
    progress: Progress


def check_folder(
    opened: Opened, folder: Path, provider: str, files: bool, allowed: tuple[tuple[str, str], ...], layers: bool
) -> Report:
    """Compare a model folder of gpt2onnx with its source; returns the report. See ``check``."""
    from converter.parity.baseline import measure_source, source_rows
    from converter.parity.examine import examine
    from converter.parity.exports.cases import Wanted
    from converter.parity.exports.examine import STEPS
    from converter.parity.folder_legs import Examination, folder_rows, graphs_of
    from converter.parity.legs.huggingface import HuggingFace
    from converter.parity.legs.steps import Steps
    from converter.parity.report.report import together
    from converter.parity.verdict.beside import compare_config
    from converter.parity.verdict.reproduction import other_versions

    checkpoint, ledger, limits, level = opened.checkpoint, opened.ledger, opened.limits, opened.level
    graphs_of(folder, ledger.per_graph[0].config.head)
    compare_config(folder, checkpoint, ledger)
    by_others = files and bool(other_versions(manifest.content(folder)))
    examination = Examination(provider, files, allowed=allowed, layers=layers, also=opened.also)
    # Exports of others are compared with the first graph only.
    first, *others = ledger.per_graph
    parts = [(first, replace(examination, whole=ledger)), *((part, replace(examination, also=())) for part in others)]
    of_source = [source_rows(HuggingFace(checkpoint, part), part, limits, level) for part, _ in parts]
    of_folder = [folder_rows(part, limits, level, folder, each) for part, each in parts]
    total = sum(map(len, of_source)) + sum(len(rows.legs) for rows in of_folder) + len(parts) * BESIDE_LEGS
    step = Steps(opened.progress, total + len(opened.also) * len(STEPS))
    reports: list[Report] = []
    for (part, each), its_source, its_folder in zip(parts, of_source, of_folder, strict=True):
        graphs = tuple(graphs_of(folder, part.config.head).values()) if by_others else ()
        wanted = Wanted(tuple(other.interfaces for other in each.also), part.config, graphs)
        baseline = measure_source(checkpoint, part, opened.text, limits, level, step, its_source, wanted)
        edited = any(report.exactness_faults or report.reproduction_faults for report in reports)
        reports.append(examine(baseline, folder, replace(each, edited=edited), step, rows=its_folder))
    return together(reports, [part.config.head for part, _ in parts])


def check_export(opened: Opened, export: Asked, files: bool, began: float) -> Report:
    """Compare an export of another program with its source; returns the report. See ``check``."""
    from converter.parity.baseline import measure_source, source_rows
    from converter.parity.exports.cases import Wanted
    from converter.parity.exports.examine import STEPS, report_on
    from converter.parity.legs.huggingface import HuggingFace
    from converter.parity.legs.steps import Steps

    part, all_of_them = opened.ledger.per_graph[0], (export, *opened.also)
    rows = source_rows(HuggingFace(opened.checkpoint, part), part, opened.limits, opened.level)
    # The steps besides are the truth and the verdict.
    step = Steps(opened.progress, len(rows) + len(all_of_them) * len(STEPS) + 2)
    wanted = Wanted(tuple(one.interfaces for one in all_of_them), part.config)
    source = opened.checkpoint, part, opened.text, opened.limits, opened.level
    return report_on(measure_source(*source, step, rows, wanted), export, opened.also, step, files, began)


# The steps of a check that are not legs: the truth, comparing the files, what is returned beside the answer, and the
# verdict with its causes.
BESIDE_LEGS = 4


def _certified(
    report: Report,
    opened: Opened,
    target: Path,
    certify: bool,
    file: str | os.PathLike[str] | None,
    sign: Sign | None,
) -> Report:
    """Write the certificate; returns the report, with a note if it cannot be written."""
    from converter.parity.report.quality import recorded
    from converter.runtime.exports.files import files_of

    ours = (target / MANIFEST).is_file()
    # A mismatch with another source must not replace the certificate that these files have earned.
    if file is None and not (certify and ours and (report.matches or not certificates.holds(target))):
        return report
    read = {weight.file for weight in opened.ledger.weights.values()} | opened.checkpoint.described_by
    legs = [{"name": leg.name, "rms": leg.rms, "maximum": leg.maximum, "fault": leg.fault} for leg in report.legs]
    facts = {"level": report.level, "limits": dict(report.limits), "legs": legs}
    facts |= {"allowed": list(report.allowed)} if report.allowed else {}
    facts |= {certificates.UNPROVEN: report.unproven} if report.unproven else {}
    said = read, report.matches, report.verdict, facts
    try:
        if file is not None:
            certificates.write_beside(Path(file), target, files_of(target), *said, sign)
        else:
            values, texts = recorded(target, report) if report.matches else (None, None)
            certificates.write(target, *said, values, texts, sign)
    except OutputError as error:
        return replace(report, notes=(*report.notes, f"no certificate: {error}"))
    return report
