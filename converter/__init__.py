"""gpt2onnx: converts GPT-2 checkpoints to ONNX, proves the conversion, and runs it.

    from converter import convert, check, load

Nothing is imported before it is used: ``convert`` and ``load`` work without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converter.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from converter.folder.convert import Conversion, convert
    from converter.folder.save import to_huggingface, to_reference
    from converter.parity.check import check
    from converter.runtime.generation import Generation
    from converter.runtime.heads import HeadModel
    from converter.runtime.heads import load as load_head
    from converter.runtime.session import Model, load

__all__ = [
    "Conversion",
    "Generation",
    "HeadModel",
    "Model",
    "__version__",
    "check",
    "convert",
    "load",
    "load_head",
    "to_huggingface",
    "to_reference",
]

_HOMES = {
    "Conversion": "converter.folder.convert",
    "Generation": "converter.runtime.generation",
    "HeadModel": "converter.runtime.heads",
    "Model": "converter.runtime.session",
    "check": "converter.parity.check",
    "convert": "converter.folder.convert",
    "load": "converter.runtime.session",
    "load_head": "converter.runtime.heads",
    "to_huggingface": "converter.folder.save",
    "to_reference": "converter.folder.save",
}
_NAMES_THERE = {"load_head": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), _NAMES_THERE.get(name, name))
