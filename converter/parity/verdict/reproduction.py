"""Compare a model folder with what ``convert`` writes for the same source, file by file.

A conversion gives the same bytes every time. So everything but the weights is derived again and compared: the graphs
node by node, JSON key by key, other files line by line. No edit passes, whatever it does to the logits.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Any

from google.protobuf.message import DecodeError

from converter import onnx_file
from converter.checkpoint.config import parse_config
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.errors import CheckError, ConfigError
from converter.files import read_json, write_json
from converter.folder import card, manifest
from converter.folder.certificate import KEY as CERTIFICATE
from converter.folder.content import MODEL_IN_PLACE, WEIGHTS_LINK, derive, graph_files, versions
from converter.folder.staging import MANIFEST, files_in
from converter.graph.build import MAX_OPSET, MIN_OPSET
from converter.graph.outputs import refuse_unknown
from converter.parity.verdict.graphs import contrasted, differences, shown
from converter.runtime.exports.files import GENAI
from converter.weights import write
from converter.weights.data_file import Plan
from converter.weights.ledger import Ledger, read_source
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config

CARD = "README.md"
QUALITY = "quality"  # what a check writes into the manifest
SIZE = "bytes"  # of weights and graphs, in the manifest

# Files that --allow refuses: the graph and the weights are the model.
MODEL_SUFFIXES = (".onnx", ".onnx_data", ".safetensors")


@dataclass(frozen=True)
class Difference:
    """One thing in a folder that the source does not give.

    Attributes:
        file: the file, relative to the folder.
        text: a sentence without the file's name.
        key: the key in a JSON file, with dots between its parts; empty for the file as a whole.
        added: whether the folder has the file, and the source does not give it.
        carried: whether the file is carried over from the source, so that it is the same for every version of gpt2onnx.
    """

    file: str
    text: str
    key: str = ""
    added: bool = False
    carried: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True)
class Reproduction:
    """The result of the comparison.

    Attributes:
        faults: a sentence for each difference.
        allowed: the differences that the user accepts.
        notes: sentences that qualify the verdict.
        unproven: what was not compared or not judged, and why, as a part of the verdict; else empty.
        files: the number of files that were compared.
    """

    faults: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unproven: str = ""
    files: int = 0


def parse_allowed(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Split each ``FILE[:KEY]``; returns pairs of file and key.

    Raises:
        CheckError: a file is the graph or the weights.
    """
    pairs = []
    for one in given:
        file, _, key = one.partition(":")
        if file.endswith(MODEL_SUFFIXES):
            raise CheckError(f"{file} cannot be allowed to differ: graph and weights are the model; convert it again")
        pairs.append((PurePath(file).as_posix(), key))
    return tuple(pairs)


def reproduce(
    out: Path, checkpoint: Checkpoint, ledger: Ledger, allowed: tuple[tuple[str, str], ...] = ()
) -> Reproduction:
    """Compare a model folder with what a conversion of ``checkpoint`` writes; returns the result.

    Args:
        allowed: files and keys that may differ, as ``parse_allowed`` returns them.

    Raises:
        GPT2Error: a file of the source is damaged.
    """
    values = manifest.content(out)
    wrong = _unusable(values, [part.config for part in ledger.per_graph])
    if wrong:
        return Reproduction((f"{MANIFEST}: {wrong}",), files=1)
    head = parse_config(read_json(out / "config.json"), out / "config.json").head
    if head != ledger.config.head and not checkpoint.asked_head:
        return Reproduction((f"config.json: its head is {head}; the source has {ledger.config.head}",), files=1)
    if head != ledger.config.head:
        return Reproduction(unproven=f"files not compared, as their head is {head}, not {ledger.config.head}")
    found = list(_compared(out, checkpoint, ledger, values))
    source = values["source"]
    made_of, given = (source.get("weight_file"), checkpoint.weight_file)
    unproven, notes = list[str](), []
    if source.get("name") != checkpoint.name:
        notes.append(f"{MANIFEST} says that it was made of {shown(source.get('name'))}")
    if made_of != given:
        unproven.append(f"files beside the graph not compared, as they were made with {made_of} and not with {given}")
        found = [difference for difference in found if difference.file.endswith(MODEL_SUFFIXES)]
    judged = [difference for difference in found if not _is_allowed(difference, allowed)]
    accepted = tuple(str(difference) for difference in found if _is_allowed(difference, allowed))
    others = other_versions(values)
    faults = [difference for difference in judged if difference.carried or not _may_differ(difference, others)]
    otherwise = sorted({difference.file for difference in judged} - {difference.file for difference in faults})
    if _is_in_place(values) and _is_source(out, checkpoint) and GENAI in files_in(out) - set(values.get("files", ())):
        unproven.append(f"{GENAI} not compared, as {MANIFEST} calls it the source's own")
    if otherwise:
        writer = ", ".join(f"{name} {version}" for name, version in others.items())
        notes.append(f"by its manifest {writer} wrote {', '.join(otherwise)}, which this version writes otherwise")
        unproven.append(f"files of {writer}, which this version writes otherwise")
    return Reproduction(tuple(map(str, faults)), accepted, tuple(notes), "; ".join(unproven), len(files_in(out)))


