"""The site builds without a warning, asks nobody but its own server, and leaves nothing of the project out."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import click
import pytest

import converter
from converter import errors
from converter.cli import cli
from converter.weights.table import TABLE

ROOT = Path(__file__).parents[2]

# What a browser fetches without being asked: tag → attribute.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "use": "href", "object": "data"}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as CONTRIBUTING.md says."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "WARNING" in line]) == (0, []), done.stderr
    return out


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A strict build. It must not be quiet: with --quiet MkDocs does not count warnings and ends with 0."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "--site-dir", str(out)]
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # Material's notice of its successor
    return subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False)


def test_a_warning_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A page\n\nThe cells [1] [2] are no links.\n")
    settings = "site_name: a page\nplugins: [mkdocstrings]\n"
    (tmp_path / "mkdocs.yml").write_text(settings)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "Could not find cross-reference target '2'" in done.stderr


class Fetches(HTMLParser):
    """Collects what a page fetches, and its ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        if tag == "link" and set((values.get("rel") or "").split()) & FETCHED_LINKS:
            self.found.append(values.get("href") or "")
        elif tag in FETCHED:
            self.found.append(values.get(FETCHED[tag]) or "")


def ids(page: Path) -> set[str]:
    return Fetches(page.read_text(encoding="utf-8")).ids


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    fetched = {url for page in pages for url in Fetches(page.read_text(encoding="utf-8")).found}
    assert any(url.endswith(".css") for url in fetched)
    assert any(url.endswith(".js") for url in fetched)
    assert {url for url in fetched if urlsplit(url).netloc} == set()
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        assert f'id="{name}"' in page
        part = page.partition(f'id="{name}"')[2].partition("<h2")[0]
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[-1] in part, (name, option.opts)


def test_everything_public_is_in_the_reference(site: Path) -> None:
    there = ids(site / "reference" / "python.html")
    for name in set(converter.__all__) - {"__version__"}:
        thing = getattr(converter, name)
        assert f"{thing.__module__}.{thing.__qualname__}" in there, name
    for name in errors.__all__:
        assert f"{getattr(errors, name).__module__}.{name}" in there, name


def test_the_walk_through_the_model_shows_every_tensor_and_no_gap(site: Path) -> None:
    page = (site / "line-by-line.html").read_text(encoding="utf-8")
    assert "{{" not in page
    assert page.count("<svg role=") == len(set(re.findall(r'figure\("(\w+)"', walk_through())))
    for weight in TABLE:
        if not weight.heads and weight.name != "h.{i}.mlp.act.weight":
            assert f"<code>{weight.name}</code>" in page


def walk_through() -> str:
    return (ROOT / "docs" / "line-by-line.md").read_text(encoding="utf-8")


# --- excerpts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def excerpts() -> ModuleType:
    """``scripts/docs/excerpts.py``."""
    spec = importlib.util.spec_from_file_location("docs_excerpts", ROOT / "scripts" / "docs" / "excerpts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_an_excerpt_is_lines_of_the_file_as_they_stand(excerpts: ModuleType) -> None:
    lines = (ROOT / "reference" / "model.py").read_text(encoding="utf-8").splitlines()
    found = excerpts.code("reference/model.py", "Conv1D.forward")
    assert "addmm" in found.text
    assert [line.strip() for line in lines[found.first - 1 : found.last]] == [
        line.strip() for line in found.text.splitlines()
    ]
    assert found.text.startswith("def forward")
    assert "addmm" in excerpts.code("reference/model.py", "Conv1D").text
    assert excerpts.code("converter/weights/table.py", "BUFFERS").text.startswith("BUFFERS = (")


def test_every_excerpt_of_the_walk_through_has_its_place(excerpts: ModuleType) -> None:
    named = re.findall(r'code\("([^"]+)", "([^"]+)"\)', walk_through())
    assert {"reference/model.py", "converter/graph/model.py"} <= {file for file, _ in named}
    for file, name in named:
        assert excerpts.code(file, name).text


def test_the_walk_through_leaves_no_class_of_the_model_out() -> None:
    tree = ast.parse((ROOT / "reference" / "model.py").read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)} - {"GPT2Output"}
    shown = set(re.findall(r'code\("reference/model.py", "(\w+)', walk_through()))
    assert classes - shown == set()


@pytest.mark.parametrize(
    ("file", "name"), [("reference/model.py", "Conv2D"), ("reference/model.py", "Conv1D.backward"), ("gone.py", "x")]
)
def test_an_excerpt_that_is_gone_is_an_error(excerpts: ModuleType, file: str, name: str) -> None:
    with pytest.raises(LookupError, match=re.escape(file)):
        excerpts.code(file, name)


def test_sections_are_found_by_their_heading_and_end_with_the_next(excerpts: ModuleType) -> None:
    found = excerpts.section("README.md", "Two commands")
    assert "bash scripts/demo.sh" in found.text
    assert "## " not in found.text
    with pytest.raises(LookupError, match="no heading 'Three commands'"):
        excerpts.section("README.md", "Three commands")
