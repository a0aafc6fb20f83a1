"""gpt2onnx: converts GPT-2 checkpoints to ONNX, proves the conversion, and runs it.

    from converter import convert, check, load

Nothing is imported before it is used: ``convert`` and ``load`` work without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converter.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from converter.errors import (
        BenchError,
        CheckError,
        CheckpointError,
        ConfigError,
        EngineClosed,
        EngineFull,
        GPT2Error,
        HubError,
        LongPromptError,
        ModelFolderError,
        OutputError,
        PromptError,
        ProviderError,
        ServeError,
        TextError,
        TokenizerError,
        WeightsError,
    )
    from converter.folder.certificate import Verification, verify
    from converter.folder.convert import Conversion, convert
    from converter.folder.save import to_huggingface, to_reference
    from converter.parity.check import check
    from converter.parity.report.report import Report
    from converter.parity.verdict.judge import LegReport
    from converter.parity.verdict.limits import Limits
    from converter.runtime.answers import Choice, Embedding, Labels, Span, TokenLabels
    from converter.runtime.generation import Generation
    from converter.runtime.heads import HeadModel
    from converter.runtime.heads import load as load_head
    from converter.runtime.opening import load
    from converter.runtime.options import GenerationOptions
    from converter.runtime.sampling import Sampling
    from converter.runtime.scoring import Score, perplexity, score
    from converter.runtime.session import Model
    from converter.runtime.speculation import Speculation
    from converter.runtime.tokens import Token
    from converter.serving.engine import Engine, EngineStats, Ticket

# Every name, by the heading under which docs/reference/python.md has it, and the module that it comes from.
_HEADINGS = {
    "Convert": {
        "convert": "converter.folder.convert",
        "Conversion": "converter.folder.convert",
        "to_huggingface": "converter.folder.save",
        "to_reference": "converter.folder.save",
    },
    "Check": {
        "check": "converter.parity.check",
        "Report": "converter.parity.report.report",
        "LegReport": "converter.parity.verdict.judge",
        "Limits": "converter.parity.verdict.limits",
        "verify": "converter.folder.certificate",
        "Verification": "converter.folder.certificate",
    },
    "Generate": {
        "load": "converter.runtime.opening",
        "Model": "converter.runtime.session",
        "Generation": "converter.runtime.generation",
        "Token": "converter.runtime.tokens",
        "Speculation": "converter.runtime.speculation",
        "GenerationOptions": "converter.runtime.options",
        "Sampling": "converter.runtime.sampling",
    },
    "Score": {
        "score": "converter.runtime.scoring",
        "Score": "converter.runtime.scoring",
        "perplexity": "converter.runtime.scoring",
    },
    "Serve": {
        "Engine": "converter.serving.engine",
        "Ticket": "converter.serving.engine",
        "EngineStats": "converter.serving.engine",
    },
    "Other heads": {
        "load_head": "converter.runtime.heads",
        "HeadModel": "converter.runtime.heads",
        "Labels": "converter.runtime.answers",
        "TokenLabels": "converter.runtime.answers",
        "Span": "converter.runtime.answers",
        "Choice": "converter.runtime.answers",
        "Embedding": "converter.runtime.answers",
    },
    "Errors": {
        "GPT2Error": "converter.errors",
        "ConfigError": "converter.errors",
        "WeightsError": "converter.errors",
        "CheckpointError": "converter.errors",
        "HubError": "converter.errors",
        "LongPromptError": "converter.errors",
        "OutputError": "converter.errors",
        "ModelFolderError": "converter.errors",
        "ProviderError": "converter.errors",
        "ServeError": "converter.errors",
        "TokenizerError": "converter.errors",
        "PromptError": "converter.errors",
        "TextError": "converter.errors",
        "CheckError": "converter.errors",
        "BenchError": "converter.errors",
        "EngineClosed": "converter.errors",
        "EngineFull": "converter.errors",
    },
}
_HOMES = {name: home for names in _HEADINGS.values() for name, home in names.items()}
_NAMES_THERE = {"load_head": "load"}
_LONG = ("check", "convert", "score", "to_huggingface", "to_reference")  # which show their progress in a notebook

__all__ = [
    "BenchError",
    "CheckError",
    "CheckpointError",
    "Choice",
    "ConfigError",
    "Conversion",
    "Embedding",
    "Engine",
    "EngineClosed",
    "EngineFull",
    "EngineStats",
    "GPT2Error",
    "Generation",
    "GenerationOptions",
    "HeadModel",
    "HubError",
    "Labels",
    "LegReport",
    "Limits",
    "LongPromptError",
    "Model",
    "ModelFolderError",
    "OutputError",
    "PromptError",
    "ProviderError",
    "Report",
    "Sampling",
    "Score",
    "ServeError",
    "Span",
    "Speculation",
    "TextError",
    "Ticket",
    "Token",
    "TokenLabels",
    "TokenizerError",
    "Verification",
    "WeightsError",
    "__version__",
    "check",
    "convert",
    "load",
    "load_head",
    "perplexity",
    "score",
    "to_huggingface",
    "to_reference",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from converter import notebook

    thing = getattr(importlib.import_module(_HOMES[name]), _NAMES_THERE.get(name, name))
    return notebook.shows_progress(thing) if name in _LONG and notebook.is_running() else thing


def __dir__() -> list[str]:
    return sorted(__all__)
