"""The certificate: the verdict of a check in the folder's manifest, with the hashes of the files that were checked.

``verify`` holds the folder against it later, offline and without torch. Hashes show what changed. They do not stop
somebody who writes a new certificate: for that, the certificate is signed (``signature``) or kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import ModelFolderError, OutputError
from converter.files import read_json, reason, write_json
from converter.folder import manifest
from converter.folder.durable import sync, sync_entry
from converter.folder.listing import Listing, counts, listing, listing_of
from converter.folder.signature import Sign, is_signed
from converter.folder.staging import MANIFEST, OURS, settle, stage_name, sweep, together
from converter.texts import is_text, one_line
from converter.version import VERSION

KEY = "certificate"
DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
SEAL = "sha256"  # the key of the certificate's own hash
SIGNATURE = "signature"  # of that hash
UNPROVEN = "unproven"  # the key of what the check could not compare, in words of its verdict
NOT_COMPARED = "not_compared"  # the key of the files beside an export that the check did not look at


@dataclass(frozen=True)
class Verification:
    """What has changed in a folder since it was checked.

    Attributes:
        folder: the model folder.
        certificate: as the manifest has it.
        changed, missing, unknown: names of files and links that are not what they were, not there, or new. The names
            ``gpt2onnx.json`` and ``certificate`` stand for the facts in them.
        files: how many the certificate names.
        not_compared: names of files that lay in the folder of an export, of which the certificate says nothing else.
        signed: whether it is signed with the key that was given; None if none was.
    """

    folder: Path
    certificate: dict[str, Any]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    files: int
    unknown: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    signed: bool | None = None

    def __repr__(self) -> str:
        return f"Verification({self.verdict})"

    @property
    def passed(self) -> bool:
        """Tell whether these are the files that were checked, and the check found a match."""
        same = not (self.changed or self.missing or self.unknown) and self.signed is not False
        return same and self.certificate.get("passed") is True

    @property
    def verdict(self) -> str:
        """Return the result as one sentence, of one line."""
        date = str(self.certificate.get("date"))
        when = date if DATE.fullmatch(date) else "an unknown day"
        differences = (
            (self.missing, "is missing"),
            (self.changed, "changed since"),
            (self.unknown, "is new: the check did not see it"),
        )
        for names, what in differences:
            if names:
                others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                return one_line(f"{self.folder} is NOT what was checked on {when}: {names[0]}{others} {what}")
        if self.signed is False:
            return one_line(f"{self.folder} has a certificate that is NOT signed with this key")
        if not self.passed:
            return one_line(f"{self.folder} is what was checked on {when}, and it was a mismatch")
        if self.not_compared:
            several = len(self.not_compared) - 1
            others = f" and {several} more" if several else ""
            said = f"{self.files} of its files: a match; {self.not_compared[0]}{others} not compared"
            return one_line(f"{self.folder} is what was checked on {when}, {said}")
        but = f", {unproven}" if isinstance(unproven := self.certificate.get(UNPROVEN), str) else ""
        return one_line(f"{self.folder} is what was checked on {when}, all {self.files} files: a match{but}")


def write(
    folder: Path,
    source_files: Iterable[Path],
    passed: bool,
    verdict: str,
    facts: Mapping[str, Any],
    values: dict[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    sign: Sign | None = None,
) -> None:
    """Write a verdict into the folder's manifest, with the ``facts`` that support it. It replaces an earlier verdict.

    Args:
        values: the manifest, if more of it is to change.
        texts: files that change with it, and what is then in them.
        sign: signs the certificate; see ``signature``.

    Raises:
        OutputError: the manifest cannot be written, or a link leads out of the folder.
    """
    values = read_json(folder / MANIFEST) if values is None else values
    try:
        with together(folder) as stage:
            for name, text in (texts or {}).items():
                (stage / name).write_text(text, encoding="utf-8")
            covered = _covered(listing(folder), values)
            covered["files"] |= {name: sha256(stage / name) for name in texts or {}}
            values[KEY] = _content(source_files, passed, verdict, {**covered, **facts}, sign)
            write_json(stage / MANIFEST, values)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {reason(error)}") from error


def write_beside(
    file: Path,
    path: Path,
    files: Iterable[Path],
    source_files: Iterable[Path],
    passed: bool,
    verdict: str,
    facts: Mapping[str, Any],
    sign: Sign | None = None,
) -> None:
    """Write a verdict into a file of its own; see ``write``.

    Args:
        file: the file to write.
        path: the folder or ONNX file that was checked.
        files: those that the graphs of an export are made of, which alone were compared; empty for a folder of ours.

    Raises:
        OutputError: the file cannot be written, or a file or link leads out of the folder.
    """
    names = {Path(os.path.relpath(each, home_of(path))).as_posix() for each in files}
    there = listing(path) if path.is_dir() else listing_of(path, names)
    if names:
        covered = _covered_of_export(there, names, leave=file)
    else:
        covered = _covered(there, manifest.content(path) if path.is_dir() else {}, leave=file)
    _replace(file, {KEY: _content(source_files, passed, verdict, {**covered, **facts}, sign)})


def home_of(path: Path) -> Path:
    """Return the folder that a certificate's names of files begin in."""
    return path if path.is_dir() else path.parent


