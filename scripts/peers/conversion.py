"""Convert a candidate's model, and measure the conversion."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
from processes import Run, measure

from peers.candidates import MODELS
from peers.errors import PeerError
from peers.running import LIMIT_SECONDS, last_line, log_file, python_of, surroundings


def convert(work: Path, source: Path, name: str) -> tuple[Run | None, int]:
    """Convert a model once; return what the process took, and the bytes on disk."""
    model = MODELS[name]
    out = work / "models" / name if model.command else source
    run = None
    if model.command:
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        python = python_of(work, model.environment)
        places = {"python": python, "bin": python.parent, "environment": python.parent.parent}
        command = [part.format(source=source, out=out, **places) for part in model.command]
        log = log_file(work, f"convert {name}")
        try:
            run = measure(command, log=log, limit=LIMIT_SECONDS, env=surroundings(model.environment))
        except (click.ClickException, OSError) as error:
            raise PeerError(last_line(log) or "its converter failed without a message") from error
    files = {file for pattern in model.files for file in out.glob(pattern) if file.is_file() and not file.is_symlink()}
    if not files:
        raise PeerError(f"its converter wrote no {' or '.join(model.files)}")
    return run, sum(file.stat().st_size for file in files)


def warm(folder: Path) -> None:
    """Read the checkpoint once, so that no candidate meets a cold disk."""
    with (folder / "model.safetensors").open("rb") as opened:
        while opened.read(1 << 20):
            pass
