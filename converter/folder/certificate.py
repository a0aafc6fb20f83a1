"""The certificate: the verdict of a check in the folder's manifest, with the hashes of the files that were checked.

``verify`` holds the files against it later, offline and without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ModelFolderError, OutputError
from converter.files import read_json, reason, write_json
from converter.folder import manifest
from converter.folder.staging import MANIFEST
from converter.version import VERSION

KEY = "certificate"


@dataclass(frozen=True)
class Verification:
    """What has changed in a folder since it was checked.

    Attributes:
        folder: the model folder.
        certificate: as the manifest has it.
        changed, missing: names of files that are not what they were, or not there.
        files: how many the certificate names.
    """

    folder: Path
    certificate: dict[str, Any]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    files: int

    def __repr__(self) -> str:
        return f"Verification({self.verdict})"

    @property
    def passed(self) -> bool:
        """Tell whether these are the files that were checked, and the check found a match."""
        return not self.changed and not self.missing and self.certificate.get("passed") is True

    @property
    def verdict(self) -> str:
        """Return the result as one sentence."""
        when = self.certificate.get("date", "an unknown day")
        if self.missing:
            return f"{self.folder} is NOT what was checked on {when}: {self.missing[0]} is missing"
        if self.changed:
            others = f" and {len(self.changed) - 1} more" if len(self.changed) > 1 else ""
            return f"{self.folder} is NOT what was checked on {when}: {self.changed[0]}{others} changed since"
        if not self.passed:
            return f"{self.folder} is what was checked on {when}, and it was a mismatch"
        return f"{self.folder} is what was checked on {when}, all {self.files} files: a match"


def write(
    folder: Path,
    source_files: Iterable[Path],
    passed: bool,
    verdict: str,
    facts: Mapping[str, Any],
    values: dict[str, Any] | None = None,
) -> None:
    """Write a verdict into the folder's manifest, with the ``facts`` that support it. It replaces an earlier verdict.

    Args:
        values: the manifest, if more of it is to change.

    Raises:
        OutputError: the manifest cannot be written.
    """
    values = read_json(folder / MANIFEST) if values is None else values
    values[KEY] = {
        "passed": passed,
        "verdict": verdict,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpt2onnx": VERSION,
        "source": {file.name: sha256(file) for file in sorted(set(source_files))},
        "files": {str(file.relative_to(folder)): sha256(file) for file in shipped_files(folder)},
        MANIFEST: _rest(values),
        **facts,
    }
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        write_json(draft, values)
        draft.replace(folder / MANIFEST)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{folder / MANIFEST} cannot be written: {reason(error)}") from error


def verify(folder: str | os.PathLike[str]) -> Verification:
    """Compare a folder's files with its certificate.

    Raises:
        ModelFolderError: the folder has no certificate.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"there is no model folder {folder}; make one with gpt2onnx convert SOURCE OUT")
    values = manifest.read(folder)
    certificate = values.get(KEY)
    if not isinstance(certificate, dict) or not isinstance(certificate.get("files"), dict):
        manifest.refuse_source(folder, values)
        raise ModelFolderError(f"{folder} has no certificate; make one with gpt2onnx check SOURCE {folder}")
    missing, changed = [], []
    for name, expected in certificate["files"].items():
        file = folder / name
        if not file.is_file():
            missing.append(name)
        elif sha256(file) != expected:
            changed.append(name)
    if certificate.get(MANIFEST, _rest(values)) != _rest(values):
        changed.append(MANIFEST)
    return Verification(folder, certificate, tuple(changed), tuple(missing), len(certificate["files"]))


def holds(folder: Path) -> bool:
    """Tell whether a folder has a certificate of a match, and its files are still those that were checked."""
    try:
        return verify(folder).passed
    except ModelFolderError:
        return False


def shipped_files(folder: Path) -> list[Path]:
    """Return the files that a certificate covers: all but the manifest, links, and hidden files."""

    def counts(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return file.is_file() and not file.is_symlink() and not hidden and file.name != MANIFEST

    return sorted(filter(counts, folder.rglob("*")))


def _rest(values: Mapping[str, Any]) -> str:
    """Return the hash of a manifest without its certificate, which cannot hold its own."""
    rest = {key: value for key, value in values.items() if key != KEY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the hash of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
