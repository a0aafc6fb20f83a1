"""The exports themselves: the sound ones give Hugging Face's logits, the wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.clients.exports import (
    BROKEN,
    DEFECTS,
    INTERFACES,
    MAIN,
    ROWS,
    SOUND,
    TOKENS,
    WRONG_AS_RELEASED,
    Interface,
    config_of,
)
from tests.clients.feeding import logits, session

PADDING = 3  # of the tokens
CARELESS = [name for name in MAIN.values() if name != "mobius"]  # it does not run transformers' forward pass
VISIBLE = 10  # times the tolerance: how far off a wrong one is at least

Exported, SourceOf = Callable[..., Path], Callable[[str], Path]


@pytest.fixture
def error(exported: Exported, source_of: SourceOf) -> Callable[..., float]:
    """``error(interface, variant, **row)``: how far an export's logits are from those of its source."""

    def difference(name: str, variant: str = "usual", **row: object) -> float:
        interface = Interface(**vars(INTERFACES[name]) | row)
        folder = exported(name, variant)
        ids, mask, positions = asked(interface)
        kept = mask.astype(bool)
        found = logits(folder, interface, ids, mask, positions, config_of(variant))
        return float(np.abs(found - hugging_face(source_of(variant), ids, mask, positions))[kept].max())

    return difference


def asked(interface: Interface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two prompts, the second padded on the left if the graph can be told so."""
    ids = np.random.default_rng(0).integers(0, 61, (ROWS, TOKENS))
    mask = np.ones_like(ids)
    if interface.mask and interface.masks:
        mask[1, :PADDING] = 0
    counted = mask if interface.positions else np.ones_like(ids)
    return ids, mask, np.maximum(counted.cumsum(1) - 1, 0)


def hugging_face(source: Path, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
    kept = {"attn_implementation": "eager", "reorder_and_upcast_attn": False}  # which it cannot do in float64
    model = transformers.GPT2LMHeadModel.from_pretrained(source, **kept).double().eval()
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()


@pytest.mark.parametrize("name", INTERFACES)
def test_an_export_gives_the_logits_of_its_source(name: str, error: Callable[..., float]) -> None:
    assert error(name) < INTERFACES[name].tolerance


@pytest.mark.parametrize("variant", [name for name in SOUND if name != "usual"])
@pytest.mark.parametrize("name", MAIN.values())
def test_an_export_of_another_source_does_unless_its_exporter_is_known_to_err(
    name: str, variant: str, error: Callable[..., float]
) -> None:
    wrong = error(name, variant) > VISIBLE * INTERFACES[name].tolerance
    assert wrong == ((name, variant) in WRONG_AS_RELEASED)


@pytest.mark.parametrize("variant", [name for name in DEFECTS if not DEFECTS[name].ignore])
@pytest.mark.parametrize("name", MAIN.values())
def test_an_export_of_changed_files_is_wrong(name: str, variant: str, error: Callable[..., float]) -> None:
    assert error(name, variant) > VISIBLE * INTERFACES[name].tolerance


@pytest.mark.parametrize("variant", [name for name in DEFECTS if DEFECTS[name].ignore])
@pytest.mark.parametrize("name", CARELESS)
def test_an_export_that_ignores_an_input_is_wrong(name: str, variant: str, error: Callable[..., float]) -> None:
    assert error(name, variant) > VISIBLE * INTERFACES[name].tolerance


@pytest.mark.parametrize("name", ["optimum 1.24, merged", "optimum 1.24, separate"])
def test_optimum_1_24_let_the_tokens_of_a_later_call_see_those_after_them(
    name: str, error: Callable[..., float]
) -> None:
    assert error(name, step=2) > VISIBLE * INTERFACES[name].tolerance


def test_mobius_for_genai_takes_padding_for_tokens(error: Callable[..., float]) -> None:
    assert error("mobius, genai", masks=True) > VISIBLE * INTERFACES["mobius, genai"].tolerance


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_export_does_not_open(name: str, exported: Exported) -> None:
    file = exported(name) / BROKEN[name].graph
    with pytest.raises(Exception, match="bound to different types"):
        session(file)
