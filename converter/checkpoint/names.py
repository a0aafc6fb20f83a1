"""Canonical names of tensors: what wrappers and older programs made of them is taken back."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What wrappers put before a name, in any combination: DataParallel, Lightning's and trainers' ``model``, TRL, PEFT,
# and the language model itself.
PREFIXES = ("module.", "model.", "pretrained_model.", "base_model.", "transformer.")

# An attribute that begins with an underscore. No part of a GPT-2 does, and wrappers put it anywhere: Opacus's _module,
# torch.compile's _orig_mod, FSDP's _fsdp_wrapped_module, Fabric's _forward_module, _checkpoint_wrapped_module, …
_PRIVATE = re.compile(r"(?<![^.])_\w+\.")

# The names of programs of 2019 → those of today.
RENAMED = {
    "lm_head.decoder.weight": "lm_head.weight",
    "multiple_choice_head.linear.weight": "multiple_choice_head.summary.weight",
    "multiple_choice_head.linear.bias": "multiple_choice_head.summary.bias",
}

# The tensor by which a body is found under an attribute of the user's own.
_MARK = ".h.0.ln_1.weight"


def canonical(name: str, outer: str = "") -> str:
    """Return a source's name without the prefixes that wrappers put before it.

    Args:
        outer: the attribute under which the model lies, as ``outer_name`` finds it.
    """
    name = unwrapped(name, (*PREFIXES, *([outer] if outer else [])))
    return RENAMED.get(name, name)


def unwrapped(name: str, prefixes: tuple[str, ...]) -> str:
    """Return a name without private attributes, and without ``prefixes``, in any order."""
    name = _PRIVATE.sub("", name)
    while prefix := next((p for p in prefixes if name.startswith(p)), None):
        name = name[len(prefix) :]
    return name


def outer_name(names: Iterable[str]) -> str:
    """Return the attribute under which a class of the user's own keeps the model, such as ``gpt2.``.

    It is empty if no such attribute is needed, or if there are several models.
    """
    found = outer_names(names)
    return found[0] if len(found) == 1 else ""


def outer_names(names: Iterable[str]) -> list[str]:
    """Return what stands before the names of each model that a source holds: nothing, or attributes with a dot."""
    short = dict.fromkeys(f".{canonical(name)}" for name in names)
    return [_outermost(name[1:].removesuffix(_MARK[1:])) for name in short if name.endswith(_MARK)]


def _outermost(prefix: str) -> str:
    """Return a prefix without the known ones at its end, which stand before some names only: ``gpt2.transformer.``."""
    while inner := next((p for p in PREFIXES if prefix.endswith(f".{p}")), None):
        prefix = prefix.removesuffix(inner)
    return prefix
