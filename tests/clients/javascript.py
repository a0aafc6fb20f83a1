"""What the tests of the JavaScript clients share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from converter.weights.precisions import PRECISIONS

ENVIRONMENT = "js"
NODE, CHROMIUM, ONNXRUNTIME = (f"../js/{name}.mjs" for name in ("run_node", "run_chromium", "run_onnxruntime"))

WHAT = ("single", "batch", "pipeline", "beams")  # that transformers.js is asked
CANNOT = {"beams": "wrong tokens"}
NOTES = {"beams": "it knows the option and takes the likeliest token all the same"}

Reply = dict[str, Any]


def asked(folder: Path, questions: Reply, precision: str) -> Reply:
    """What a worker is asked."""
    row = PRECISIONS[precision]
    return {**questions, "folder": str(folder), "model": row.model, "dtype": row.js_dtype}


def wanted(expected: Callable[[str, str], list[list[int]]], folder: Path, precision: str, what: str) -> list[Any]:
    """The new tokens of each prompt; of the pipeline, which gives texts, their text."""
    if what != "pipeline":
        return expected(precision, what)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.decode(row, skip_special_tokens=True) for row in expected(precision, "batch")]
