"""The drawing and the map of the rooms are those of the code, every path leads somewhere, and tests stand alone."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))

from drawing import Drawing, parse, svg  # noqa: E402

README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docs" / "site.css"]
NOT_ON_THE_WAY = {
    "__main__",
    "cli",
    "data",
    "errors",
    "files",
    "memory",
    "notebook",
    "onnx_file",
    "texts",
    "version",
}  # the commands above, the leaves below
DATA_ONLY = {("weights", "reference")}  # parity hands it over


def mermaid(page: Path) -> str:
    [found] = re.findall(r"```mermaid\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return found


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return parse(mermaid(README))


def rooms() -> list[str]:
    """Rooms and leaves in the order of the layers, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [contract] = [c for c in settings["contracts"] if c.get("containers") == ["converter"]]
    return [room for layer in contract["layers"] for room in re.split(r"[:\s|]+", layer)]


def imports() -> set[tuple[str, str]]:
    """Pairs of rooms: one that imports, one that is imported."""
    graph = grimp.build_graph("converter", "reference", cache_dir=None)
    found = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            found.add((room(module), room(other)))
    return found


def room(module: str) -> str:
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "converter" else first


def test_both_pages_have_the_same_drawing() -> None:
    assert mermaid(README) == mermaid(CONTRIBUTING)


def test_the_boxes_are_the_rooms(drawing: Drawing) -> None:
    ends = {"SOURCE", "REPORT"}
    assert drawing.labels.keys() - ends == (set(rooms()) - NOT_ON_THE_WAY) | {"reference"}
    assert {"checkpoint", "tokenizer"} == {b for a, b in drawing.edges if a == "SOURCE"}
    assert {"parity"} == {a for a, b in drawing.edges if b == "REPORT"}


def test_every_arrow_is_an_import_and_every_import_is_a_way_of_arrows(drawing: Drawing) -> None:
    own = {(a, b) for a, b in drawing.edges if {a, b}.isdisjoint({"SOURCE", "REPORT"})}
    assert drawing.dotted == DATA_ONLY
    imported = imports()
    assert {(a, b) for a, b in own - DATA_ONLY if (b, a) not in imported} == set()
    reached = dict.fromkeys(drawing.labels, frozenset[str]())
    for box in sorted(drawing.labels, key=drawing.row):
        reached[box] = frozenset({box}).union(*(reached[a] for a, b in own if b == box))
    drawn = set(drawing.labels) - {"reference"}  # whose config, free of torch, every room may read
    assert {(b, a) for b, a in imported if {a, b} <= drawn and a not in reached[b]} == set()
    assert not any(a == "reference" and b not in ("reference",) for a, b in imported)


def test_a_drawing_becomes_svg_with_every_box_and_arrow(drawing: Drawing) -> None:
    drawn = svg(mermaid(README))
    assert drawn.count("<rect") == len(drawing.labels)
    assert drawn.count("marker-end") == len(drawing.edges)
    assert drawn.count("stroke-dasharray") == len(DATA_ONLY)
    assert drawing.spine()[0] == "SOURCE"
    with pytest.raises(ValueError, match="not understood in the drawing: '  a => b'"):
        parse("flowchart TD\n  a --> b\n  a => b\n")


# --- the map in README ------------------------------------------------------------------------------------------------


def listed() -> list[tuple[str, ...]]:
    """Every folder of README's map, with those that it lies in."""
    section = (
        README.read_text(encoding="utf-8").partition("## The rooms")[2].partition("```text\n")[2].partition("```")[0]
    )
    found: list[tuple[str, ...]] = []
    for indent, name in re.findall(r"^( *)([\w/]+)/(?: |$)", section, re.MULTILINE):
        found.append((*(found[-1][: len(indent) // 2] if found else ()), name))
    return found


def test_the_map_lists_every_room_in_the_order_of_the_layers() -> None:
    assert [path for path in listed() if not (ROOT / Path(*path)).is_dir()] == []
    in_map = [path[1] for path in listed() if path[0] == "converter" and len(path) == 2]
    assert in_map == [room for room in rooms() if (ROOT / "converter" / room).is_dir()]
    parity = {path[2] for path in listed() if path[:2] == ("converter", "parity") and len(path) == 3}
    assert parity == {
        path.name for path in (ROOT / "converter" / "parity").iterdir() if (path / "__init__.py").exists()
    }


# --- paths ------------------------------------------------------------------------------------------------------------

NAMED = re.compile(
    r"(?<![\w./…-])((?:converter|reference|scripts|tests|docs)/[\w./-]*[\w/]|[A-Z]+\.md|\w+\.toml)(?![\w*<{])"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = set(NAMED.findall(page.read_text(encoding="utf-8")))
    assert {path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists()} == set()


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_name_that_contributing_says_a_file_has_is_in_it() -> None:
    told = re.findall(r"`(\w+)`\s\(`((?:[\w-]+/)+[\w.-]+)`", CONTRIBUTING.read_text(encoding="utf-8"))
    assert {"FORMATS", "MUTATIONS", "TABLE"} & {name for name, _ in told}
    for name, file in told:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{file} has no {name}"


# --- the tests --------------------------------------------------------------------------------------------------------


def names_imported(module: ast.Module) -> set[str]:
    """Every module that may be meant by an import: in ``from a import b``, both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module or ''}.{name}" for name in ("", *(alias.name for alias in node.names))}
    return found


def test_no_module_of_the_tests_imports_a_test_module() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert Path(__file__) in files
    for file in files:
        imported = names_imported(ast.parse(file.read_text(encoding="utf-8")))
        assert {name for name in imported if ".test_" in f".{name}"} == set(), file
