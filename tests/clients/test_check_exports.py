"""The check of other software's exports: sound ones match, and what is wrong with the others is caught and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from converter import check, load
from converter.parity.report.report import Report
from converter.runtime.integer import exact_kind
from tests.clients.exporters_table import JUDGED, judgement
from tests.clients.exports import (
    ARGUMENTS,
    BROKEN,
    DEFECTS,
    INTERFACES,
    MAIN,
    RENAMED,
    SOUND,
    WRONG_AS_RELEASED,
    WRONG_AT_TIMES,
    Interface,
    config_of,
)
from tests.clients.judging import measured_once
from tests.clients.treatments import TREATMENTS

Exported, SourceOf = Callable[..., Path], Callable[[str], Path]
Judged = Callable[..., Report]

TREATED = ("torch", "torchscript", "optimum", "optimum 1.17", "optimum 1.24", "onnxruntime", "mobius")
NOT_MADE = {("mobius", "opset 19"), ("mobius", "opset 21")}  # which have no Attention
REFUSED = "cannot be run by ONNX Runtime"
# What tools make of a right export that ONNX Runtime itself refuses to open, or that computes something else.
BROKEN_BY_TOOLS = {
    **{
        ("mobius", name): "cannot be run by ONNX Runtime" for name in TREATMENTS if name.startswith(("float16", "int8"))
    },
    ("mobius", "uint8"): "cannot be run by ONNX Runtime",
    ("mobius", "fused"): "the activation in h.0.mlp.act is gelu",  # it takes Gelu by tanh for Gelu by erf
    ("mobius", "fused and optimized"): "the activation in h.0.mlp.act is gelu",
}
# Sums of products of uint8 and int8 that ONNX Runtime cuts off on some processors, which a tensor's one scale avoids.
CUT_OFF = {"int8 by channel"} if exact_kind() != np.int8 else set()
PARTLY = {"torch, one shape": {"wpe.weight": "the first 8 of 40 rows"}}  # which are all that it can use
FUSED = ("optimum, O2", "transformers, fused", "onnxruntime, fused")  # operators without float64
LOSSY = {"fp16": "fp16", "float16": "fp16", "quantized": "int8", "int8": "int8", "q4": "int4"}  # by words of a name

# What is wrong → the cause that is named, and the operation.
NAMED = {
    "activation": ("activation", "h.0.mlp.act"),
    "epsilon": ("epsilon", "h.0.ln_1"),
    "scale by layer": ("inverse_layer", "h.1.attn.sdpa"),
    "scale": ("scale", "h.0.attn.sdpa"),
    "transposed": ("transposed", "h.1.attn.c_proj"),
    "positions": ("position", "wpe"),
    "mask": ("mask", "h.0.attn.sdpa"),
}
NAMED_AS_RELEASED = {
    ("optimum", "scaled by layer"): ("inverse_layer", "h.1.attn.sdpa"),
    ("optimum 1.24", "scaled by layer"): ("inverse_layer", "h.1.attn.sdpa"),
    ("optimum 1.24", "unscaled"): ("scale", "h.0.attn.sdpa"),
    ("optimum 1.24", "all flags"): ("scale", "h.0.attn.sdpa"),
    ("mobius", "scaled by layer"): ("inverse_layer", "h.1.attn.sdpa"),
    ("optimum", "unscaled"): ("scale", "h.0.attn.sdpa"),
    ("optimum", "all flags"): ("scale", "h.0.attn.sdpa"),
    ("mobius", "unscaled"): ("scale", "h.0.attn.sdpa"),
    ("mobius", "all flags"): ("scale", "h.0.attn.sdpa"),
    ("mobius", "square"): ("transposed", "h.0.mlp.c_fc"),
}

# A trace leaves an input out that nothing looks at, so that the graph does not lie about it: what is said instead.
TRACED = ("optimum", "optimum 1.17", "optimum 1.24", "onnxruntime")
LEFT_OUT = {
    "positions": "it takes no position_ids and counts padding too",
    "mask": "it takes no attention_mask, so that it is held on unpadded rows only",
}

PROMPTS = [[3, 5, 7], [1, 2, 3, 4, 5, 6, 8], [9]]
NEW = 5


@pytest.fixture(scope="module", autouse=True)
def sources_are_measured_once() -> Iterator[None]:
    with measured_once():
        yield


@pytest.fixture(scope="module")
def judged(exported: Exported, source_of: SourceOf, pytestconfig: pytest.Config) -> Judged:
    """``judged(interface, variant="usual")``: the report on an export, held against what it claims to be of."""

    def run(name: str, variant: str = "usual") -> Report:
        row = (INTERFACES | BROKEN)[name]
        given = {word: ARGUMENTS[role] for role, word in RENAMED.items()} if row.ids == RENAMED["ids"] else None
        report = check(source_of(variant), target(exported(name, variant), row), inputs=given)
        pytestconfig.stash[JUDGED].append(judgement(name, variant, report))
        return report

    return run


def target(folder: Path, row: Interface) -> Path:
    """The folder, as a user gives it; the file itself where others of the folder are of another precision."""
    return folder / row.graph if "precisions" in row.options else folder


def precision_of(name: str) -> str:
    return next((precision for word, precision in LOSSY.items() if word in name.split()), "fp32")


@pytest.mark.parametrize("name", [name for name in INTERFACES if name not in WRONG_AT_TIMES])
def test_a_sound_export_matches_and_all_its_weights_are_the_sources(name: str, judged: Judged) -> None:
    report = judged(name)
    assert report.headline == "MATCH", report.faults
    found = report.export
    assert found is not None
    assert found.weights is not None
    assert found.precision == precision_of(name)
    assert found.weights.missing == ()
    assert found.weights.partly == PARTLY.get(name, {})
    assert found.localisation is None


@pytest.mark.parametrize("variant", [name for name in SOUND if name != "usual"])
@pytest.mark.parametrize("name", MAIN.values())
def test_an_export_of_another_source_matches_unless_its_exporter_errs_which_is_named(
    name: str, variant: str, judged: Judged
) -> None:
    report = judged(name, variant)
    if (name, variant) in WRONG_AS_RELEASED:
        assert_named(report, *NAMED_AS_RELEASED[name, variant])
    else:
        assert report.headline == "MATCH", report.faults


MADE = [pair for pair in product(TREATED, TREATMENTS) if pair not in NOT_MADE]


@pytest.mark.parametrize(("name", "treatment"), MADE)
def test_a_right_export_matches_whatever_was_done_to_it_unless_that_broke_it(
    name: str, treatment: str, exported: Exported, source_of: SourceOf, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    folder = exported(name)
    for file in folder.iterdir():  # the weights, if they lie in a file of their own
        if file.is_file() and file.suffix != ".onnx":
            shutil.copy(file, tmp_path)
    TREATMENTS[treatment](folder / INTERFACES[name].graph, tmp_path / "model.onnx", config_of("usual"))
    report = check(source_of("usual"), tmp_path / "model.onnx")
    broken = BROKEN_BY_TOOLS.get((name, treatment), "")
    if broken:
        assert report.headline == "MISMATCH"
        assert broken in report.verdict
    elif treatment in CUT_OFF:
        assert report.headline == "OVER BUDGET"
        assert any(note.startswith("on this processor ONNX Runtime adds products") for note in report.notes)
    else:
        pytestconfig.stash[JUDGED].append(judgement(name, "usual", report, treatment))
        assert report.headline == "MATCH", report.faults


@pytest.mark.parametrize("variant", [name for name in DEFECTS if not DEFECTS[name].ignore])
@pytest.mark.parametrize("name", MAIN.values())
def test_what_was_wrong_before_the_export_is_named(name: str, variant: str, judged: Judged) -> None:
    assert_named(judged(name, variant), *NAMED[variant])


@pytest.mark.parametrize("variant", LEFT_OUT)
@pytest.mark.parametrize("name", [name for name in MAIN.values() if name != "mobius"])  # which runs no forward pass
def test_an_input_that_is_ignored_is_named_or_said_to_be_none(name: str, variant: str, judged: Judged) -> None:
    report = judged(name, variant)
    if name not in TRACED:
        assert_named(report, *NAMED[variant])
        assert any(note.startswith("it is wrong in left-padded batch, batch of 2") for note in report.notes)
    else:
        assert report.headline == "MATCH", report.faults
        assert any(note.startswith(LEFT_OUT[variant]) for note in report.notes)


def assert_named(report: Report, cause: str, operation: str) -> None:
    assert report.headline == "MISMATCH"
    assert report.diagnosis is not None
    assert report.localisation is not None
    assert (report.diagnosis.findings[0].cause, report.localisation.first) == (cause, operation)
    assert report.diagnosis.findings[0].sentence in report.verdict


@pytest.mark.parametrize("name", [name for name in WRONG_AT_TIMES if name.startswith("optimum")])
def test_optimum_1_24_is_wrong_where_a_later_call_brings_several_tokens(name: str, judged: Judged) -> None:
    report = judged(name)
    cases, operation = WRONG_AT_TIMES[name]
    assert_named(report, "mask", operation)
    assert f"it is wrong in {', '.join(cases)}, and right in the other cases" in report.notes


def test_mobius_for_genai_is_wrong_where_rows_are_padded(judged: Judged) -> None:
    report = judged("mobius, genai")
    assert report.headline == "MISMATCH"
    [note] = [note for note in report.notes if note.startswith("it is wrong in left-padded batch")]
    assert note.endswith("and right in the other cases")


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_open_is_a_mismatch_that_says_so(name: str, judged: Judged) -> None:
    report = judged(name)
    assert report.headline == "MISMATCH"
    assert "cannot be run by ONNX Runtime" in report.verdict
    assert "\n" not in report.verdict


# --- run, not checked -------------------------------------------------------------------------------------------------

WITH_CONFIG = [name for name, row in INTERFACES.items() if row.exporter in ("optimum", "transformers")]


@pytest.fixture(scope="module")
def huggingface(source_of: SourceOf) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(source_of("usual"), dtype=torch.float32).eval()


@torch.no_grad()
def greedy(model: transformers.GPT2LMHeadModel, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_a_folder_with_a_config_generates_and_scores_as_hugging_face(
    name: str, exported: Exported, huggingface: transformers.GPT2LMHeadModel
) -> None:
    model = load(exported(name))
    found = model.generate(PROMPTS, max_new_tokens=NEW, generation_config=False).new_ids
    assert found == [greedy(huggingface, prompt) for prompt in PROMPTS]
    [score] = model.score([PROMPTS[1]])
    with torch.no_grad():
        log_probs = huggingface(torch.tensor([PROMPTS[1]])).logits[0].log_softmax(-1).numpy()
    wanted = [log_probs[at, token] for at, token in enumerate(PROMPTS[1][1:])]
    assert np.allclose(score.log_probs[1:], wanted, atol=INTERFACES[name].tolerance)
