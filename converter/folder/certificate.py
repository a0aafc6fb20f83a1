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
    hashes = _hashes(folder, shipped_files(folder))
    values[KEY] = _content(source_files, passed, verdict, {"files": hashes, MANIFEST: _rest(values), **facts})
    _replace(folder / MANIFEST, values)


def write_beside(
    file: Path,
    path: Path,
    files: Iterable[Path],
    source_files: Iterable[Path],
    passed: bool,
    verdict: str,
    facts: Mapping[str, Any],
) -> None:
    """Write a verdict into a file of its own; see ``write``.

    Args:
        file: the file to write.
        path: the folder or ONNX file that was checked.
        files: its files.

    Raises:
        OutputError: the file cannot be written.
    """
    hashes = _hashes(home_of(path), [each for each in files if each.name != MANIFEST])
    _replace(file, {KEY: _content(source_files, passed, verdict, {"files": hashes, **facts})})


def home_of(path: Path) -> Path:
    """Return the folder that a certificate's names of files begin in."""
    return path if path.is_dir() else path.parent


def _hashes(home: Path, files: Iterable[Path]) -> dict[str, str]:
    return {str(file.relative_to(home)): sha256(file) for file in files}


def _content(source_files: Iterable[Path], passed: bool, verdict: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a certificate."""
    return {
        "passed": passed,
        "verdict": verdict,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpt2onnx": VERSION,
        "source": {file.name: sha256(file) for file in sorted(set(source_files))},
        **facts,
    }


def _replace(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is never half there."""
    draft = file.parent / f".{file.name}.{os.getpid()}"
    try:
        write_json(draft, dict(values))
        draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def verify(folder: str | os.PathLike[str], certificate_file: str | os.PathLike[str] | None = None) -> Verification:
    """Compare a folder's files with its certificate.

    Args:
        folder: a model folder; with ``certificate_file`` also an export of another program, a folder or an ONNX file.
        certificate_file: what ``check --certificate`` wrote; by default the folder's own manifest.

    Raises:
        ModelFolderError: there is no such folder, or no certificate.
    """
    folder = Path(folder)
    if not folder.is_dir() and not (certificate_file is not None and folder.is_file()):
        raise ModelFolderError(f"there is no model folder {folder}; make one with gpt2onnx convert SOURCE OUT")
    values = manifest.read(folder) if certificate_file is None else read_json(Path(certificate_file))
    certificate = values.get(KEY)
    if not isinstance(certificate, dict) or not isinstance(certificate.get("files"), dict):
        if certificate_file is not None:
            mend = "write one with gpt2onnx check --certificate"
            raise ModelFolderError(f"{certificate_file} holds no certificate; {mend}")
        manifest.refuse_source(folder, values)
        raise ModelFolderError(f"{folder} has no certificate; make one with gpt2onnx check SOURCE {folder}")
    missing, changed = [], []
    for name, expected in certificate["files"].items():
        file = home_of(folder) / name
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
