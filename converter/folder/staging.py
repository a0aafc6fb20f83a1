"""Write a folder that appears whole or not at all, or files of one that change together."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from converter.errors import ModelFolderError, OutputError
from converter.files import read_json, reason
from converter.folder.durable import exchange, sync, sync_entry

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: leftovers of a killed conversion stay
    fcntl = None

MANIFEST = "gpt2onnx.json"
OURS = ".gpt2onnx-"  # how the name begins of an unfinished folder inside a model folder
READY = f"{OURS}new"  # the folder of files that only have to be moved into the one around it
LEFTOVER = re.compile(r"(\..+)?\.gpt2onnx-(new|old|\d+-[0-9a-f]+)")  # what a killed process may leave of ours

# What a user can do where a folder cannot be written.
ELSEWHERE = "; choose an OUT in a folder that you may write to"
MENDS: dict[int | None, str] = {
    errno.ENOSPC: "; make room, or choose an OUT on another disk",
    errno.EDQUOT: "; make room, or choose an OUT on another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ELSEWHERE),
}


@contextmanager
def staged(out: Path, force: bool = False) -> Iterator[Path]:
    """Open a new folder beside ``out``. It takes the place of ``out`` if the block succeeds, and vanishes otherwise.

    Args:
        force: replace an existing ``out``, if it carries our manifest.

    Raises:
        OutputError: ``out`` exists and may not be replaced, or cannot be written.
    """
    out = Path(os.path.realpath(out))
    if not out.name:
        raise OutputError(f"{out} is no place for a model folder; choose another OUT")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        recover(out)
        _refuse_existing(out, force)
        before = _state(out)
        stage = out.with_name(stage_name(f".{out.name}.gpt2onnx-"))
        stage.mkdir()
        with _locked(stage):
            try:
                yield stage
                sync(stage)
                with _locked(out.parent, wait=True):
                    if _state(out) != before:
                        raise OutputError(
                            f"{out} was written by another command meanwhile, which was quicker; nothing of it was "
                            f"replaced: run this one again"
                        )
                    _refuse_existing(out, force)
                    _swap(stage, out)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{out} was not written: {reason(error)}{MENDS.get(error.errno, '')}") from error


def _refuse_existing(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise OutputError(
            f"{out} exists and has no {MANIFEST}: gpt2onnx did not write it, and does not replace it: "
            f"choose another OUT"
        )
    if not force:
        raise OutputError(f"{out} exists; choose another OUT, or --force to replace it")
    foreign = sorted(filter(counts, files_in(out) - written_files(out)))
    if foreign:
        raise OutputError(
            f"{out} holds {foreign[0]}, which gpt2onnx did not write; it is not replaced, choose another OUT"
        )


def _state(out: Path) -> tuple[int, int, int] | None:
    """Return what changes when a command writes ``out``; None of a folder without our manifest."""
    try:
        manifest = (out / MANIFEST).stat()
        return out.stat().st_ino, manifest.st_ino, manifest.st_mtime_ns
    except OSError:
        return None


def counts(name: str) -> bool:
    """Tell whether the name of a file is none that a killed process left."""
    return not any(map(LEFTOVER.fullmatch, name.split("/")))


def files_in(folder: Path) -> set[str]:
    """Return the names of all files below a folder, links included."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir() or file.is_symlink()}


def second_graph(model: Path) -> Path:
    """Return the file of the graph of a model's second head: ``model_multiple_choice.onnx``."""
    return model.with_stem(f"{model.stem}_multiple_choice")


def bytes_in(folder: Path) -> int:
    """Return the size of all files below a folder, without links."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def written_files(folder: Path) -> set[str]:
    """Return the names of the files that the folder's manifest lists, and of the manifest itself."""
    names = read_json(folder / MANIFEST).get("files")
    return {MANIFEST, *map(str, names)} if isinstance(names, list) else {MANIFEST}


def _aside(out: Path) -> Path:
    """Return where a folder is while another takes its place."""
    return out.with_name(f".{out.name}.gpt2onnx-old")


