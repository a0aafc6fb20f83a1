"""The hyper-parameters of GPT-2, without torch.

Names, defaults and meanings are those of ``transformers.GPT2Config``. Keys that are not architecture (token ids,
generation defaults, names of labels) are left to the code that needs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from reference.errors import ConfigError
from reference.head import ASKED, HEADS, LM, HeadSpec, head_of

# Every activation of transformers' ACT2FN except xielu: no GPT-2 checkpoint has its three learned parameters.
ACTIVATION_NAMES = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
)  # fmt: skip

# What float32 holds without loss: normal numbers.
FLOAT32_MIN, FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127

# Fields that depend on the head: ``from_dict`` does not simply take their keys.
HEAD_FIELDS = ("head", "num_labels", "pad_token_id", "summary_activation")

# The file of a state dict of ``GPT2(config)`` (reference/model.py), and the key of its metadata that holds the config.
STATE_FILE = "reference.safetensors"
STATE_KEY = "gpt2onnx.reference"


@dataclass(frozen=True)
class GPT2Config:
    """One GPT-2 architecture (Radford et al. 2019). The defaults are those of the 124 M model.

    Raises:
        ConfigError: a size is not a positive integer, ``n_head`` does not divide ``n_embd``, a flag is not a
            boolean, a number is out of range, or the activation is unknown.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # None: 4 * n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # divide q·k by sqrt(head_dim)
    scale_attn_by_inverse_layer_idx: bool = False  # also by the layer's number, from 1 (Mistral's GPT-2s)
    reorder_and_upcast_attn: bool = False  # q·k and softmax in float32 when the model is in half precision
    tie_word_embeddings: bool = True  # the output head is wte itself
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    head: str = LM
    num_labels: int = 2  # for a classification
    pad_token_id: int | None = None  # a text's classification skips it to find the last token
    summary_activation: str | None = None  # applied to the score of a choice

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "num_labels"):
            value = getattr(self, name)
            if name == "n_inner" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is {value!r}; expected true or false")
            if field.type == "float" and not (_is_number(value) and value >= 0):
                raise ConfigError(f"{field.name} is {value!r}; expected a finite number, 0 or more")
        if self.layer_norm_epsilon and not FLOAT32_MIN <= self.layer_norm_epsilon <= FLOAT32_MAX:
            raise ConfigError(
                f"layer_norm_epsilon is {self.layer_norm_epsilon!r}; expected a number that float32 holds, as models "
                f"are run in it"
            )
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a probability")
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"n_head {self.n_head} does not divide n_embd {self.n_embd}: heads must be of equal width"
            )
        for name in ("activation_function", "summary_activation"):
            value = getattr(self, name)
            if name == "summary_activation" and (value is None or value == ""):
                continue
            if value not in ACTIVATION_NAMES or (name == "summary_activation" and value == "prelu"):
                raise ConfigError(f"{name} {value!r} is unknown; expected one of {', '.join(ACTIVATION_NAMES)}")
        if self.pad_token_id is not None and type(self.pad_token_id) is not int:
            raise ConfigError(f"pad_token_id is {self.pad_token_id!r}; expected an integer")
        if self.head not in HEADS:
            raise ConfigError(f"head {self.head!r} is unknown; expected one of {', '.join(ASKED)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """Return the config that a ``config.json`` describes. Keys that are not fields here are ignored.

        ``architectures`` names the head, whatever framework saved it. ``id2label`` gives the number of labels.
        """
        known = {field.name for field in fields(cls)} - set(HEAD_FIELDS)
        taken = {name: value for name, value in values.items() if name in known}
        head = HEADS[head_of(values.get("architectures")) or LM]
        taken["head"] = head.name
        taken |= {name: values.get(name) for name in head.reads}
        if head.labelled:
            names = values.get("id2label")
            taken["num_labels"] = len(names) if isinstance(names, dict) and names else values.get("num_labels", 2)
        return cls(**taken)

    @property
    def head_spec(self) -> HeadSpec:
        """Return the record of the head."""
        return HEADS[self.head]

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        """Return the width of the MLP's hidden layer."""
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    def attn_scale(self, layer_idx: int) -> float:
        """Return the factor of q·k in layer ``layer_idx``, counted from 0."""
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer_idx + 1) if self.scale_attn_by_inverse_layer_idx else scale


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False
