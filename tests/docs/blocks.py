"""Runs the blocks of a documentation page, as its reader would, one after the other in one folder.

The convention, which the pages keep and CONTRIBUTING.md tells:

- a ``bash`` block is a script of its own; a ``python`` block goes on where the page's last one ended;
- a block of any language with ``title="FILE"`` is not run but saved as that file;
- a block with ``title="Output"`` is what the block before it prints (standard output and standard error);
- ``<!-- not run: REASON -->`` on the line above says why a block cannot be run here;
- ``text``, ``math`` and ``mermaid`` are no commands.

Of a printed text words and whole numbers must be as shown. Numbers with a decimal point may be a tenth off, those in
scientific notation ten times; times, speeds and amounts of memory are not compared. ``…`` stands for anything, on a
line of its own for any lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = ("bash", "python")
SHOWN = ("text", "math", "mermaid")

FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"^(?P<margin> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)^(?P=margin)```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(\d+\.\d+(?:e-?\d+)?|\d+e-?\d+)( ?(?:s|ms|[kMG]B|tokens/s|tok/s)\b)?")
ANY_NUMBER = r"\d+(?:\.\d+)?(?:e[-+]?\d+)?"
OUTPUT, ANYTHING = "Output", "…"


@dataclass
class Block:
    """One block of a page.

    Attributes:
        language: what stands behind the fence; any but those of SHOWN.
        line: of the page.
        text: what is run.
        title: the file that it becomes, if it is one.
        reason: why it is not run, if it is not.
        output: what it prints, if the page shows that.
    """

    language: str
    line: int
    text: str
    title: str | None
    reason: str | None
    output: str | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is a command, rather than a file or something that cannot be run here."""
        return self.title is None and self.reason is None


def blocks(page: Path) -> list[Block]:
    """Return every block of a page that is no plain text, in order, each with its output."""
    text, found = page.read_text(encoding="utf-8"), list[Block]()
    for match in FENCE.finditer(text):
        body, title = textwrap.dedent(match["text"]), match["title"]
        if title == OUTPUT:
            found[-1].output = body
        elif match["language"] not in SHOWN:
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(match["language"], line, body, title, match["reason"]))
    return found


def run_page(page: Path, folder: Path) -> None:
    """Run a page's blocks in ``folder``; the first that fails or prints something else is an AssertionError."""
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for block in blocks(page):
            run_block(block, folder, names, f"{page.name}, line {block.line}")
    finally:
        end_what_is_left()


STARTED: list[int] = []  # scripts; each has a process group of its own


def end_what_is_left() -> None:
    """End what scripts have left in the background, such as a server that a page did not come to stop."""
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop(), signal.SIGKILL)


def run_block(block: Block, folder: Path, names: dict[str, Any], place: str, **environment: str) -> None:
    """Run one block, or save it; ``names`` are those of the Python session, ``place`` is where the block stands."""
    if block.reason is not None:
        return
    if block.title is not None:
        (folder / block.title).write_text(block.text, encoding="utf-8")
        return
    assert block.language in RUN, f"{place}: a block of {block.language or 'no language'} is not run, and says not why"
    printed = (
        _bash(block, folder, place, environment) if block.language == "bash" else _python(block, folder, names, place)
    )
    if block.output is not None:
        problem = difference(block.output, printed)
        assert problem is None, f"{place}: {problem}\n--- shown\n{block.output}\n--- printed\n{printed}"


def _bash(block: Block, folder: Path, place: str, environment: dict[str, str]) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    one_thread = {"OMP_NUM_THREADS": "1"}  # torch's, with models this small
    script = subprocess.Popen(
        ["bash", "-eu", "-c", block.text],
        cwd=folder, env=os.environ | one_thread | {"PATH": path} | environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    STARTED.append(script.pid)
    printed, _ = script.communicate()
    assert script.returncode == 0, f"{place}: exit code {script.returncode}\n{block.text}\n{printed}"
    return printed


def _python(block: Block, folder: Path, names: dict[str, Any], place: str) -> str:
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(block.text, place, "exec"), names)
    return printed.getvalue()


def difference(shown: str, printed: str) -> str | None:
    """What of ``printed`` is not as it is ``shown``, if anything is not. Blanks and empty lines do not count."""
    match = re.fullmatch(_pattern(shown), "".join(f"{line}\n" for line in _lines(printed)))
    if match is None:
        return "another text"
    for expected, found in zip(_compared(shown), match.groups(), strict=True):
        factor = 10.0 if "e" in expected else 1.1
        low, high = sorted((abs(float(expected)), abs(float(found))))
        if high > factor * low:
            return f"{found} instead of {expected}"
    return None


def _lines(text: str) -> list[str]:
    """Lines with single blanks."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _compared(shown: str) -> list[str]:
    """The numbers that are compared as numbers."""
    return [match[1] for line in _lines(shown) for match in NUMBER.finditer(line) if not match[2]]


def _pattern(shown: str) -> str:
    """A regular expression for what may be printed; a group for each number that is compared."""
    return "".join(r"(?:.*\n)*?" if line == ANYTHING else f"{_line(line)}\n" for line in _lines(shown))


def _line(line: str) -> str:
    pattern, end = "", 0
    for match in re.finditer(rf" ?{ANYTHING} ?|{NUMBER.pattern}", line):
        pattern += re.escape(line[end : match.start()])
        pattern += ".*?" if ANYTHING in match[0] else ANY_NUMBER + match[2] if match[2] else f"({ANY_NUMBER})"
        end = match.end()
    return pattern + re.escape(line[end:])