def _covered(there: Listing, values: Mapping[str, Any], leave: Path | None = None) -> dict[str, Any]:
    """Return the part of a certificate that says what a folder of ours holds.

    Args:
        values: the manifest, which is hashed without its certificate.
        leave: the file that the certificate goes into.

    Raises:
        OutputError: something cannot be certified.
    """
    _refuse(there, {link for link in there.links if counts(link) and there.leads_out(link)})
    _refuse(there, set(filter(counts, there.others)))
    _refuse_names(filter(counts, there.names))
    kept = set(filter(counts, there.files)) - {MANIFEST} - _same_file(there, leave)
    return {
        "files": _hashes(there, kept),
        "links": {name: there.links[name] for name in sorted(filter(counts, there.links))},
        **({MANIFEST: _rest(values)} if MANIFEST in there.files else {}),
    }


def _covered_of_export(there: Listing, names: set[str], leave: Path) -> dict[str, Any]:
    """Return the part of a certificate that says what was compared of an export, and what beside it was not.

    Args:
        names: of the files that were compared; they count wherever they lie.
        leave: the file that the certificate goes into.

    Raises:
        OutputError: something cannot be certified.
    """
    links = names & there.links.keys()
    _refuse(there, {link for link in links if there.leads_out(link)} | (names - there.names) | (names & there.others))
    home = os.path.realpath(there.home)
    targets = {Path(os.path.realpath(there.home / link)).relative_to(home).as_posix() for link in links}
    kept = names - links | targets
    _refuse_names(filter(counts, there.names))
    beside = {name for name in there.names if counts(name)} - kept - links - _same_file(there, leave)
    return {
        "files": _hashes(there, kept),
        "links": {name: there.links[name] for name in sorted(links)},
        NOT_COMPARED: sorted(beside),
    }


def _refuse(there: Listing, odd: set[str]) -> None:
    """Refuse names that cannot be certified."""
    if odd:
        raise OutputError(
            f"{one_line(str(there.home / min(odd)))} leads out of the folder or to a hidden file, or is no regular "
            f"file: copy all files into one folder, with cp -rL"
        )


def _refuse_names(names: Iterable[str]) -> None:
    """Refuse names that JSON cannot hold."""
    odd = [name for name in names if not is_text(name)]
    if odd:
        raise OutputError(f"{one_line(min(odd))} has a name that is not UTF-8: rename it")


def _hashes(there: Listing, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256(there.home / name) for name in sorted(names)}


def _same_file(there: Listing, file: Path | None) -> set[str]:
    """Return the names by which a listing has a file."""
    if file is None or not file.exists():
        return set()
    return {name for name in there.files if file.samefile(there.home / name)}


def _content(
    source_files: Iterable[Path], passed: bool, verdict: str, facts: Mapping[str, Any], sign: Sign | None
) -> dict[str, Any]:
    """Return a certificate."""
    content = {
        "passed": passed,
        "verdict": verdict,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpt2onnx": VERSION,
        "source": {file.name: sha256(file) for file in sorted(set(source_files))},
        **facts,
    }
    seal = _digest(content)
    return {**content, SEAL: seal, **({SIGNATURE: sign(seal)} if sign else {})}


