"""Compute in half precision as its hardware does: the result of every operation is rounded to float16.

ONNX Runtime's CPU widens to float32 in between. That hides what a GPU would lose, above all numbers that are too large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converter.checkpoint.tensor import LazyTensor
from converter.parity.legs import leg as legs
from converter.parity.legs.truth import to_torch
from reference.config import GPT2Config
from reference.heads import CLASSES
from reference.model import Head, ScaledDotProduct

FLOAT16_MAXIMUM = torch.finfo(torch.float16).max  # 65504


@dataclass
class Rounded:
    """The from-scratch model, with the result of every operation rounded.

    Attributes:
        overflow: the first operation whose result float16 does not hold, and its largest number.
    """

    config: GPT2Config
    weights: Mapping[str, LazyTensor]
    overflow: tuple[str, float] | None = None
    _model: nn.Module | None = field(default=None, repr=False)

    def open(self) -> legs.Leg:
        """Return the leg. The logits, or the outputs of another head, stay in float32."""
        given = {name: to_torch(weight).half() for name, weight in self.weights.items()}
        model = CLASSES[self.config.head].from_weights(self.config, given, torch.float32)
        for path, module in model.named_modules():
            if isinstance(module, ScaledDotProduct):
                module.forward = partial(self.attend, path, module)  # type: ignore[method-assign]
            elif path and not list(module.children()) and not isinstance(module, Head):
                module.register_forward_hook(self.rounding(path))
        return legs.of_reference(model, self.config.head)

    def rounding(self, path: str) -> Callable[..., Any]:
        """Return a forward hook that rounds the output of a module."""
        return lambda module, args, output: self.round(path, output) if isinstance(output, Tensor) else None

    def round(self, path: str, x: Tensor) -> Tensor:
        """Round to the nearest number that float16 holds, or to infinity. The first overflow is kept."""
        rounded = x.half().float()
        if self.overflow is None and bool(rounded.isinf().any()):
            self.overflow = path, float(x.abs().nan_to_num(posinf=np.inf).max())
        return rounded

    def attend(self, path: str, module: ScaledDotProduct, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Compute attention as ONNX defines it: the root of the scale on q and on k, softmax in float32."""
        q, k = (self.round(path, x * module.scale**0.5) for x in (q, k))
        scores = self.round(f"{path} (q·k)", q @ k.transpose(-1, -2)).masked_fill(~mask, torch.finfo(torch.float32).min)
        weights = self.round(path, scores.softmax(dim=-1))
        return self.round(path, weights @ v).transpose(1, 2).flatten(2)

    @property
    def sentence(self) -> str | None:
        """Return a sentence about the overflow; None if there is none."""
        if self.overflow is None:
            return None
        path, largest = self.overflow
        most = f"float16 holds no more than {FLOAT16_MAXIMUM:.0f}"
        return f"float16 overflows at {path}: it reaches {largest:.3g}, and {most}"
