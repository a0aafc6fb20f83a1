"""Write what a model folder holds beside its weights: graphs, config, tokenizer, model card and manifest.

``derive`` writes all of it again without the weights: a conversion gives the same bytes every time, so that ``check``
can hold a folder against it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from converter import tokenizer
from converter.checkpoint.source import Checkpoint
from converter.errors import OutputError
from converter.files import naming_originals, read_json, write_json
from converter.folder import card, manifest
from converter.folder.clients import config_json, genai_config, genai_remarks, token_ids
from converter.folder.staging import second_graph
from converter.version import VERSION
from converter.weights import write
from converter.weights.ledger import Ledger
from converter.weights.precisions import PRECISIONS, Precision

MODEL_IN_PLACE = "model.onnx"  # beside the weights it points into
WEIGHTS_LINK = "model.safetensors"  # to a data file, for transformers


def graph_files(ledger: Ledger, model: str) -> dict[str, str]:
    """Return the head of each graph that a model becomes, and its file; ``model`` is the first file."""
    first, *others = ledger.per_graph
    return {first.config.head: model} | {part.config.head: second_graph(Path(model)).as_posix() for part in others}


def link_weights(stage: Path, there: Iterable[str]) -> None:
    """Name the weights of a floating-point precision as transformers does, so that it opens the folder too."""
    plain = next((row for row in PRECISIONS.values() if row.name in there and row.scheme is None), None)
    if plain is not None and os.name == "posix":  # elsewhere a link asks for privileges
        (stage / WEIGHTS_LINK).symlink_to(plain.data)


def write_graphs(
    stage: Path,
    ledger: Ledger,
    row: Precision,
    places: Mapping[str, tuple[str, int, int]],
    size: int,
    opset: int,
    model: str | None = None,
    outputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the graphs of one precision, and return what the manifest says of it.

    Args:
        places: where the graph finds its initializers: name → file, offset, length.
        size: the bytes that the weights take.
        model: the first graph's file, if it is not the precision's own.
        outputs: what the graphs return beside the answers of their heads: patterns of ``converter.graph.outputs``.
    """
    from converter.graph.build import build
    from converter.graph.layers import ACCURACY_LEVEL, layers_of

    heads = graph_files(ledger, model or row.model)
    for part in ledger.per_graph:
        file = stage / heads[part.config.head]
        file.write_bytes(build(part.config, places.__getitem__, opset, layers_of(row), outputs))
    size += sum((stage / name).stat().st_size for name in heads.values())
    facts: dict[str, Any] = {
        "model": model or row.model,
        "heads": heads,
        "data": row.data,
        "opset": opset,
        "bytes": size,
    }
    if outputs:
        facts[manifest.OUTPUTS] = list(outputs)
    if row.scheme is not None:
        share = write.quantized_share(ledger.config, row.scheme)
        if not share:
            raise OutputError(f"{row.name} would quantize nothing of this model: choose another precision")
        facts |= {"quantized": round(share, 4), "blocks": asdict(row.scheme), "accuracy_level": ACCURACY_LEVEL}
    return facts


def write_companions(
    checkpoint: Checkpoint,
    stage: Path,
    ledger: Ledger,
    there: Mapping[str, Mapping[str, Any]],
    mark: str,
    keep: Iterable[str] = (),
) -> tuple[str, ...]:
    """Write all files beside graph and weights. Files in ``keep`` are read but not changed.

    Args:
        there: the precisions of the folder, and what the manifest says of each.
        mark: the source's fingerprint.

    Returns:
        Sentences for the user, on the tokenizer and on clients.
    """
    config, there = ledger.config, {name: dict(there[name]) for name in PRECISIONS if name in there}
    first = next(iter(there))
    described = config_json(checkpoint.config_values, config, [PRECISIONS[name] for name in there])
    write_json(stage / "config.json", described)  # may name the tokenizer's class
    manifest.carry(checkpoint, stage)
    with naming_originals(manifest.originals(checkpoint, stage)):
        remarks = tokenizer.complete(stage, config.n_positions, keep, config.vocab_size)
    generation = read_json(stage / "generation_config.json") if (stage / "generation_config.json").is_file() else {}
    write_json(stage / "config.json", described)
    if config.head_spec.predicts:
        ids = token_ids(config, checkpoint.config_values, generation)
        write_json(stage / "genai_config.json", genai_config(config, ids, there[first]["model"]))
        remarks += genai_remarks(config, ids)
    facts = {key: there[first][key] for key in ("model", "heads", "opset")} | {"precision": first, "precisions": there}
    values = manifest.describe(checkpoint, ledger, facts, versions(), mark)
    (stage / "README.md").write_text(card.render(values, config), encoding="utf-8")
    manifest.write(stage, values, keep)
    return remarks


WRITERS = ("onnx", "onnxscript", "tokenizers")  # packages on which the content of a folder may depend


def versions() -> dict[str, str]:
    """Return the versions of what writes a folder."""
    return {"gpt2onnx": VERSION, **{name: metadata.version(name) for name in WRITERS}}


def derive(
    checkpoint: Checkpoint,
    ledger: Ledger,
    precisions: Mapping[str, Mapping[str, Any]],
    places: Mapping[str, Mapping[str, tuple[str, int, int]]],
    stage: Path,
    keep: Iterable[str] = (),
) -> None:
    """Write into an empty folder what a conversion writes; the files of the weights are empty.

    Args:
        precisions: what the manifest of the folder says of each: ``opset``, ``model`` and ``outputs`` are read.
        places: for each precision, where the graph finds its initializers: name → file, offset, length.
        keep: the files of a source that was converted in place; they are read but not changed.
    """
    (stage / "onnx").mkdir()
    there: dict[str, dict[str, Any]] = {}
    for name, facts in precisions.items():
        row, where = PRECISIONS[name], places[name]
        size = max(offset + length for _, offset, length in where.values())
        in_place = facts["model"] == MODEL_IN_PLACE
        if in_place:
            size = sum(length for *_, length in where.values())
        asked = facts.get(manifest.OUTPUTS, ())
        there[name] = write_graphs(stage, ledger, row, where, size, facts["opset"], facts["model"], asked)
        if in_place:
            there[name]["data"] = ", ".join(sorted({file for file, *_ in where.values()}))
        else:
            (stage / row.data).touch()
    if not keep:
        link_weights(stage, there)
    write_companions(checkpoint, stage, ledger, there, manifest.fingerprint(ledger), keep)