def _replace(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is never half there."""
    prefix = f".{file.name}{OURS}"
    draft = file.with_name(stage_name(prefix))
    try:
        sweep(file.parent, prefix)
        write_json(draft, dict(values))
        sync(draft)
        draft.replace(file)
        sync_entry(file.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def verify(
    folder: str | os.PathLike[str],
    certificate_file: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> Verification:
    """Compare a folder's files with its certificate. Nothing outside the folder is opened.

    Args:
        folder: a model folder; with ``certificate_file`` also an export of another program, a folder or an ONNX file.
        certificate_file: what ``check --certificate`` wrote; by default the folder's own manifest.
        key: a file with the public key by which the certificate must be signed.

    Raises:
        ModelFolderError: there is no such folder, or no certificate.
        CheckError: there is no public key in ``key``, or it cannot be read.
    """
    folder = Path(folder)
    if certificate_file is None or not folder.is_file():
        settle(folder)
    if folder.is_dir() and (folder / MANIFEST).is_symlink():
        raise ModelFolderError(f"{folder / MANIFEST} is a link, and could lead anywhere; put the file itself there")
    own = manifest.content(folder) if folder.is_dir() else {}
    certificate = _certificate_in(own if certificate_file is None else read_json(Path(certificate_file)))
    if certificate is None:
        if certificate_file is not None:
            mend = "write one with gpt2onnx check --certificate"
            raise ModelFolderError(f"{certificate_file} holds no certificate; {mend}")
        manifest.refuse_source(folder, own)
        if not own:
            raise ModelFolderError(f"{folder} has no {MANIFEST}: convert did not write it; give --certificate FILE")
        raise ModelFolderError(f"{folder} has no certificate; make one with gpt2onnx check SOURCE {folder}")
    files, links = certificate["files"], certificate["links"]
    there = listing(folder) if folder.is_dir() else listing_of(folder, files)
    beside = certificate.get(NOT_COMPARED, [])
    vouched = {*files, *links, *({MANIFEST} if MANIFEST in certificate else ())}
    asked = {folder.name} if folder.is_file() else set()
    known = {*vouched, *beside} - (asked - vouched)  # a file by itself must be one that was compared
    if certificate_file is not None:
        known |= _same_file(there, Path(certificate_file))
    return Verification(
        folder,
        certificate,
        changed=tuple(_changed(there, own, certificate)),
        missing=tuple(sorted(vouched - there.names)),
        files=len(files),
        unknown=tuple(sorted(filter(counts, there.names - known))),
        not_compared=tuple(beside),
        signed=None if key is None else is_signed(str(certificate.get(SEAL)), certificate.get(SIGNATURE), Path(key)),
    )


def _certificate_in(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the certificate in a JSON object, if something there has the form of one."""
    found = values.get(KEY)
    if not isinstance(found, dict) or not _are_names(found.get(NOT_COMPARED, [])):
        return None
    return found if all(isinstance(found.get(key), dict) for key in ("files", "links")) else None


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _changed(there: Listing, own: Mapping[str, Any], certificate: Mapping[str, Any]) -> list[str]:
    """Return what is there and is something else than the certificate says.

    Args:
        own: the folder's manifest.
    """
    files, links = certificate["files"], certificate["links"]
    changed = [name for name in files if name in there.files and sha256(there.home / name) != files[name]]
    changed += [name for name in files if name in there.links or name in there.others]
    changed += [
        name
        for name in links
        if name in there.names and (there.links.get(name) != links[name] or there.leads_out(name))
    ]
    if MANIFEST in there.files and MANIFEST in certificate and certificate[MANIFEST] != _rest(own):
        changed.append(MANIFEST)
    if certificate.get(SEAL) != _digest({k: value for k, value in certificate.items() if k not in (SEAL, SIGNATURE)}):
        changed.append(KEY)
    return changed


def holds(folder: Path) -> bool:
    """Tell whether a folder has a certificate of a match, and its files are still those that were checked."""
    try:
        return verify(folder).passed
    except ModelFolderError:
        return False


def shipped_files(folder: Path) -> list[Path]:
    """Return the regular files of a folder that a certificate hashes one by one: all but the manifest."""
    return sorted(folder / name for name in listing(folder).files if counts(name) and name != MANIFEST)


def _rest(values: Mapping[str, Any]) -> str:
    """Return the hash of a manifest without its certificate, which cannot hold its own."""
    return _digest({key: value for key, value in values.items() if key != KEY})


def _digest(values: Mapping[str, Any]) -> str:
    """Return the hash of a JSON object, which does not depend on how it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the hash of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
