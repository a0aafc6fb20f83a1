"""What a graph can return beside the answer of its head: hidden states, attention, the output of any operation.

An operation has the name of its module in ``reference/``, such as ``h.3.mlp.act``. ``hidden_states.{i}`` and
``attentions.{i}`` are what transformers returns, under the names that Optimum gives them. Hidden states are the
embeddings and the output of each block, of the last one after ``ln_f``. Attentions are the probabilities with which
each query looks at each key.

A graph computes all else as it does without these outputs. They are float32 in every precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from converter.errors import ConfigError
from reference.config import GPT2Config
from reference.head import LM, SUMMARY

# The operations of a layer, in the order of the data flow.
OPERATIONS = (
    "ln_1", "attn.c_attn", "attn.q", "attn.k", "attn.v", "attn.sdpa", "attn.c_proj", "attn_residual",
    "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj", "mlp_residual",
)  # fmt: skip
BEFORE = ("wte", "wpe", "drop")

HIDDEN_STATES, ATTENTIONS = WORDS = ("hidden_states", "attentions")  # each stands for all that begin with it

ROWS = "batch_size*num_choices"  # of the body below a head that compares choices


def operations(config: GPT2Config) -> list[str]:
    """Return the name of every operation, in the order of the data flow."""
    layers = (f"h.{i}.{name}" for i in range(config.n_layer) for name in OPERATIONS)
    return [*BEFORE, *layers, *config.head_spec.taps]


def names(config: GPT2Config) -> list[str]:
    """Return everything that a graph can return, but for its cache."""
    states = (f"{HIDDEN_STATES}.{i}" for i in range(config.n_layer + 1))
    weights = (f"{ATTENTIONS}.{i}" for i in range(config.n_layer))
    return [*states, *weights, *operations(config)]


def parse(asked: str | Iterable[str]) -> tuple[str, ...]:
    """Return the patterns that a user gave: a list, or a text with commas between them."""
    parts = [asked] if isinstance(asked, str) else asked
    return tuple(dict.fromkeys(name.strip() for part in parts for name in part.split(",") if name.strip()))


def select(patterns: Iterable[str], config: GPT2Config) -> list[str]:
    """Return the names that one of the patterns means, without those that the head returns anyway."""
    wanted = [f"{pattern}.*" if pattern in WORDS else pattern for pattern in patterns]
    found = (name for name in names(config) if any(fnmatchcase(name, pattern) for pattern in wanted))
    return [name for name in found if name not in config.head_spec.outputs]


def refuse_unknown(patterns: Iterable[str], configs: Sequence[GPT2Config]) -> None:
    """Refuse a pattern that means nothing in any graph of a model.

    Raises:
        ConfigError: there is one.
    """
    there = list(dict.fromkeys(name for config in configs for name in names(config)))
    for pattern in patterns:
        if pattern not in WORDS and not any(fnmatchcase(name, pattern) for name in there):
            alone = [name for name in there if name.partition(".")[0] not in ("h", *WORDS)]
            raise ConfigError(
                f"outputs: nothing in this model is called {pattern!r}; there are {', '.join((*WORDS, *alone))}, "
                f"and in each of h.0 to h.{configs[0].n_layer - 1} {', '.join(OPERATIONS)}"
            )


def shape(name: str, config: GPT2Config) -> list[int | str]:
    """Return the dimensions of an output."""
    rows = ROWS if config.head_spec.compares else "batch_size"
    if name.startswith(f"{ATTENTIONS}."):
        keys = "total_sequence_length" if config.head == LM else "sequence_length"
        return [rows, config.n_head, "sequence_length", keys]
    own = {
        "attn.c_attn": 3 * config.n_embd,
        "mlp.c_fc": config.inner_dim,
        "mlp.act": config.inner_dim,
        "score": config.num_labels,
        "qa_outputs": 2,
        SUMMARY: 1,
        "multiple_choice_head.activation": 1,
    }
    pooled = config.head_spec.pools and name in config.head_spec.taps
    width = own.get(name.split(".", 2)[2] if name.startswith("h.") else name, config.n_embd)
    return [rows, 1 if pooled else "sequence_length", width]
