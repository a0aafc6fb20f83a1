"""Define the limits of a verdict, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from converter.errors import CheckError
from converter.weights.precisions import BUDGETS, Budget

# Hugging Face and the reference in float64 may differ by this share of the logits' scale anywhere. Both only round, at
# 1e-15. Wrong mathematics (an epsilon of 1e-5 for 1e-6, tanh for erf) shows from 1e-7 on.
HUGGINGFACE_FLOAT64_LIMIT = 1e-9

# The same for the graph widened to float64. Its constants (attention scale, epsilon) stay rounded to float32, as they
# are shipped. This accounts for about 1e-8 to 1e-7.
GRAPH_FLOAT64_LIMIT = 1e-6

# A float32 leg may be this many times as far from the truth as Hugging Face's own float32 is. Other kernels sum in
# another order and approximate tanh and exp in other ways. Factors below 2 in RMS were seen, more in the maximum, which
# is one number among millions. Errors of wrong mathematics are thousands of times larger.
RMS_LIMIT = 4.0
MAXIMUM_LIMIT = 8.0

# Hugging Face's own float32 may be this share of the logits' scale from the truth, in RMS. Trained models are at 1e-7
# to 1e-5. Beyond this limit float32 does not hold the model, and no other leg can be compared with it.
NOISE_LIMIT = 1e-2


@dataclass(frozen=True)
class Limits:
    """The multiples and shares that decide a verdict. Each can be set for a single check.

    Attributes:
        huggingface_float64, graph_float64, noise: shares of the logits' scale.
        rms, maximum: multiples of the noise floor.
        budgets: what each lossy precision may cost; a value is set as ``int8.kl_mean``.
    """

    huggingface_float64: float = HUGGINGFACE_FLOAT64_LIMIT
    graph_float64: float = GRAPH_FLOAT64_LIMIT
    noise: float = NOISE_LIMIT
    rms: float = RMS_LIMIT
    maximum: float = MAXIMUM_LIMIT
    budgets: Mapping[str, Budget] = field(default_factory=lambda: dict(BUDGETS))

    @classmethod
    def from_settings(cls, settings: Mapping[str, float]) -> Limits:
        """Return the default limits, with these settings in place of some.

        Raises:
            CheckError: a name is unknown, or a value is not a finite number above 0.
        """
        plain = [field.name for field in fields(cls) if field.name != "budgets"]
        of_budgets = [f"{budget}.{field.name}" for budget in BUDGETS for field in fields(Budget)]
        budgets = dict(BUDGETS)
        for name, value in settings.items():
            if name not in (*plain, *of_budgets):
                raise CheckError(f"there is no limit {name!r}; expected one of {', '.join((*plain, *of_budgets))}")
            if not (math.isfinite(value) and value > 0):
                raise CheckError(f"limit {name} is {value!r}; expected a finite number above 0")
            if name in of_budgets:
                budget, key = name.split(".")
                budgets[budget] = replace(budgets[budget], **{key: value})
        plain_settings: dict[str, Any] = {name: settings[name] for name in plain if name in settings}
        return replace(cls(budgets=budgets), **plain_settings)

    def named(self) -> dict[str, float]:
        """Return every limit by the name under which it can be set."""
        plain = {name: value for name, value in vars(self).items() if name != "budgets"}
        return plain | {
            f"{name}.{key}": value for name, budget in self.budgets.items() for key, value in vars(budget).items()
        }