def _unusable(values: Mapping[str, Any], configs: Sequence[GPT2Config]) -> str:
    """Return what in a manifest no conversion can have written; empty if a folder can be derived from it."""
    there = values.get("precisions")
    if not isinstance(there, dict) or not there:
        return f"precisions {shown(there)}; expected some of {', '.join(PRECISIONS)}"
    if manifest.TARGET in values:
        return f"{manifest.TARGET} {shown(values[manifest.TARGET])}, which no folder with a graph has"
    if fault := manifest.fault_of(values):
        return f"{fault.removeprefix(f'{MANIFEST}: ')} is not what gpt2onnx writes there"
    if "gpt2onnx" not in values.get("versions", ()) or "source" not in values:
        return "it lacks the versions that wrote it, or the source"
    for name, facts in there.items():
        row = PRECISIONS.get(name)
        if row is None or not isinstance(facts, dict):
            return f"precisions.{name} is none of {', '.join(PRECISIONS)}"
        if type(facts.get("opset")) is not int or not MIN_OPSET <= facts["opset"] <= MAX_OPSET:
            return f"precisions.{name}.opset {facts.get('opset')!r}; expected {MIN_OPSET} to {MAX_OPSET}"
        if facts.get("model") not in (row.model, MODEL_IN_PLACE):
            return f"precisions.{name}.model {facts.get('model')!r}; the source gives {row.model!r}"
        outputs = facts.get(manifest.OUTPUTS, [])
        if not isinstance(outputs, list) or not all(isinstance(pattern, str) for pattern in outputs):
            return f"precisions.{name}.outputs {shown(outputs)}; expected a list of names"
        try:
            refuse_unknown(outputs, configs)
        except ConfigError as error:
            return f"precisions.{name}.{error}"
    return ""


def _compared(out: Path, checkpoint: Checkpoint, ledger: Ledger, values: Mapping[str, Any]) -> Iterator[Difference]:
    """Derive the folder again, and yield each difference."""
    there: dict[str, Any] = values["precisions"]
    in_place = _is_in_place(values)
    source = values["source"]
    called = replace(
        checkpoint,
        name=source.get("name", checkpoint.name),
        adapter_name=source.get("adapter", checkpoint.adapter_name),
    )
    keep, places = _kept(out, checkpoint, ledger, values) if in_place else set(), {}
    for name in there:
        if in_place:
            places[name] = _places_in_place(out, checkpoint, ledger)
            continue
        layout, row = write.plan(ledger, PRECISIONS[name]), PRECISIONS[name]
        begin, wrong = _data_header(out / row.data, layout)
        yield from (Difference(row.data, text) for text in wrong)
        moved = begin - len(layout.header)
        places[name] = {
            key: (file, offset + moved, length) for key, (file, offset, length) in write.places(layout, row).items()
        }
    with tempfile.TemporaryDirectory(prefix="gpt2onnx-check-") as folder:
        stage = Path(folder)
        derive(called, ledger, there, places, stage, keep)
        expected = manifest.content(stage)
        _take_measured(expected, values)
        (stage / CARD).write_text(card.render(expected, ledger.config), encoding="utf-8")
        earned = {CERTIFICATE: values[CERTIFICATE]} if CERTIFICATE in values else {}
        write_json(stage / MANIFEST, expected | earned)
        yield from _files(out, stage, keep, checkpoint)
    if not _is_source(out, checkpoint):
        yield from _companions(out, keep, checkpoint)


def _is_in_place(values: Mapping[str, Any]) -> bool:
    """Tell whether a folder was converted in place, by its manifest."""
    return any(facts["model"] == MODEL_IN_PLACE for facts in values["precisions"].values())


