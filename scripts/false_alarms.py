"""Check random GPT-2s of every legal shape and flag against their own conversion: how often does a good one fail?

    python scripts/false_alarms.py --models 200

Each model has weights as large as after training, one of three dtypes, and an opset from 17 to 25. The script prints
every failure, and how close the other models came to a limit. It ends with 1 if there was a false alarm.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers

from converter import check, convert
from converter.graph.build import MAX_OPSET, MIN_OPSET
from reference.config import ACTIVATION_NAMES

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPREAD = 0.15  # how far the weights are moved from their initialisation

# Label → the leg, and its value that is compared with a limit.
MULTIPLES: dict[str, tuple[str, Callable[[Any], float]]] = {
    "ONNX Runtime, RMS ÷ floor": ("ONNX Runtime float32", lambda leg: leg.rms_floors),
    "ONNX Runtime, max ÷ floor": ("ONNX Runtime float32", lambda leg: leg.maximum_floors),
    "reference, RMS ÷ floor": ("reference float32", lambda leg: leg.rms_floors),
    "reference, max ÷ floor": ("reference float32", lambda leg: leg.maximum_floors),
    "graph in float64, share of scale": ("ONNX graph in float64", lambda leg: leg.maximum),
    "Hugging Face float64, share of scale": ("Hugging Face float64 eager", lambda leg: leg.maximum),
}


def random_config(rng: np.random.Generator) -> dict[str, Any]:
    """Return a legal architecture, small and otherwise random."""
    n_head = int(rng.integers(1, 5))
    return {
        "n_head": n_head,
        "n_embd": n_head * int(rng.integers(1, 17)),
        "n_layer": int(rng.integers(1, 5)),
        "n_positions": int(rng.integers(1, 80)),
        "vocab_size": int(rng.integers(2, 200)),
        "n_inner": None if rng.random() < 0.5 else int(rng.integers(1, 80)),
        "activation_function": str(rng.choice(ACTIVATION_NAMES)),
        "layer_norm_epsilon": float(rng.choice((1e-12, 1e-6, 1e-5, 1e-3))),
        "bos_token_id": None,
        "eos_token_id": None,
    } | {
        flag: bool(rng.random() < 0.5)
        for flag in (
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "tie_word_embeddings",
        )
    }


@click.command(help=__doc__)
@click.option("--models", default=200, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(models: int, seed: int) -> None:
    transformers.utils.logging.disable_progress_bar()
    rng, began = np.random.default_rng(seed), time.monotonic()
    worst = dict.fromkeys(MULTIPLES, 0.0)
    alarms = 0
    for number in range(models):
        config = random_config(rng)
        torch.manual_seed(seed + number)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * SPREAD)
        dtype, opset = DTYPES[int(rng.integers(3))], int(rng.integers(MIN_OPSET, MAX_OPSET + 1))
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "source", Path(folder) / "out"
            model.to(dtype).save_pretrained(source)
            convert(source, out, opset=opset)
            report = check(source, out, certify=False)
        if not report.passed:
            alarms += 1
            click.echo(f"false alarm: {config}, {dtype}, opset {opset}: {report.faults}")
        legs = {leg.name: leg for leg in report.legs}
        for label, (name, value) in MULTIPLES.items():
            worst[label] = max(worst[label], value(legs[name]))
    click.echo(f"{alarms} false alarms in {models} models; {time.monotonic() - began:.0f} s. Closest to a limit:")
    for label, closest in worst.items():
        click.echo(f"  {label:40} {closest:.2g}")
    sys.exit(alarms > 0)


if __name__ == "__main__":
    main()
