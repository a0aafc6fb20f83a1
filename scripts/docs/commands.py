"""Write the commands as Markdown, from click: the text of ``--help``, with examples as blocks and options as tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from converter.cli import cli

PAGE = re.compile(r"docs/(\w+)\.md")  # how --help refers to a page of the documentation
VERBATIM = "\b"  # click's mark of a paragraph that must not be wrapped


def commands() -> str:
    """Return every command of the tool."""
    top = click.Context(cli, info_name="gpt2onnx")
    return "\n\n".join(part for name in cli.list_commands(top) for part in _command(name, top))


def _command(name: str, top: click.Context) -> Iterator[str]:
    command = cli.get_command(top, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=top)
    yield f"## gpt2onnx {name} {{ #{name} }}"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        verbatim = paragraph.startswith(VERBATIM)
        yield _block(paragraph.removeprefix(VERBATIM)) if verbatim else PAGE.sub(r"[\1](../\1.md)", paragraph)
    yield _block(" ".join([context.command_path, *command.collect_usage_pieces(context)]), "text")
    records = (param.get_help_record(context) for param in command.get_params(context))
    rows = (f"| `{names}` | {_cell(said)} |" for names, said in filter(None, records) if said)
    yield "\n".join(["| option | |", "| --- | --- |", *rows])


def _block(text: str, language: str = "bash") -> str:
    return f"```{language}\n{text.strip()}\n```"


def _cell(text: str) -> str:
    """Return plain text for a table."""
    return text.replace("|", "&#124;").replace("*", "&#42;").replace("<", "&lt;").replace("  [", " [")
