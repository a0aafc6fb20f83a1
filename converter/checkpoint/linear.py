"""What sources share that have GPT-2's projections as ``torch.nn.Linear``, [out, in], and no ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.errors import ConfigError

# Endings of Hugging Face's names: what Linear holds as [out, in] and Conv1D as [in, out].
PROJECTIONS = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


def config_values(sizes: Mapping[str, int], **others: Any) -> dict[str, Any]:
    """A ``config.json`` of these sizes, with GPT-2's constants unless ``others`` has them."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **sizes,
        "layer_norm_epsilon": 1e-5,
        **others,
    }


def integer(file: Path, values: Mapping[Any, Any], key: str, where: str) -> int:
    """A size that a checkpoint records.

    Raises:
        ConfigError: it is absent, or something else than a whole number; whether it is sensible is seen elsewhere.
    """
    value = values.get(key)
    if type(value) is not int:  # what else it is, is not shown: it may be a structure without end
        found = "lacks" if value is None else f"has a {type(value).__name__} for"
        raise ConfigError(f"{file}: {where} {found} {key}; expected a positive integer")
    return value
