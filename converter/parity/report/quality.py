"""Record what a check measured of a folder's precisions in its manifest and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converter.checkpoint.config import parse_config
from converter.files import read_json
from converter.folder import card
from converter.folder.staging import MANIFEST
from converter.parity.report.report import Report
from converter.parity.verdict.judge import LegReport


def recorded(folder: Path, report: Report) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the folder's manifest with the quality of each precision, and the texts that follow from it, by file."""
    values = read_json(folder / MANIFEST)
    for name, facts in values.get("precisions", {}).items():
        leg = next((leg for leg in report.legs if leg.ships(name)), None)
        if leg is not None and leg.scored:
            facts["quality"] = measured(leg, report)
    card_is_ours = "README.md" in values.get("files", []) and "README.md" not in report.allowed_files
    if "precisions" not in values or not card_is_ours:
        return values, {}
    config = parse_config(read_json(folder / "config.json"), folder / "config.json")
    return values, {"README.md": card.render(values, config)}


def measured(leg: LegReport, report: Report) -> dict[str, float | str]:
    """Return what is recorded of a precision: divergence, agreement, perplexity, and the text."""
    return {
        "kl_mean": leg.kl_mean,
        "kl_999": leg.kl_999,
        "kl_maximum": leg.kl_maximum,
        "top_1": 1 - (leg.flips + leg.near_ties) / leg.positions,
        "dp_rms": leg.dp_rms,
        "perplexity": leg.perplexity,
        "perplexity_ratio": leg.perplexity_ratio,
        "perplexity_ratio_error": leg.perplexity_ratio_error,
        "positions": leg.positions,
        "scored": leg.scored,
        "text": report.text,
    }
