"""Open an export in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from converter.errors import ModelFolderError
from converter.runtime.exports.feeding import Export, Part
from converter.runtime.exports.files import find
from converter.runtime.exports.interface import JOINED, SEPARATE, Interface, read_interface
from converter.runtime.ort import device_for, open_session
from reference.config import GPT2Config


def read_export(path: Path, config: GPT2Config, given: Mapping[str, str] | None = None) -> tuple[Interface, ...]:
    """Read the interfaces of an export, a file or a folder. Nothing is opened in ONNX Runtime.

    Args:
        config: the architecture.
        given: roles of inputs and outputs that the user gave.

    Raises:
        ModelFolderError: there is no export, it is another model's, or its interface is unknown.
    """
    files = find(path)
    interfaces = tuple(read_interface(file, config, given) for file in files)
    for interface in interfaces:
        if interface.pasts:
            _refuse_another_cache(interface, config)
    first, last = interfaces[0], interfaces[-1]
    if first is not last and len(first.presents) != len(last.pasts):
        raise ModelFolderError(
            f"{first.file} gives a cache of {len(first.presents)} values, and {last.file.name} takes {len(last.pasts)}"
        )
    return interfaces


def _refuse_another_cache(interface: Interface, config: GPT2Config) -> None:
    """Refuse a cache of another number of layers."""
    each = {SEPARATE: 2, JOINED: 1}[interface.pasts[0].rank]
    if len(interface.pasts) != each * config.n_layer:
        raise ModelFolderError(
            f"{interface.file} is another model: its cache has {len(interface.pasts)} values; "
            f"{config.n_layer} layers have {each * config.n_layer}"
        )


def open_export(
    interfaces: Sequence[Interface], config: GPT2Config, provider: str, threads: int | None = None
) -> Export:
    """Open the files of an export.

    Args:
        provider: ONNX Runtime's name of it.
        threads: for one operator; by default one a core.

    Raises:
        ModelFolderError: ONNX Runtime cannot open a file.
        ProviderError: the provider does not work on this machine.
    """
    parts = tuple(
        Part(each, open_session(each.file, provider, threads), each.pasts[0].type if each.pasts else np.float32)
        for each in interfaces
    )
    return Export(config, parts, device_for(provider))
