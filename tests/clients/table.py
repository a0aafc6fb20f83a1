"""The generated part of docs/clients.md: what the tests of the clients saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- seen: begin -->", "<!-- seen: end -->"
CANNOT = "cannot: "
SHARED = dict.fromkeys(("transformers.js, Node", "transformers.js, Chromium", "onnxruntime-node"), "js")


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
    """What was run, each client's answers by precision, and the reasons of those that are none."""
    reasons: dict[str, int] = {}
    clients = list(dict.fromkeys(row.client for row in seen))
    precisions = list(dict.fromkeys(row.precision for row in seen))
    lines = ["| client | what | " + " | ".join(precisions) + " |", "|---|---|" + "---|" * len(precisions)]
    for client in clients:
        rows = [row for row in seen if row.client == client]
        for what in dict.fromkeys(row.what for row in rows):
            cells = {row.precision: cell(row, reasons) for row in rows if row.what == what}
            lines.append(f"| {client} | {what} | " + " | ".join(cells.get(name, "") for name in precisions) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    lines += ["", "| client | versions |", "|---|---|"]
    lines += [f"| {client} | {versions(environments / SHARED.get(client, client))} |" for client in clients]
    return "\n".join(lines)


def cell(row: Seen, reasons: dict[str, int]) -> str:
    """ "ok", or the number of the reason."""
    failure = row.outcome.removeprefix(CANNOT) if row.outcome.startswith(CANNOT) else ""
    numbers = [f"[{reasons.setdefault(text, len(reasons) + 1)}]" for text in (failure, row.note) if text]
    return " ".join([*([] if failure else [row.outcome]), *numbers])


def versions(environment: Path) -> str:
    """The pins that the environment was made of."""
    file = environment / "installed"
    return ", ".join(file.read_text(encoding="utf-8").split()) if file.is_file() else ""