def _is_source(out: Path, checkpoint: Checkpoint) -> bool:
    """Tell whether a folder is its own source: a conversion in place, compared with the folder that it lies in."""
    return os.path.realpath(out) == os.path.realpath(checkpoint.folder)


def _kept(out: Path, checkpoint: Checkpoint, ledger: Ledger, values: Mapping[str, Any]) -> set[str]:
    """Return the files of a folder converted in place that are the source's own, and that a conversion leaves alone.

    The manifest tells them from ours, and nobody vouches for it. So the graphs are never among them, nor, beside
    another source, what that does not have.
    """
    kept = files_in(out) - set(values.get("files", ())) - {MANIFEST} - set(graph_files(ledger, MODEL_IN_PLACE).values())
    if _is_source(out, checkpoint):
        return kept
    weights = {str(weight.file.relative_to(out)) for weight in read_source(out, SourceOptions())[1].weights.values()}
    return kept & (files_in(checkpoint.folder) | weights)


def _companions(out: Path, keep: set[str], checkpoint: Checkpoint) -> Iterator[Difference]:
    """Compare what a folder converted in place kept of its source with what another folder of that source has."""
    theirs = checkpoint.companions | {"config.json": checkpoint.folder / "config.json"}
    for name in sorted(keep & theirs.keys()):
        if theirs[name].is_file():
            yield from (replace(one, carried=True) for one in _file(out / name, theirs[name], name))


def _places_in_place(out: Path, checkpoint: Checkpoint, ledger: Ledger) -> dict[str, tuple[str, int, int]]:
    """Return where the graph of a folder converted in place finds its weights: in the folder's own files."""
    if not _is_source(out, checkpoint):
        _, ledger = read_source(out, SourceOptions(head=ledger.config.head))
    return {name: (weight.file.name, weight.offset, weight.nbytes) for name, weight in ledger.weights.items()}


