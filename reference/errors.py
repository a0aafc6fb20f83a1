"""The errors of a model or its config. Each carries one sentence for the user."""

from __future__ import annotations


class GPT2Error(ValueError):
    """The base of every error that a user can mend. Its text is one sentence that says how."""


class ConfigError(GPT2Error):
    """A hyper-parameter is missing, contradicts another, or is unknown to GPT-2."""


class WeightsError(GPT2Error):
    """A weight is missing, unexpected or of the wrong shape."""
