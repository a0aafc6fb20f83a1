"""What the base of an adapter becomes before the merge: another head, a larger vocabulary, the adapter's tokenizer.

With PEFT the user does this: opens the base with a new head, resizes its embeddings. An adapter that holds all numbers
of what is new needs no such base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.folder import companions, links_out
from converter.checkpoint.foreign import IN_SHARDS
from converter.errors import CheckpointError
from reference.head import HEADS

if TYPE_CHECKING:
    from converter.checkpoint.source import Checkpoint
    from converter.checkpoint.tensor import LazyTensor

VOCABULARY = ("wte.weight", "lm_head.weight")

# How the companions of a checkpoint begin that are not a tokenizer's.
NO_TOKENIZER = ("generation_config", "LICENSE", "NOTICE")


def heads(replaced: Collection[str]) -> dict[str, str]:
    """Return the heads, beside the language model's, of which an adapter holds all numbers: module → head."""
    found = (head for head in HEADS.values() if head.known_by in replaced)
    return {head.known_by.removesuffix("weight"): head.name for head in found}


def with_its_head(checkpoint: Checkpoint, replaced: Mapping[str, LazyTensor]) -> Checkpoint:
    """Return the checkpoint with the head that an adapter brings, unless the user asked for another one."""
    found = [HEADS[head] for head in heads(replaced).values() if checkpoint.asked_head in (None, head)]
    if len(found) != 1:
        return checkpoint
    head, values = found[0], dict(checkpoint.config_values)
    shape = replaced[head.known_by].shape
    labels = _labels(shape[0]) if head.labelled and shape else {}
    if checkpoint.config.head == head.name and (not labels or checkpoint.config.num_labels == shape[0]):
        return checkpoint
    if len(values.get("id2label") or ()) != len(labels.get("id2label", ())):
        values = {key: value for key, value in values.items() if key != "num_labels"} | labels
    values["architectures"] = [head.class_name]
    return replace(checkpoint, config_values=values, asked_head=head.name).with_head(head.name)


def _labels(count: int) -> dict[str, Any]:
    """Return the names of labels that have none, as transformers makes them."""
    names = [f"LABEL_{i}" for i in range(count)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def vocab_size(file: Path, checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor], held: Collection[str]) -> int:
    """Return the size of the vocabulary after the merge.

    Args:
        file: the adapter's weights.
        tensors: what is merged so far, by canonical name.
        held: the names of those that the adapter holds.

    Raises:
        CheckpointError: the adapter holds the rows of embedding or head alone, and the other has another number.
    """
    matrices = VOCABULARY if checkpoint.config.head_spec.predicts else VOCABULARY[:1]
    rows = {name: tensors[name].shape[0] for name in matrices if name in tensors and tensors[name].shape}
    own = next((name for name in rows if name in held), None)
    if own is None:
        return checkpoint.config.vocab_size
    other = next((name for name in rows if rows[name] != rows[own]), None)
    if other is not None:
        raise CheckpointError(
            f"{file} holds {rows[own]} rows of {own}, and {other} of {checkpoint.name} has {rows[other]}: "
            f"{_resized(rows[own])}"
        )
    return rows[own]


def mend(module: str, tensor: LazyTensor, expected: tuple[int, ...]) -> str:
    """Return what to do about a part of an update that does not fit, as the end of a sentence; empty if unknown."""
    if 0 in tensor.shape:
        return f": {IN_SHARDS}"
    differing = [n for n, asked in zip(tensor.shape, expected, strict=False) if n != asked]
    vocabulary = (f"{module}.weight" in VOCABULARY) and len(differing) == 1 and differing[0] > max(expected)
    return f": {_resized(differing[0])}" if vocabulary else ""


def _resized(rows: int) -> str:
    return f"resize it with model.resize_token_embeddings({rows}), save it with its tokenizer, and give that as SOURCE"


def with_vocabulary(checkpoint: Checkpoint, size: int, folder: Path) -> Checkpoint:
    """Return the checkpoint with another number of tokens, and with the tokenizer beside the adapter, if it has one."""
    changed = replace(
        checkpoint,
        config=replace(checkpoint.config, vocab_size=size),
        config_values={**checkpoint.config_values, "vocab_size": size},
    )
    own = {name: folder / name for name in companions(folder) if not name.startswith(NO_TOKENIZER)}
    for name in links_out(own, folder):
        del own[name]
    if not own:
        return changed
    kept = {name: file for name, file in checkpoint.companions.items() if name.startswith(NO_TOKENIZER)}
    return replace(changed, companions={**kept, **own}, tokenizer=None)
