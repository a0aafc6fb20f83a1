"""The errors a user can mend. Each carries one sentence: what was found where, what was expected, what to do.

Raised where the fact is known; the command line prints the sentence and exits with 2.
"""

from __future__ import annotations

from reference.errors import ConfigError, GPT2Error, WeightsError

__all__ = [
    "BenchError",
    "CheckError",
    "CheckpointError",
    "ConfigError",
    "EngineClosed",
    "EngineFull",
    "GPT2Error",
    "HubError",
    "LongPromptError",
    "ModelFolderError",
    "OutputError",
    "PromptError",
    "ProviderError",
    "ServeError",
    "TextError",
    "TokenizerError",
    "WeightsError",
]


class CheckpointError(GPT2Error):
    """A source cannot be read, or does not hold what a GPT-2 checkpoint holds."""


class HubError(CheckpointError):
    """The Hub does not give out a model."""


class OutputError(GPT2Error):
    """The model folder cannot be written."""


class ModelFolderError(GPT2Error):
    """A model folder cannot be opened."""


class ProviderError(GPT2Error):
    """The installed ONNX Runtime lacks an execution provider."""


class TokenizerError(GPT2Error):
    """A tokenizer is missing or cannot be read."""


class PromptError(GPT2Error):
    """A prompt cannot be continued: empty, too long, or with token ids that the model does not have."""


class LongPromptError(PromptError):
    """A prompt leaves no position for a new token."""


class TextError(GPT2Error):
    """A file has no text to read."""


class CheckError(GPT2Error):
    """Parity cannot be judged: something it needs is absent, or the two sides are not of one model."""


class BenchError(GPT2Error):
    """Nothing can be measured: a setting is out of range, or there is not enough time or memory."""


class ServeError(GPT2Error):
    """A server cannot be started: it lacks an address, a key, or a package."""


class ClusterError(GPT2Error):
    """A cluster of Ray cannot be joined, has no room for what is wanted, or a worker of it has failed."""


class EngineFull(GPT2Error):  # noqa: N818 - a state that passes, as in queue.Full
    """An engine takes no request now: as many run and wait as may."""


class EngineClosed(GPT2Error):  # noqa: N818
    """An engine takes no more requests, or has ended one, because it is being closed."""
