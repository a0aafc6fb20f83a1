"""Read what an export takes and gives, before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from converter.errors import ModelFolderError
from converter.parity.legs import leg as legs
from converter.runtime.exports.files import find
from converter.runtime.exports.interface import Interface
from converter.runtime.exports.open import read_export
from converter.runtime.exports.signature import Value, read_signature
from converter.runtime.ort import CPU_PROVIDER
from reference.config import GPT2Config
from reference.head import HEADS, LM


@dataclass(frozen=True)
class Asked:
    """An export that is to be compared.

    Attributes:
        path: the file or folder.
        files: its ONNX files.
        interfaces: of its files; none for another head than the language model's.
        provider: what runs it, by ONNX Runtime's name.
        inputs: what the graph of another head takes.
        unjudged: outputs that are not compared, by file.
    """

    path: Path
    files: tuple[Path, ...]
    interfaces: tuple[Interface, ...]
    provider: str = CPU_PROVIDER
    inputs: tuple[Value, ...] = ()
    unjudged: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return what it is called in the report."""
        return os.fspath(self.path)


def ask(path: Path, config: GPT2Config, given: Mapping[str, str] | None = None, provider: str = CPU_PROVIDER) -> Asked:
    """Read what an export takes and gives, before anything is computed.

    Args:
        given: roles of inputs and outputs that the user gave.
        provider: what runs it, by ONNX Runtime's name.

    Raises:
        ModelFolderError: there is no export, it is another model's, or its interface is unknown.
    """
    if config.head == LM:
        interfaces = read_export(path, config, given)
        cached = any(each.pasts for each in interfaces)
        unjudged = {
            each.file: _besides(each.outputs, {each.logits.name, *(value.name for value in each.presents if cached)})
            for each in interfaces
        }
        return Asked(path, tuple(each.file for each in interfaces), interfaces, provider, unjudged=unjudged)
    files = find(path)
    signatures = [read_signature(file) for file in files]
    for signature in signatures:
        names = {value.name for value in signature.outputs}
        if lacking := [name for name in HEADS[config.head].outputs if name not in names]:
            raise ModelFolderError(
                f"{signature.file} lacks the output {lacking[0]} of the head {config.head}; it {signature}"
            )
        if odd := [value.name for value in signature.inputs if value.name not in legs.KNOWN]:
            raise ModelFolderError(
                f"{signature.file} takes {odd[0]}, which is none of a GPT-2's inputs; it {signature}"
            )
    answers = set(HEADS[config.head].outputs)
    unjudged = {
        signature.file: _besides([value.name for value in signature.outputs], answers) for signature in signatures
    }
    return Asked(path, files, (), provider, signatures[0].inputs, unjudged)


def _besides(outputs: Iterable[str], used: Set[str]) -> tuple[str, ...]:
    """Return the outputs of a file that nothing uses."""
    return tuple(name for name in outputs if name not in used)


def refuse_unknown(given: Mapping[str, str], exports: Sequence[Asked]) -> None:
    """Refuse roles that the user gave to inputs or outputs that no export has.

    Raises:
        ModelFolderError: an export that was meant has another name for it.
    """
    known = {name for export in exports for each in export.interfaces for name in each.names}
    for name, role in given.items():
        if name not in known:
            files = " and ".join(export.name for export in exports) or "the model folder of gpt2onnx"
            raise ModelFolderError(f"--inputs {name}={role}: {files} has no input or output {name}")
