"""The documentation does what it says: every block is run as it stands, and prints what is shown."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import FENCE, RUN, Block, blocks, difference, run_block, run_page

ROOT = Path(__file__).parents[2]
DOCS, README = ROOT / "docs", ROOT / "README.md"
EVERY_PAGE = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

FROM_NOTHING = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]  # they make all that they read
AMID_THINGS = [
    page for page in EVERY_PAGE if page not in (*FROM_NOTHING, README) and any(block.is_run for block in blocks(page))
]

# What the pages read beside what the examples of --help read: name → thing.
NAMED = {
    "OUT": "gpt2-onnx",
    "my-classifier-onnx": "classifier-onnx",
    "notes.txt": "my.txt",
    "ckpt.pt": "nanogpt/ckpt.pt",
}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    fences = re.findall(r"^[ >]*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len([*FENCE.finditer(page.read_text(encoding="utf-8"))])
    assert [block.line for block in blocks(page) if block.is_run and block.language not in RUN] == []


@pytest.mark.parametrize("page", FROM_NOTHING, ids=name)
def test_every_block_of_a_page_runs_and_prints_what_is_shown(page: Path, tmp_path: Path) -> None:
    assert any(block.is_run for block in blocks(page))
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", AMID_THINGS, ids=name)
def test_every_block_of_a_page_runs_beside_the_folders_that_it_names(
    page: Path,
    tmp_path: Path,
    things: Path,
) -> None:
    run_page(page, copied(things, tmp_path / "here"))


def copied(things: Path, here: Path) -> Path:
    """Copy everything that a page reads; return the folder."""
    shutil.copytree(things, here, symlinks=True)
    for name, thing in NAMED.items():
        copy = shutil.copytree if (here / thing).is_dir() else shutil.copy
        copy(here / thing, here / name)
    return here


# --- README.md --------------------------------------------------------------------------------------------------------

OF_README = [block for block in blocks(README) if block.is_run]
WRITTEN = ("OUT", "gpt2-onnx", "inside-onnx")  # by README's commands


@pytest.fixture
def clone(tmp_path: Path, things: Path) -> Path:
    """The repository as it is checked out, set up as scripts/setup.sh leaves it, with the things that README names."""
    here = copied(things, tmp_path / "here")
    for name in WRITTEN:
        shutil.rmtree(here / name)
    for name in ("converter", "reference", "scripts"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, here / name)
    (here / ".venv").mkdir()
    (here / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    mark = "echo $(cat requirements.lock pyproject.toml scripts/setup.sh | cksum) $PWD > .venv/installed"
    subprocess.run(["bash", "-c", mark], cwd=here, check=True)
    return here


@pytest.mark.parametrize("block", OF_README, ids=lambda block: block.text.partition("\n")[0][:40])
def test_every_block_of_the_readme_runs_and_prints_what_is_shown(block: Block, clone: Path) -> None:
    run_block(block, clone, {"__name__": "__main__"}, f"README.md, line {block.line}", PYTHONPATH=str(clone))


# --- the runner itself ------------------------------------------------------------------------------------------------


def test_a_block_that_fails_or_prints_something_else_fails_the_page(tmp_path: Path) -> None:
    def page(*lines: str) -> Path:
        file = tmp_path / "page.md"
        file.write_text("\n".join(lines) + "\n")
        return file

    run_page(page("```bash", "echo one", "```", "", '```text title="Output"', "one", "```"), tmp_path)
    run_page(page("```python", "a = 1", "```", "and", "```python", "assert a == 1", "```"), tmp_path)
    run_page(page("<!-- not run: no such thing -->", "```bash", "false", "```"), tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md, line 1: another text"):
        run_page(page("```bash", "echo two", "```", "", '```text title="Output"', "one", "```"), tmp_path)
    with pytest.raises(AssertionError, match="exit code 1"):
        run_page(page("```bash", "false", "true", "```"), tmp_path)
    with pytest.raises(AssertionError, match=r"page\.md, line 1: a block of js is not run"):
        run_page(page("```js", "f()", "```"), tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_page(page("1. indented", "", "    ```python", "    1 / 0", "    ```"), tmp_path)


def test_files_that_a_page_shows_are_there_for_its_commands(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text('```python title="a.py"\nprint(7)\n```\n```bash\npython a.py\n```\n')
    run_page(tmp_path / "page.md", tmp_path)
    assert (tmp_path / "a.py").read_text() == "print(7)\n"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("took 1.5 s, 20.1 MB, 5 files", "took 22.7 s, 1.0 MB, 5 files", True),
        ("took 1.5 s, 5 files", "took 1.5 s, 6 files", False),
        ("perplexity 12.5", "perplexity  12.6\n", True),
        ("perplexity 12.5", "perplexity 15.0", False),
        ("error 3.0e-07", "error 1.1e-07", True),
        ("error 3.0e-07", "error 1.1e-05", False),
        ("first\n…\nlast 1.0", "first\nmore 7.7\nlast 1.0", True),
        ("first\n…\nlast", "first", False),
        ("…\none … 5.0\n…", "zero 1.0\none 2.0 3.0 5.0\ntwo 5.0", True),
        ("one … 5.0", "one 5.0 3.0\n", False),
        ("one\ntwo", "one two", False),
        ("a [b] (c)", "a [b] (c)", True),
    ],
)
def test_numbers_that_depend_on_the_machine_may_differ_and_nothing_else(shown: str, printed: str, same: bool) -> None:
    assert (difference(shown, printed) is None) == same
