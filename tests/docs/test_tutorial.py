"""The documentation does what it says: its blocks are run in an empty folder, and print what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import blocks, difference, run_page

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_and_prints_what_is_shown(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_has_blocks_that_are_run(page: Path) -> None:
    assert any(block.reason is None and block.title is None for block in blocks(page))


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
