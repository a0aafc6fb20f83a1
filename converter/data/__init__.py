"""What ships with the project: a small GPT-2 that was really trained, and text that it has not seen."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "tiny"
HELD_OUT = CHECKPOINT / "heldout.txt"
