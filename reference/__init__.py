"""GPT-2 from scratch in PyTorch.

``reference.config`` does not import torch. The model does, and is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reference.config import GPT2Config
from reference.errors import ConfigError, GPT2Error, WeightsError

if TYPE_CHECKING:
    from reference.model import GPT2, Conv1D

__all__ = ["GPT2", "ConfigError", "Conv1D", "GPT2Config", "GPT2Error", "WeightsError"]


def __getattr__(name: str) -> Any:
    if name in ("GPT2", "Conv1D"):
        from reference import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
