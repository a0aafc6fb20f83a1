"""Each head computes what transformers' class of that head computes, and padding changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reference.config import ACTIVATION_NAMES, GPT2Config
from reference.errors import GPT2Error, WeightsError
from reference.head import HEADS
from reference.heads import CLASSES, LastToken, MultipleChoice, SequenceClassification, TokenClassification
from reference.model import Body, Conv1D, Projection

Make = Callable[..., Any]
BARE = ("score.", "classifier.", "qa_outputs.", "multiple_choice_head.", "lm_head.")

every_head = pytest.mark.parametrize("head", [head for head in CLASSES if head != "lm"])


def twins(make: Make, head: str, projection: Projection = nn.Linear, **config: Any) -> tuple[Body, Any]:
    """Our model in float64 and transformers', of the same weights."""
    whole = "double-heads" if head == "multiple-choice" else head
    theirs = make(whole, **config).double()
    theirs.set_attn_implementation("eager")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    weights.pop("lm_head.weight", None)
    values = GPT2Config.from_dict(theirs.config.to_dict() | {"architectures": [HEADS[whole].class_name]})
    described = GPT2Config(**{**vars(values), "head": head})
    return CLASSES[head].from_weights(described, weights, None, projection), theirs


def answer(theirs: Any, head: str, ids: Tensor, mask: Tensor | None = None, last: Tensor | None = None) -> Tensor:
    """What transformers' class answers, as ``reference/heads.py`` shapes it."""
    mask = torch.ones_like(ids) if mask is None else mask
    fed = {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
    with torch.no_grad():
        if head == "multiple-choice":
            fed["attention_mask"] = mask[None]
            out = theirs(ids[None], **fed, mc_token_ids=None if last is None else last[None])
            return out.mc_logits[0, :, None, None]
        out = theirs(ids, **fed)
    if head == "base":
        return out.last_hidden_state
    if head == "question-answering":
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    return out.logits[:, None] if head == "sequence-classification" else out.logits


def ours_of(model: Body, *fed: Tensor) -> Tensor:
    with torch.no_grad():
        return model(*fed)


@every_head
@pytest.mark.parametrize("projection", [nn.Linear, Conv1D])
@pytest.mark.parametrize("config", [{}, {"n_layer": 1, "n_inner": 12}, {"activation_function": "relu"}], ids=str)
def test_a_text_is_answered_as_transformers_answers_it(
    head_model: Make, head: str, projection: Projection, config: dict[str, Any]
) -> None:
    ours, theirs = twins(head_model, head, projection, num_labels=4, **config)
    ids = torch.tensor([[5, 60, 0, 17, 17, 3, 42]])
    torch.testing.assert_close(ours_of(ours, ids), answer(theirs, head, ids), rtol=1e-11, atol=1e-12)


@every_head
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_answered_as_its_rows_are_by_themselves(head_model: Make, head: str, side: str) -> None:
    ours, theirs = twins(head_model, head, pad_token_id=9, num_labels=3)
    rows = [[5, 60, 0, 17], [1], [42, 41, 40, 39, 38, 37, 36]]
    ids, mask = torch.full((3, 7), 9), torch.zeros(3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(7 - len(row), 7)
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    found = ours_of(ours, ids, mask)
    last = (torch.arange(7) * mask).argmax(dim=1)
    theirs_found = answer(theirs, head, ids, mask, last)
    for i, row in enumerate(rows):
        alone = ours_of(ours, torch.tensor([row]))[0]
        kept = found[i] if found.shape[1] == 1 else found[i][mask[i] > 0]
        torch.testing.assert_close(kept, alone, rtol=1e-11, atol=1e-12)
        their_kept = theirs_found[i] if found.shape[1] == 1 else theirs_found[i][mask[i] > 0]
        torch.testing.assert_close(kept, their_kept, rtol=1e-11, atol=1e-12)


@every_head
def test_what_stands_under_the_mask_does_not_matter(head_model: Make, head: str) -> None:
    ours, _ = twins(head_model, head, num_labels=3)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0]])
    ids = torch.tensor([[7, 8, 5, 60, 3, 9]])
    other = torch.tensor([[1, 2, 5, 60, 3, 4]])
    kept = (lambda x: x) if ours_of(ours, ids, mask).shape[1] == 1 else lambda x: x[:, 2:5]
    torch.testing.assert_close(kept(ours_of(ours, ids, mask)), kept(ours_of(ours, other, mask)), rtol=1e-12, atol=1e-12)


