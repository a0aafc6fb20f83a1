"""What lies beside the graph and decides how a client uses it: the config and the tokenizer, against the source's."""

from __future__ import annotations

from pathlib import Path

from converter import tokenizer
from converter.checkpoint.config import parse_config
from converter.checkpoint.source import Checkpoint
from converter.data import HELD_OUT
from converter.errors import CheckError
from converter.files import read_json
from converter.weights.ledger import Ledger

# A folder that differs in one of these is another model, and nothing can be compared.
DIMENSIONS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_dim", "num_labels")

# One that differs in one of these claims to compute something else than its graph.
FLAGS = (
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
    "pad_token_id",
    "summary_activation",
)

# By these the numbers of a classification become an answer.
ANSWERS = ("id2label", "problem_type")


def compare_config(folder: Path, checkpoint: Checkpoint, ledger: Ledger) -> list[str]:
    """What ``config.json`` of a model folder says otherwise than the source.

    Raises:
        CheckError: it describes a model of other dimensions.
    """
    values = read_json(folder / "config.json")
    config = parse_config(values, folder / "config.json")
    if ledger.config.head not in (config.head, *config.head_spec.graphs):
        raise CheckError(
            f"{folder} is another model than {checkpoint.folder}: its head is {config.head}, the source's "
            f"{ledger.config.head}; --head says which one is meant"
        )
    for name in DIMENSIONS:
        ours, theirs = getattr(config, name), getattr(ledger.config, name)
        if ours != theirs:
            raise CheckError(
                f"{folder} is another model than {checkpoint.folder}: its {name} is {ours}, the source's {theirs}"
            )
    faults = []
    for name in FLAGS:
        ours, known = getattr(config, name), [getattr(ledger.config, name)]
        if name == "tie_word_embeddings":  # in place the config is the source's own, whatever the tensors are
            known.append(checkpoint.config.tie_word_embeddings)
        if ours not in known:
            faults.append(f"config.json says {name} {ours!r}; the source has {known[0]!r}")
    for name in ANSWERS if config.head_spec.labelled else ():
        if values.get(name) != checkpoint.config_values.get(name):
            faults.append(f"config.json says {name} {values.get(name)!r}; the source has another")
    return faults


def compare_tokenizer(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Whether text becomes the same tokens.

    Raises:
        CheckError: a library that reads the source's tokenizer is not installed.
    """
    ours, theirs = tokenizer.load(folder), tokenizer.from_source(checkpoint.companions, checkpoint.tokenizer)
    why = tokenizer.unavailable(checkpoint.folder)
    if theirs is None and ours is not None and why:
        raise CheckError(f"the tokenizer cannot be compared: {why}")
    if ours is None or theirs is None:
        return [] if ours is theirs else ["the tokenizer is the source's only in part: one of the two has none"]
    if ours.get_vocab() != theirs.get_vocab():
        return ["the tokenizer's vocabulary is not the source's"]
    text = HELD_OUT.read_text(encoding="utf-8")
    return [] if ours.encode(text).ids == theirs.encode(text).ids else ["the tokenizer splits text otherwise"]
