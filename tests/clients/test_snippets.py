"""The programs on a model card run, and write what Hugging Face writes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import load
from converter.folder.clients import runs
from converter.weights.precisions import PRECISIONS
from tests.clients.table import INSTALLED_AS

PROMPT, NEW_TOKENS = "Once upon a time", 40


def snippets(folder: Path) -> dict[str, str]:
    """The Python programs of a model card, by their headings."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^### ([^\n]+)\n(?:(?!^#).)*?^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("client", INSTALLED_AS)
def test_a_snippet_writes_what_is_expected(
    client: str, precision: str, only: Callable[[str], Path], environment: Callable[[str], Path]
) -> None:
    out = only(precision)
    there = snippets(out)
    assert (client in there) == runs(client, precision)
    if client in there:
        python = environment(INSTALLED_AS[client]) / "bin" / "python"
        text = load(out).generate([PROMPT], max_new_tokens=NEW_TOKENS).texts[0]
        done = subprocess.run(
            [python, "-c", there[client]],
            cwd=out,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert (PROMPT + text).strip() in done.stdout