def _swap(stage: Path, out: Path) -> None:
    """Put the new folder in the old one's place. The old one is removed when that is on the disk.

    Where two folders cannot be swapped in one step it takes two renames; ``recover`` repairs what is killed in between.
    """
    if not out.exists() or not any(out.iterdir()):
        stage.rename(out)
        sync_entry(out.parent)
    elif exchange(stage, out):
        sync_entry(out.parent)  # the old folder is now ``stage``, which is removed
    else:
        aside = _aside(out)
        out.rename(aside)
        try:
            stage.rename(out)
        except OSError:
            aside.rename(out)
            raise
        sync_entry(out.parent)
        shutil.rmtree(aside)


def recover(out: Path) -> None:
    """Clean up after processes that were killed: restore the old folder, finish a change, remove what is half-written.

    Raises:
        OSError: the system does not allow it.
    """
    out = Path(os.path.realpath(out))
    if not out.name:
        return
    aside = _aside(out)
    if aside.exists():
        if out.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(out)
    sweep(out.parent, f".{out.name}{OURS}")
    tidy(out)


@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """Open a folder inside ``folder``. Its files take their places in ``folder`` all together, or none does.

    A process that is killed while it moves them leaves ``READY``; ``tidy`` then moves the others.

    Raises:
        OSError: the folder cannot be written.
    """
    tidy(folder)
    stage = folder / stage_name(OURS)
    stage.mkdir()
    with _locked(stage):
        try:
            yield stage
            sync(stage)
            try:
                stage.rename(folder / READY)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                raise OutputError(f"{folder} is being changed by another command; run this one again") from error
            sync_entry(folder)
            tidy(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Move the files that a killed process had ready to their places, and remove what it had only begun.

    Raises:
        OSError: there is such, and the folder cannot be written.
    """
    ready = folder / READY
    if ready.is_dir() and not ready.is_symlink():
        for file in sorted(ready.iterdir(), key=_turn):
            if file.is_file() and not file.is_symlink():
                with suppress(FileNotFoundError):  # another process moves them, too
                    file.replace(folder / file.name)
        sync_entry(folder)
        shutil.rmtree(ready, ignore_errors=True)
    sweep(folder, OURS)


def settle(folder: Path) -> None:
    """Do what ``tidy`` does, before a folder is read. What was only begun may stay where nobody may write.

    Raises:
        ModelFolderError: there is no such folder, or it is half old and half new, and may not be written.
    """
    if not folder.is_dir():
        aside = _aside(Path(os.path.realpath(folder)))
        if aside.is_dir():
            raise ModelFolderError(
                f"{folder} is being replaced, and the folder of before is {aside}; if no gpt2onnx convert is running, "
                f"one was killed: the next one brings it back"
            )
        raise ModelFolderError(f"there is no model folder {folder}; make one with gpt2onnx convert SOURCE OUT")
    try:
        tidy(folder)
    except OSError as error:
        if (folder / READY).is_dir():
            raise ModelFolderError(
                f"{folder} is half changed, as a command was killed: its other files wait in {READY}, and cannot be "
                f"moved from there ({reason(error)}); run gpt2onnx verify {folder} as a user who may write there"
            ) from error


def _turn(file: Path) -> tuple[bool, bool]:
    """Order files so that the manifest comes late, and last a graph: with it the folder is a model folder."""
    return file.suffix == ".onnx", file.name == MANIFEST


def stage_name(prefix: str) -> str:
    """Return the name of a half-written folder, which tells the process that it belongs to."""
    return f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"


def sweep(parent: Path, prefix: str) -> None:
    """Remove the half-written files and folders that killed processes left in ``parent``."""
    for leftover in parent.glob(f"{glob.escape(prefix)}*-*"):
        pid = leftover.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not leftover.is_symlink() and not _alive(int(pid)):
            with _locked(leftover) as ours:
                if ours and leftover.is_dir():
                    shutil.rmtree(leftover)
                elif ours:
                    leftover.unlink()


def _alive(pid: int) -> bool:
    if fcntl is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that ends with this process. It works across containers and hosts, too.

    Yields whether it is held: another process may hold it, unless this one is to ``wait``, or the system has no locks.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        held = False
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
    finally:
        os.close(handle)
