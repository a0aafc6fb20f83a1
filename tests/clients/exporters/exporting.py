"""What every worker shares that exports: the request, and how a wrong export comes about."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import Request, respond


def serve(export: Callable[..., None]) -> None:
    """Export ``source`` into ``out`` with the ``options`` of the request; ``ignore`` names an input to be ignored."""

    def answer(request: Request) -> dict[str, Any]:
        if request["ignore"]:
            ignore(request["ignore"])
        export(Path(request["source"]), Path(request["out"]), **request["options"])
        return {}

    respond(answer)


def torchscript() -> None:
    """Let ``torch.onnx.export`` be what it was until torch 2.9, for software of that time, which does not say which."""
    import torch

    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)


def ignore(argument: str) -> None:
    """Make transformers' GPT-2 take an argument without looking at it, as a careless wrapper does."""
    from transformers import GPT2LMHeadModel

    forward = GPT2LMHeadModel.forward
    signature = inspect.signature(forward)

    def careless(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        if argument in given.arguments:
            given.arguments[argument] = None
        return forward(*given.args, **given.kwargs)

    careless.__signature__ = signature  # exporters read it; with functools.wraps Optimum would take what is wrapped
    GPT2LMHeadModel.forward = careless
