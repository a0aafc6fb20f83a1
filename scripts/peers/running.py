"""Say how a process of a peer runs: its Python, its variables, its threads, its time, its log."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from processes import ROOT

THREADS = os.cpu_count() or 1
LIMIT_SECONDS = 900  # for one answer or conversion
HERE = ""  # the environment of this process


def python_of(work: Path, environment: str) -> Path:
    return Path(sys.executable) if environment == HERE else work / "environments" / environment / "bin" / "python"


def surroundings(environment: str) -> dict[str, str]:
    """Return a process's environment variables: our modules for ours only, equal threads for all, and no Hub."""
    inherited = dict(os.environ)
    before = inherited.pop("PYTHONPATH", "")  # may lead to what this process itself has
    return {
        **inherited,
        **({"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), before)))} if environment == HERE else {}),
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def log_file(work: Path, name: str) -> Path:
    folder = work / "logs"
    folder.mkdir(exist_ok=True)
    return folder / f"{name.replace(' ', '-')}.log"


def last_line(log: Path) -> str:
    """Return the last line of a log, where most programs say why they failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    said = [line.split("\r")[-1].strip() for line in lines if line.strip()]
    return said[-1][:200] if said else ""
