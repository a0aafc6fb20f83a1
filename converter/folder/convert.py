"""Write the model folder: the graph, the data file, and the files that clients need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter import tokenizer
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.errors import ConfigError, OutputError
from converter.files import reason
from converter.folder import manifest
from converter.folder.content import MODEL_IN_PLACE, graph_files, link_weights, write_companions, write_graphs
from converter.folder.staging import MANIFEST, bytes_in, recover, staged, tidy, together, written_files
from converter.weights import data_file, precisions, write
from converter.weights.data_file import Plan
from converter.weights.ledger import Ledger, read_source
from converter.weights.precisions import PRECISIONS, Precision
from reference.head import LM, head_of

DEFAULT_OPSET = 23  # the first with Attention; runs in ONNX Runtime 1.23 and newer

Progress = Callable[[int, int], None]  # work done, work in all


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        out: the model folder.
        ledger: what became of every tensor of the source.
        bytes_written: the size of the files that are new.
        notes: on what was taken for granted about the source.
        runs: whether it is a model folder, which ``generate`` runs.
        quantized: of each new precision of whole numbers the share of the parameters that became such.
    """

    out: Path
    ledger: Ledger = field(repr=False)
    bytes_written: int
    notes: tuple[str, ...] = ()
    runs: bool = True
    quantized: Mapping[str, float] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return sentences for the user."""
        why = tokenizer.unavailable(self.out) or "the source has none that can be read"
        verb = "generate" if self.ledger.config.head_spec.predicts else "run"
        hint = f"; without it {verb} takes token ids (--ids)" if self.runs else ""
        missing = f"{self.out} has no {tokenizer.TOKENIZER if self.runs else 'tokenizer'}, as {why}{hint}"
        there = (self.out / tokenizer.TOKENIZER).is_file() if self.runs else tokenizer.is_in(self.out)
        beyond = tokenizer.beyond(self.out, self.ledger.config.vocab_size) if self.runs else ()
        return (*self.ledger.warnings, *self.notes, *([] if there else [missing]), *beyond)


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    precision: str | Iterable[str] = "fp32",
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    in_place: bool = False,
    outputs: str | Iterable[str] = (),
    ignore: Iterable[str] = (),
    scan: bool = True,
    activation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    head: str | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a GPT-2 checkpoint into a model folder that ONNX Runtime and other ONNX clients open.

    ``out`` appears whole or not at all. One that holds other precisions of the same source keeps them. Without ``out``,
    ``in_place`` adds the graph to a local folder of float32 safetensors and copies no weights.

    Args:
        source: a folder or file of a known format (docs/sources.md), or a Hub id such as ``openai-community/gpt2``.
        precision: one or more of ``fp32``, ``fp16``, ``int8``, ``int4``: a list, or names with commas between them.
        opset: of the graph, from 17.
        force: replace an ``out`` (or, in place, a graph) that an earlier conversion wrote.
        outputs: what the graph returns too: ``hidden_states``, ``attentions``, and globs over the names of operations
            such as ``h.*.mlp.act``: a list, or names with commas between them.
        ignore: globs of tensors to leave aside.
        scan: refuse weights that hold NaN or infinity.
        activation: ``activation_function`` of a checkpoint that does not record it (nanoGPT's).
        adapter: the folder or Hub id of a PEFT LoRA adapter, to be merged into the source's weights.
        head: one of ``reference.head.ASKED``; by default that of the source.
        progress: called with the work done so far and the work in all (of no unit), by any thread.

    Raises:
        ConfigError, CheckpointError: the source is not a GPT-2, is incomplete or damaged; or the opset is out of range,
            or nothing in the model has the name of an output.
        OutputError: the folder cannot be written, or exists.
    """
    from converter.graph.build import MAX_OPSET, MIN_OPSET
    from converter.graph.outputs import parse, refuse_unknown

    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ConfigError(f"opset is {opset}; expected {MIN_OPSET} to {MAX_OPSET}")
    if in_place == (out is not None):
        raise OutputError("a conversion writes to OUT or works in place: give one of the two")
    asked = precisions.parse(precision)
    if in_place and [row.name for row in asked] != ["fp32"]:
        raise OutputError("--in-place copies no weights, and another precision changes them: give an OUT")
    read_as = SourceOptions(tuple(ignore), activation, adapter, head)
    checkpoint, ledger = read_source(source, read_as, bars=progress is not None)
    inside = parse(outputs)
    refuse_unknown(inside, [part.config for part in ledger.per_graph])
    if out is None:
        return _convert_in_place(checkpoint, ledger, opset, force, inside, scan, progress)
    layouts = {row: write.plan(ledger, row) for row in asked}
    counter = data_file.Counter(progress)
    looked_at = counter.scan(ledger.weights, scan)
    written = {row: counter.part(layout.nbytes, _effort(row, layout, ledger)) for row, layout in layouts.items()}
    mark = manifest.fingerprint(ledger)
    with _writable(Path(out)):
        recover(Path(out))
    kept = {} if force else _kept(Path(out), mark, asked)
    with staged(Path(out), force or bool(kept)) as stage:
        (stage / "onnx").mkdir()
        there = dict(kept)
        for row, layout in layouts.items():
            write.write(stage / row.data, layout, ledger, row, looked_at if row is asked[0] else None, written[row])
            places = write.places(layout, row)
            there[row.name] = write_graphs(stage, ledger, row, places, layout.nbytes, opset, outputs=inside)
        for facts in kept.values():
            _carry_over(Path(out), stage, [facts["data"], *facts["heads"].values()])
        link_weights(stage, there)
        remarks = write_companions(checkpoint, stage, ledger, there, mark)
        new_bytes = bytes_in(stage) - sum(facts["bytes"] for facts in kept.values())
    quantized = {row.name: there[row.name]["quantized"] for row in asked if row.scheme}
    return Conversion(Path(out), ledger, new_bytes, checkpoint.notes + remarks, quantized=quantized)


