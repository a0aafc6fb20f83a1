"""What can be wrong with a model, as errors that carry one sentence for the user."""

from __future__ import annotations


class GPT2Error(ValueError):
    """The base of every error that a user can mend; its text is one sentence that says how."""


class ConfigError(GPT2Error):
    """A hyper-parameter is missing, contradictory or names something that GPT-2 does not have."""


class WeightsError(GPT2Error):
    """A weight is missing, surplus or of the wrong shape."""
