"""Makes an export, once for all runs of the tests: the same order gives the same files."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.asking import replied

EXPORTERS = Path(__file__).parent / "exporters"
LOCK = Path(__file__).parents[2] / "requirements.lock"  # what the tests' own environment is made of


@dataclass(frozen=True)
class Order:
    """What is exported, and how.

    Attributes:
        exporter: the worker in ``exporters/``, without its prefix.
        environment: where it runs; None for the tests' own.
        source: the checkpoint that the exporter is given.
        options: what the worker is told.
        ignore: the input that transformers' forward pass does not look at.
    """

    exporter: str
    environment: Path | None
    source: Path
    options: dict[str, Any]
    ignore: str

    @property
    def worker(self) -> Path:
        return EXPORTERS / f"export_{self.exporter}.py"

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python" if self.environment else Path(sys.executable)

    @property
    def digest(self) -> str:
        """Return a name for all that decides what is written."""
        pins = self.environment / "installed" if self.environment else LOCK
        said = json.dumps([self.exporter, self.options, self.ignore], sort_keys=True)
        files = [pins, self.worker, EXPORTERS / "exporting.py", *sorted(self.source.iterdir())]
        return hashlib.sha256(b"\0".join([said.encode(), *(file.read_bytes() for file in files)])).hexdigest()[:16]


def made(shelf: Path, order: Order, breaks: bool = False) -> Path:
    """Return the folder of an export on the shelf, which is put there if it is not.

    ``breaks`` says that the exporter ends with an error after it has written the files, which are kept all the same.
    """
    place = shelf / order.digest
    if not place.is_dir():
        shelf.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shelf) as work:
            out = Path(work) / "out"
            request = {
                "source": str(order.source),
                "out": str(out),
                "options": order.options,
                "ignore": order.ignore,
            }
            reply = replied([str(order.python), str(order.worker)], request, Path(work))
            assert bool(reply) == breaks, reply.get("error", "it exports by now: it is broken no more")
            if not place.is_dir():  # no other process was faster
                shutil.move(out, place)
    return place
