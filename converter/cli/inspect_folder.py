"""What a model folder holds: its precisions, their size and quality, and what a check found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.cli import tables, terminal
from converter.folder import manifest
from converter.folder.certificate import KEY
from converter.folder.staging import bytes_in, settle

# What a check left of a precision: its key, the heading, and how it is written.
QUALITY = {
    "kl_mean": ("KL mean", ".0e"),
    "top_1": ("same top-1", ".1%"),
    "perplexity_ratio": ("perplexity ÷ truth's", ".5f"),
}
NUMBERS = ("opset", "size", "quantized", *(heading for heading, _ in QUALITY.values()))


def holds_model(folder: Path) -> bool:
    """Tell whether this is a model folder of ours."""
    if folder.is_dir():
        settle(folder)
    return folder.is_dir() and isinstance(manifest.read(folder).get("precisions"), dict)


def is_in_place(folder: Path) -> bool:
    """Tell whether the graph lies beside the weights of a source, which the folder is too."""
    return "/" not in str(manifest.read(folder).get("model", "/"))


def print_folder(folder: Path, found: Mapping[str, Any]) -> None:
    """Print what a folder holds, which ``folder_facts`` found."""
    out = terminal.console()
    source, heads = found["source"], found["heads"]
    made = f"{source.get('name')}{' + ' + source['adapter'] if 'adapter' in source else ''}"
    out.print(
        f"{folder}: model folder, GPT-2 with {found['parameters']:,} parameters, "
        f"{'head' if len(heads) == 1 else 'heads'} {', '.join(heads)}; made of {made} by gpt2onnx {found['gpt2onnx']}, "
        f"{terminal.size(found['bytes'])} in all",
        markup=False,
    )
    rows = tables.table("precision", "graph", *NUMBERS, right=NUMBERS)
    for name, facts in found["precisions"].items():
        graph = ", ".join(facts.get("heads", {}).values()) or str(facts.get("model", "–"))
        rows.add_row(tables.named(name), tables.named(graph), *_numbers(facts))
    tables.show_dense(out, rows, "graph", "quantized")
    for name, facts in found["precisions"].items():
        if manifest.OUTPUTS in facts:
            out.print(
                f"{name} returns {', '.join(facts[manifest.OUTPUTS])} too: gpt2onnx run {folder} TEXT", markup=False
            )
    out.print(certificate_line(folder, found["certificate"]), markup=False)


def _numbers(facts: Mapping[str, Any]) -> tuple[str, ...]:
    share, quality = facts.get("quantized"), facts.get("quality") or {}
    return (
        str(facts.get("opset", "–")),
        terminal.size(facts["bytes"]) if "bytes" in facts else "–",
        f"{share:.1%}" if share else "–",
        *(f"{quality[key]:{form}}" if quality.get(key) is not None else "–" for key, (_, form) in QUALITY.items()),
    )


def certificate_line(folder: Path, certificate: Mapping[str, Any] | None) -> str:
    """Say in a sentence whether the folder was checked."""
    if certificate is None:
        return f"not checked: gpt2onnx check SOURCE {folder}"
    verdict = "a match" if certificate["passed"] else f"a MISMATCH: {certificate['verdict']}"
    return (
        f"checked on {certificate['date']} ({certificate['level']}), {verdict}; whether these are still the files that "
        f"were checked, gpt2onnx verify {folder} says"
    )


def folder_facts(folder: Path) -> dict[str, Any]:
    """Return a folder's content for JSON."""
    values = manifest.read(folder)
    certificate = values.get(KEY)
    shown = ("passed", "verdict", "date", "level", "gpt2onnx")
    return {
        "folder": str(folder),
        "source": values.get("source", {}),
        "gpt2onnx": values.get("versions", {}).get("gpt2onnx"),
        "parameters": values.get("parameters", 0),
        "heads": list(values.get("heads", {})),
        "bytes": bytes_in(folder),
        "precisions": values["precisions"],
        "certificate": {key: certificate.get(key) for key in shown} if isinstance(certificate, dict) else None,
    }
