"""Help sources that store GPT-2's projections as ``torch.nn.Linear``, [out, in], and have no ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.errors import ConfigError

# Ends of Hugging Face's names of the projections, which Linear stores as [out, in] and Conv1D as [in, out].
PROJECTIONS = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


def config_values(sizes: Mapping[str, int], **others: Any) -> dict[str, Any]:
    """Return a ``config.json`` with these sizes. GPT-2's constants are used where ``others`` sets none."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **sizes,
        "layer_norm_epsilon": 1e-5,
        **others,
    }


def integer(file: Path, values: Mapping[Any, Any], key: str, where: str) -> int:
    """Return a size that a checkpoint records.

    Raises:
        ConfigError: it is missing, or not an integer. Its range is checked elsewhere.
    """
    value = values.get(key)
    if type(value) is not int:  # the value is not shown: it may be an endless structure
        found = "lacks" if value is None else f"has a {type(value).__name__} for"
        raise ConfigError(f"{file}: {where} {found} {key}; expected a positive integer")
    return value
