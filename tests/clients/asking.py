"""Runs a worker in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"
LIMIT_SECONDS = 300

Reply = dict[str, Any]


def replied(command: list[str], request: Reply, home: Path) -> Reply:
    """What a worker replies. ``home`` is where it runs; there node looks for packages that are required."""
    done = subprocess.run(
        command,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        cwd=home,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        | {
            "HF_HUB_OFFLINE": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(WORKERS),
        },
    )
    print(done.stderr)  # noqa: T201 - pytest shows it beside a failure
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {"error": f"its process ended with {done.returncode}"}
