"""Software of others opens the folder as it was written, and says what Hugging Face says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from converter import convert, to_huggingface, to_reference
from converter.data import CHECKPOINT
from converter.folder.clients import UNSUPPORTED
from converter.weights.precisions import PRECISIONS
from tests.clients.table import INSTALLED_AS

USUAL = ("single", "ended", "batch", "beams")
BOUND = tuple(f"{what}, io binding" for what in USUAL)  # which Optimum does by default on GPUs
ASKED = {
    "Optimum": (*USUAL, "pipeline", *BOUND),
    "onnxruntime-genai": (*USUAL, "continued", "continued, rewound by 2"),
    "OpenVINO": USUAL,
    "transformers": USUAL,
}

# (client, precision, what) → what its error says, or "wrong tokens"; "" is every one. The first row that fits counts.
CANNOT: dict[tuple[str, str, str], str] = {
    ("onnxruntime-genai", "", "continued"): "inconsistent total_sequence_length",
    ("OpenVINO", "", "beams"): "a runtime, whose loop is the user's",
    ("transformers", "int8", ""): "no file named",
    ("transformers", "int4", ""): "no file named",
}

OPENS_WEIGHTS = ("transformers",)  # and knows of no other precision beside them
SAME_AS = {"pipeline": "batch", "continued, rewound by 2": "continued", **dict(zip(BOUND, USUAL, strict=True))}

Reply = dict[str, Any]


@pytest.fixture(scope="module")
def replies() -> dict[tuple[str, str], Reply]:
    """What was answered until now: a client opens a precision once for all that it is asked."""
    return {}


LACKS_LAST = "its cache lacks the last token that it chose: rewind by 2 and append them before the next turn"
NOTES = {("onnxruntime-genai", "continued"): LACKS_LAST}  # (client, what) → a sentence for the page


def exception(client: str, precision: str, what: str) -> str:
    rows = [(client, precision, what), (client, precision, ""), (client, "", what), (client, "", "")]
    return next((CANNOT[row] for row in rows if row in CANNOT), "")


@pytest.mark.parametrize(
    ("client", "precision", "what"),
    [(client, precision, what) for client, asked in ASKED.items() for precision in PRECISIONS for what in asked],
)
def test_answers_as_hugging_face_does(
    client: str,
    precision: str,
    what: str,
    folder: Path,
    only: Callable[[str], Path],
    questions: Reply,
    expected: Callable[[str, str], Any],
    ask: Callable[..., Reply],
    hold: Callable[..., None],
    replies: dict[tuple[str, str], Reply],
) -> None:
    if (client, precision) not in replies:
        row = PRECISIONS[precision]
        place = only(precision) if client in OPENS_WEIGHTS else folder
        request = {**questions, "folder": str(place), "precision": precision, "model": row.model}
        replies[client, precision] = ask(INSTALLED_AS[client], f"run_{INSTALLED_AS[client]}.py", request)
    wanted = expected(precision, SAME_AS.get(what, what))
    reply, cannot = replies[client, precision], exception(client, precision, what)
    hold(client, precision, what, reply, wanted, cannot, NOTES.get((client, what), ""))


def test_model_cards_name_every_precision_that_does_not_run() -> None:
    assert set(UNSUPPORTED) == {(client, precision) for client, precision, what in CANNOT if precision and not what}


def test_transformers_opens_what_is_converted_back_from_another_layout(
    tmp_path: Path,
    questions: Reply,
    expected: Callable[[str, str], Any],
    ask: Callable[..., Reply],
    hold: Callable[..., None],
) -> None:
    to_reference(CHECKPOINT, tmp_path / "linear")  # whose projections are transposed
    to_huggingface(tmp_path / "linear", tmp_path / "back")
    reply = ask("transformers", "run_transformers.py", {**questions, "folder": str(tmp_path / "back")})
    what = "--to hf, single"
    hold("transformers", "fp32", what, {what: reply.get("single", reply)}, expected("fp32", "single"))


@pytest.mark.parametrize("client", ASKED)
def test_opens_a_graph_beside_the_sources_own_weights(
    client: str,
    tmp_path: Path,
    questions: Reply,
    expected: Callable[[str, str], Any],
    ask: Callable[..., Reply],
    hold: Callable[..., None],
) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)
    shutil.copytree(CHECKPOINT, tmp_path / "in-place", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "in-place")
    convert(tmp_path / "in-place", in_place=True)
    request = {**questions, "folder": str(tmp_path / "in-place"), "precision": "fp32", "model": "model.onnx"}
    reply = ask(INSTALLED_AS[client], f"run_{INSTALLED_AS[client]}.py", request)
    hold(
        client, "fp32", "in place, single", {"in place, single": reply.get("single", reply)}, expected("fp32", "single")
    )


@pytest.mark.parametrize("client", ASKED)
def test_opens_a_folder_whose_graph_returns_more_than_it_asks_for(
    client: str,
    saved: Path,
    tmp_path: Path,
    questions: Reply,
    expected: Callable[[str, str], Any],
    ask: Callable[..., Reply],
) -> None:
    convert(saved, tmp_path / "out", outputs="hidden_states,attentions")
    request = {**questions, "folder": str(tmp_path / "out"), "precision": "fp32", "model": "onnx/model.onnx"}
    reply = ask(INSTALLED_AS[client], f"run_{INSTALLED_AS[client]}.py", request)
    for what in (what for what in ("single", "batch", "single, io binding") if what in ASKED[client]):
        assert reply[what]["tokens"] == expected("fp32", SAME_AS.get(what, what)), reply[what]