def _effort(row: Precision, layout: Plan, ledger: Ledger) -> float:
    """Return the work for one byte of a precision. Every weight takes its time, however few bytes it becomes."""
    return data_file.WRITE_EFFORT * row.effort * 4 * ledger.parameters / layout.nbytes


def _kept(out: Path, mark: str, asked: Iterable[Precision]) -> dict[str, dict[str, Any]]:
    """Return what the manifest of ``out`` says of the precisions that it holds already.

    Raises:
        OutputError: it was made of another source, or holds one of those that are ``asked`` for.
    """
    values = manifest.read(out) if out.is_dir() else {}
    there = values.get("precisions")
    if not isinstance(there, dict) or manifest.TARGET in values:
        return {}
    source = values.get("source", {})
    if source.get("fingerprint") != mark:
        raise OutputError(
            f"{out} exists and was made of another checkpoint ({source.get('name')}); choose another OUT, or "
            f"--force to replace it"
        )
    for row in asked:
        if row.name in there:
            others = ",".join(name for name in PRECISIONS if name not in there)
            add = f"add another precision to it (--precision {others}), " if others else ""
            raise OutputError(
                f"{out} exists and holds {row.name} already; {add}choose another OUT, or --force to replace it"
            )
    return there


def _carry_over(out: Path, stage: Path, names: Iterable[str]) -> None:
    """Give files that stay a second name in the new folder. It is their only name once the old folder is gone."""
    for name in names:
        try:
            os.link(out / name, stage / name)
        except OSError:  # a file system without links
            shutil.copyfile(out / name, stage / name)


def _convert_in_place(
    checkpoint: Checkpoint,
    ledger: Ledger,
    opset: int,
    force: bool,
    outputs: tuple[str, ...],
    scan: bool,
    progress: Progress | None,
) -> Conversion:
    folder = checkpoint.folder
    _refuse_in_place(checkpoint, ledger)
    with _writable(folder, "; convert to a folder of its own (OUT)"):
        tidy(folder)
        before = {entry.name for entry in folder.iterdir()}
        replaceable = written_files(folder) if MANIFEST in before and force else set()
        for name in sorted(set(graph_files(ledger, MODEL_IN_PLACE).values()) & before - replaceable):
            raise OutputError(f"{folder / name} exists; --force replaces one that gpt2onnx wrote")
        if scan:
            data_file.scan_all(ledger.weights, data_file.Counter(progress).scan(ledger.weights))
        with together(folder) as stage:
            places = {name: (w.file.name, w.offset, w.nbytes) for name, w in ledger.weights.items()}
            data = ", ".join(sorted({weight.file.name for weight in ledger.weights.values()}))
            size = sum(weight.nbytes for weight in ledger.weights.values())
            facts = write_graphs(stage, ledger, PRECISIONS["fp32"], places, size, opset, MODEL_IN_PLACE, outputs)
            there, mark = {"fp32": {**facts, "data": data}}, manifest.fingerprint(ledger)
            remarks = write_companions(checkpoint, stage, ledger, there, mark, keep=before - replaceable)
            for name in {entry.name for entry in stage.iterdir()} & before - replaceable:
                _remove(stage / name)  # the user's own
            new_bytes = bytes_in(stage)
    return Conversion(folder, ledger, new_bytes, checkpoint.notes + remarks)


@contextmanager
def _writable(folder: Path, mend: str = "") -> Iterator[None]:
    """Say in a sentence that a folder cannot be written to.

    Raises:
        OutputError: it cannot.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {reason(error)}{mend}") from error


def _remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refuse_in_place(checkpoint: Checkpoint, ledger: Ledger) -> None:
    """Refuse a source that a graph cannot point into: its bytes must be right as they lie, in files that ONNX opens.

    Raises:
        OutputError: a weight is not float32, or lies in something else than a regular safetensors file.
    """
    if not checkpoint.weight_file.startswith("model.safetensors"):
        raise OutputError(
            f"--in-place needs safetensors; {checkpoint.folder / checkpoint.weight_file} is not: give an OUT"
        )
    stated = head_of(checkpoint.config_values.get("architectures")) or LM
    if stated != ledger.config.head:
        raise OutputError(
            f"--in-place leaves config.json as it is, by which the head is {stated} and not {ledger.config.head}: "
            f"give an OUT"
        )
    if checkpoint.adapter is not None:
        raise OutputError("--in-place copies no weights, and a merged adapter changes them: give an OUT")
    for weight in ledger.weights.values():
        if weight.dtype != "float32" or not weight.in_file:
            raise OutputError(
                f"--in-place needs float32; {weight.file}: tensor {weight.name} is {weight.dtype}: give an OUT"
            )
    for file in sorted({weight.file for weight in ledger.weights.values()}):
        kind = "a symbolic link" if file.is_symlink() else "a hard link" if file.stat().st_nlink > 1 else None
        if kind:
            raise OutputError(f"--in-place needs regular files, as onnx refuses links; {file} is {kind}: give an OUT")