def _take_measured(expected: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Copy what does not follow from the source: what a check measured, the versions that wrote the folder, and the
    size of a graph that another version of a library wrote.
    """
    others = other_versions(values)
    expected["versions"] = values["versions"]
    for name, facts in expected["precisions"].items():
        there = values["precisions"][name]
        facts |= {key: there[key] for key in (QUALITY, *([SIZE] if others else [])) if key in there}


def other_versions(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that wrote a folder, by name, where this process has others."""
    wrote, ours = values.get("versions"), versions()
    if not isinstance(wrote, dict):
        return {}
    return {name: wrote[name] for name in ours if name in wrote and wrote[name] != ours[name]}


# What each program writes, by the ends of the files' names. gpt2onnx itself writes all of them.
WRITTEN_BY = {
    "gpt2onnx": ("",),
    "onnx": (".onnx",),
    "onnxscript": (".onnx",),
    "tokenizers": ("tokenizer.json", "vocab.json", "merges.txt"),
}


def _may_differ(difference: Difference, others: Iterable[str]) -> bool:
    """Tell whether other versions of the programs in ``others`` may be the reason of a difference.

    They are never the reason of a file that is there besides, as anybody may have put it there.
    """
    return not difference.added and any(difference.file.endswith(WRITTEN_BY[name]) for name in others)


def _data_header(file: Path, layout: Plan) -> tuple[int, list[str]]:
    """Return where the weights begin in a data file, and how its header differs from the layout.

    The header may be padded to another length, which depends on where the source has its weights.
    """
    begin = len(layout.header)
    try:
        with file.open("rb") as opened:
            begin = 8 + int.from_bytes(opened.read(8), "little")
            header = opened.read(min(begin - 8, 2 * len(layout.header) + (1 << 16)))
        text = json.loads(header)
    except (OSError, ValueError) as error:
        return len(layout.header), [f"has no safetensors header ({error})"]
    wanted = layout.header[8:].rstrip(b" ")
    if header.rstrip(b" ") != wanted:
        differing = _json("", text, json.loads(wanted))
        return len(layout.header), [f"header: {next((d.text for d in differing), 'has another form')}"]
    size = begin + layout.nbytes - len(layout.header)
    if file.stat().st_size != size:
        return begin, [f"has {file.stat().st_size} bytes; the source gives {size}"]
    return begin, []


def _files(out: Path, stage: Path, keep: set[str], checkpoint: Checkpoint) -> Iterator[Difference]:
    """Compare the files of a folder with those of the derived one, ``stage``; yields each difference."""
    data = {row.data for row in PRECISIONS.values()}
    ours, theirs = files_in(out) - keep, files_in(stage) - keep
    for name in sorted(theirs - ours):
        if name != WEIGHTS_LINK:  # copies and archives may lose it, and only transformers opens it
            yield Difference(name, "is missing")
    for name in sorted(ours - theirs):
        if not any(part.startswith(".") for part in Path(name).parts):
            or_allow = "" if name.endswith(MODEL_SUFFIXES) else f", or accept it with --allow {name}"
            yield Difference(name, f"is no file of the conversion: remove it{or_allow}", added=True)
    for name in sorted(ours & theirs - data):
        carried = name in checkpoint.companions and filecmp.cmp(stage / name, checkpoint.companions[name], False)
        if name == WEIGHTS_LINK:
            yield from _link(out, stage)
        elif name.endswith(".onnx"):
            yield from _graph(out / name, stage / name, name)
        else:
            yield from (replace(one, carried=carried) for one in _file(out / name, stage / name, name))


def _link(out: Path, stage: Path) -> Iterator[Difference]:
    """Compare the link by which transformers finds the weights. A copy may have turned the link into a file."""
    wanted = os.readlink(stage / WEIGHTS_LINK)
    link = out / WEIGHTS_LINK
    if link.is_symlink():
        if os.readlink(link) != wanted:
            yield Difference(WEIGHTS_LINK, f"is a link to {os.readlink(link)}; the source gives {wanted}")
    elif not (out / wanted).is_file() or not filecmp.cmp(link, out / wanted, shallow=False):
        yield Difference(WEIGHTS_LINK, f"is another file than {wanted}")


def _graph(ours: Path, theirs: Path, name: str) -> Iterator[Difference]:
    try:
        found = onnx_file.read(ours)
    except (DecodeError, OSError, ValueError) as error:
        yield Difference(name, f"is no ONNX file ({error})")
        return
    for text in differences(found, onnx_file.read(theirs)):
        yield Difference(name, text)


def _file(ours: Path, theirs: Path, name: str) -> Iterator[Difference]:
    """Compare a file: JSON key by key, anything else line by line; yields each difference."""
    if not ours.is_file():  # a pipe, which would never end, or a link that leads nowhere
        yield Difference(name, "is no regular file")
        return
    found, wanted = ours.read_bytes(), theirs.read_bytes()
    if found == wanted:
        return
    if ours.suffix == ".json":
        try:
            values = json.loads(found.decode("utf-8"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            yield Difference(name, f"cannot be read as JSON ({error})")
            return
        yield from _json(name, values, json.loads(wanted))
        return
    lines = enumerate(zip_longest(_lines(found), _lines(wanted)), 1)
    at, (line, given) = next((at, pair) for at, pair in lines if pair[0] != pair[1])
    if line is None or given is None:
        has, gives = ("the end" if each is None else shown(each) for each in (line, given))
        yield Difference(name, f"line {at} is {has}; the source gives {gives}")
    else:
        yield Difference(name, f"line {at} is {contrasted(line, given)}")


def _lines(content: bytes) -> list[str]:
    """Return the lines of a text with their ends; bytes that are not UTF-8 stay apart from each other."""
    return content.decode("utf-8", errors="surrogateescape").splitlines(keepends=True)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object whose keys all differ. Readers disagree on a key that occurs twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} occurs twice")
    return values


def _json(file: str, ours: Any, theirs: Any, key: str = "") -> Iterator[Difference]:
    """Yield the values that differ, each with its key."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            path = f"{key}.{name}" if key else name
            if name not in theirs:
                yield Difference(file, f"{path} {shown(ours[name])}; the source gives none", path)
            elif name not in ours:
                yield Difference(file, f"lacks {path}; the source gives {shown(theirs[name])}", path)
            else:
                yield from _json(file, ours[name], theirs[name], path)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _json(file, one, other, f"{key}[{at}]")
    elif repr(ours) != repr(theirs):  # repr tells 1 from 1.0 and True, and two NaN are equal
        if isinstance(ours, list) and isinstance(theirs, list):
            yield Difference(file, f"{key} has {len(ours)} entries; the source gives {len(theirs)}", key)
        else:
            yield Difference(file, f"{key} {contrasted(ours, theirs)}", key)


def _is_allowed(difference: Difference, allowed: Iterable[tuple[str, str]]) -> bool:
    """Tell whether the user accepts a difference: the whole file, or a key with all that lies below it."""
    return any(
        file == difference.file and (not key or re.fullmatch(rf"{re.escape(key)}([.\[].*)?", difference.key, re.DOTALL))
        for file, key in allowed
    )