def test_a_classification_heeds_the_padding_that_only_its_config_names(head_model: Make) -> None:
    ours, theirs = twins(head_model, "sequence-classification", pad_token_id=9)
    ids = torch.tensor([[5, 60, 9, 3, 9, 9], [9, 9, 9, 9, 9, 1], [9, 9, 9, 9, 9, 9]])
    torch.testing.assert_close(
        ours_of(ours, ids), answer(theirs, "sequence-classification", ids), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize(
    ("padding", "mask", "place"),
    [
        (None, [1, 1, 1, 1, 1], 4),
        (None, [1, 1, 1, 0, 0], 2),
        (None, [0, 0, 1, 1, 1], 4),
        (None, [0, 1, 0, 1, 0], 3),
        (3, [1, 1, 1, 1, 1], 2),
        (3, [1, 1, 0, 1, 1], 1),
        (-1, [1, 1, 1, 1, 0], 3),
        (None, [0, 0, 0, 0, 0], 0),
    ],
)
def test_the_last_token_is_the_rightmost_that_is_not_padding(padding: int | None, mask: list[int], place: int) -> None:
    ids, states = torch.tensor([[0, 1, 2, 3, 3]]), torch.arange(10.0).view(1, 5, 2)
    found = LastToken(padding)(states, ids, torch.tensor([mask]))
    torch.testing.assert_close(found, states[:, place : place + 1])


@pytest.mark.parametrize("name", [None, "", *(name for name in ACTIVATION_NAMES if name != "prelu")])
def test_a_choice_has_every_summary_activation_of_transformers(head_model: Make, name: str | None) -> None:
    ours, theirs = twins(head_model, "multiple-choice", summary_activation=name)
    ids = torch.tensor([[5, 60, 0, 17], [1, 2, 3, 4], [42, 41, 9, 8]])
    torch.testing.assert_close(ours_of(ours, ids), answer(theirs, "multiple-choice", ids), rtol=1e-6, atol=1e-7)


@every_head
def test_more_tokens_than_positions_are_refused_and_as_many_are_not(head_model: Make, head: str) -> None:
    ours, _ = twins(head_model, head)
    assert ours_of(ours, torch.zeros(2, 24, dtype=torch.long)).shape[:1] == (2,)
    with pytest.raises(GPT2Error, match="25 tokens are more than the model's 24 positions"):
        ours(torch.zeros(1, 25, dtype=torch.long))


def test_padding_takes_no_position(head_model: Make) -> None:
    ours, _ = twins(head_model, "token-classification")
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 24, dtype=torch.long)], dim=1)
    ids = torch.arange(30)[None]
    torch.testing.assert_close(ours_of(ours, ids, mask)[:, 6:], ours_of(ours, ids[:, 6:]), rtol=1e-11, atol=1e-12)


@every_head
def test_a_head_loads_from_the_folder_that_transformers_saves(save: Make, head: str) -> None:
    whole = "double-heads" if head == "multiple-choice" else head
    folder = save(head=whole, num_labels=5)
    if whole == "double-heads":
        with pytest.raises(WeightsError, match=r"has no place"):
            CLASSES["lm"].from_pretrained(folder)
        return
    model = CLASSES[head].from_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    assert sum(p.numel() for p in model.parameters()) == sum(tensor.numel() for tensor in state.values())
    for name, parameter in model.named_parameters():
        if name.startswith(BARE):
            torch.testing.assert_close(parameter.detach(), state[name], rtol=0, atol=0)


def test_new_heads_are_drawn_as_narrow_as_the_rest() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=8, n_embd=256, n_layer=1, n_head=2, num_labels=50)
    for model in (SequenceClassification(config).score, TokenClassification(config).classifier):
        assert 0.018 < float(model.weight.detach().std()) < 0.022
        assert model.bias is None or not bool(model.bias.any())
    assert not bool(MultipleChoice(config).multiple_choice_head.summary.bias.any())


def test_a_head_of_square_shape_is_not_transposed(head_model: Make) -> None:
    ours, theirs = twins(head_model, "token-classification", num_labels=12, n_inner=12, vocab_size=12)
    ids = torch.tensor([[5, 10, 0, 7]])
    torch.testing.assert_close(ours_of(ours, ids), answer(theirs, "token-classification", ids), rtol=1e-11, atol=1e-12)


def test_a_folder_of_another_head_is_refused(save: Make) -> None:
    with pytest.raises(WeightsError, match=r"score.weight is missing"):
        CLASSES["sequence-classification"].from_pretrained(save(head="token-classification"))
