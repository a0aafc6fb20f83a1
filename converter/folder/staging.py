"""Write a folder that appears whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from converter.errors import OutputError
from converter.files import read_json, reason

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: leftovers of a killed conversion stay
    fcntl = None

MANIFEST = "gpt2onnx.json"
OURS = ".gpt2onnx-"  # how the names of unfinished folders inside a model folder begin

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
    aside = out.with_name(f".{out.name}.gpt2onnx-old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _recover(out, aside)
        _refuse_existing(out, force)
        stage = out.with_name(stage_name(f".{out.name}.gpt2onnx-"))
        stage.mkdir()
        with _locked(stage):
            try:
                yield stage
                _refuse_existing(out, force)  # another conversion may have been quicker
                _swap(stage, out, aside)
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
    foreign = sorted(files_in(out) - written_files(out))
    if foreign:
        raise OutputError(
            f"{out} holds {foreign[0]}, which gpt2onnx did not write; it is not replaced, choose another OUT"
        )


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


def _swap(stage: Path, out: Path, aside: Path) -> None:
    """Put the new folder in the old one's place. If it is killed between the two renames, ``_recover`` repairs it."""
    if out.exists() and any(out.iterdir()):
        out.rename(aside)
        try:
            stage.rename(out)
        except OSError:
            aside.rename(out)
            raise
        shutil.rmtree(aside)
    else:
        stage.rename(out)


def _recover(out: Path, aside: Path) -> None:
    """Clean up after a conversion that was killed: restore the old folder, and remove half-written ones."""
    if aside.exists():
        if out.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(out)
    sweep(out.parent, f".{out.name}.gpt2onnx-")


def stage_name(prefix: str) -> str:
    """Return the name of a half-written folder, which tells the process that it belongs to."""
    return f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"


def sweep(parent: Path, prefix: str) -> None:
    """Remove the half-written folders that killed processes left in ``parent``."""
    for leftover in parent.glob(f"{glob.escape(prefix)}*-*"):
        pid = leftover.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not _alive(int(pid)):
            with _locked(leftover) as ours:
                if ours:
                    shutil.rmtree(leftover)


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
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a lock that ends with this process. It works across containers and hosts, too."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        held = False
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
    finally:
        os.close(handle)
