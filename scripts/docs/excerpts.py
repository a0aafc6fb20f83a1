"""Find pieces of the project's own files by their names. A piece that is gone is an error, never an old copy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Excerpt:
    """Some lines of a file.

    Attributes:
        file: relative to the repository.
        first: the number of the first line, from 1.
        text: the lines, with their common indentation removed.
    """

    file: str
    first: int
    text: str

    @property
    def last(self) -> int:
        """Return the number of the last line."""
        return self.first + self.text.count("\n")


def code(file: str, name: str) -> Excerpt:
    """Return a class, function, method or constant of a Python file, by its dotted name, with the comments in its
    lines.

    Raises:
        LookupError: there is no such file, or nothing of that name in it.
    """
    lines = _read(file).splitlines()
    node: ast.AST = ast.parse("\n".join(lines))
    for part in name.split("."):
        found = [child for child in ast.iter_child_nodes(node) if part in _names(child)]
        if not found:
            raise LookupError(f"{file} has no {name}")
        node = found[-1]
    assert isinstance(node, ast.stmt)
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    first = min([node.lineno, *(d.lineno for d in decorators)])
    assert node.end_lineno is not None
    return Excerpt(file, first, _dedent(lines[first - 1 : node.end_lineno]))


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement defines."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            yield name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _dedent(lines: list[str]) -> str:
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[margin:] for line in lines)


def section(file: str, heading: str) -> Excerpt:
    """Return the text below a heading of a Markdown file, up to the next heading of any level.

    Raises:
        LookupError: there is no such file or heading.
    """
    lines = _read(file).splitlines()
    fenced, begin = False, None
    for number, line in enumerate(lines):
        fenced ^= line.startswith("```")
        if fenced or not (match := re.match(r"#+ (.*)", line)):
            continue
        if begin is not None:
            return Excerpt(file, begin + 1, "\n".join(lines[begin:number]).strip("\n"))
        if match[1] == heading:
            begin = number + 1
    if begin is None:
        raise LookupError(f"{file} has no heading {heading!r}")
    return Excerpt(file, begin + 1, "\n".join(lines[begin:]).strip("\n"))


def _read(file: str) -> str:
    try:
        return (ROOT / file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise LookupError(f"there is no file {file}") from error
