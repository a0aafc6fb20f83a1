"""The generated part of docs/clients.md: what the tests of the clients saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- seen: begin -->", "<!-- seen: end -->"
CANNOT = "cannot: "
# Clients of Python by the names that the model card has for them → their environments.
INSTALLED_AS = {
    "Optimum": "optimum",
    "onnxruntime-genai": "genai",
    "OpenVINO": "openvino",
    "transformers": "transformers",
}
JAVASCRIPT = "js"  # the environment of all others
RUNTIME = re.compile(r"onnxruntime-(\d[\d.]*)")  # the environments that hold ONNX Runtime alone


@dataclass(frozen=True)
class Seen:
    """One thing that was asked of one client, in one precision.

    Attributes:
        client: the name of its environment, unless it is one of those that share one.
        precision: of the folder's graphs; for the runtimes, which graph.
        what: was asked.
        outcome: "ok" or "cannot: why".
        note: a sentence on what is done to make it so.
    """

    client: str
    precision: str
    what: str
    outcome: str
    note: str = ""


def write(page: Path, seen: list[Seen], environments: Path) -> None:
    """Put the tables between the page's marks."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n{tables(seen, environments)}\n{END}{tail}", encoding="utf-8")


def tables(seen: list[Seen], environments: Path) -> str:
    """What each client answered, by precision; ONNX Runtimes of other ages in a table of their own."""
    runtimes = [row for row in seen if RUNTIME.fullmatch(row.client)]
    others = sorted((row for row in seen if row not in runtimes), key=lambda row: row.client.lower())
    clients = dict.fromkeys(row.client for row in others)
    versions = {client: pins(environments / INSTALLED_AS.get(client, JAVASCRIPT)) for client in clients}
    parts = ["## Clients", grid(others, ("client", "")), markdown([("client", "installed as"), *versions.items()])]
    parts += ["## Opsets and ONNX Runtime", grid(runtimes, ("ONNX Runtime", "precision"))] if runtimes else []
    return "\n\n".join(parts)


def grid(seen: list[Seen], titles: tuple[str, str]) -> str:
    """A row for each thing that a client was asked, a column for each precision, and the reasons below."""
    reasons: dict[str, int] = {}
    columns = list(dict.fromkeys(row.precision for row in seen))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in seen:
        cells.setdefault((RUNTIME.sub(r"\1", row.client), row.what), {})[row.precision] = cell(row, reasons)
    rows = [
        (*titles, *columns),
        *((*names, *(found.get(name, "") for name in columns)) for names, found in cells.items()),
    ]
    return "\n".join([markdown(rows), "", *(f"{number}. {reason}" for reason, number in reasons.items())]).strip()


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, whose first row is its head."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rest))


def cell(row: Seen, reasons: dict[str, int]) -> str:
    """ "ok", or the number of the reason."""
    failure = row.outcome.removeprefix(CANNOT) if row.outcome.startswith(CANNOT) else ""
    # Escaped, as MkDocs takes [1] [2] for a link.
    numbers = [rf"\[{reasons.setdefault(text, len(reasons) + 1)}\]" for text in (failure, row.note) if text]
    return " ".join([*([] if failure else [row.outcome]), *numbers])


def pins(environment: Path) -> str:
    """What the environment was made of."""
    file = environment / "installed"
    return ", ".join(file.read_text(encoding="utf-8").split()) if file.is_file() else ""
