"""Generation against transformers': greedy, padded, ended, and drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from reference import GPT2, Conv1D, GPT2Config, GPT2Error
from reference.generate import choose

Twins = Callable[..., tuple[GPT2, GPT2LMHeadModel]]
Tokens = Callable[..., Tensor]


def theirs_greedy(model: GPT2LMHeadModel, ids: Tensor, new: int, mask: Tensor, eos: int | None = None) -> Tensor:
    model.generation_config.eos_token_id = model.config.eos_token_id = eos
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0 if eos is None else eos
    )


def padded(ids: Tensor, *paddings: int) -> Tensor:
    mask = torch.ones_like(ids)
    for row, padding in enumerate(paddings):
        mask[row, :padding] = 0
    return mask


def drawn(seed: int) -> dict[str, object]:
    return {"generator": torch.Generator().manual_seed(seed)}


def test_greedy_is_transformers_greedy_on_a_padded_batch(twins: Twins, tokens: Tokens) -> None:
    ours, theirs = twins()
    ids = tokens(3, 7)
    mask = padded(ids, 0, 3, 6)
    out = ours.generate(ids, 17, attention_mask=mask)  # up to the last position
    assert torch.equal(out, theirs_greedy(theirs, ids, 17, mask))
    assert torch.equal(out[:, :7], ids)
    assert len(out[:, 7:].unique()) > 5  # no trivial loop


def test_a_padded_row_goes_on_as_the_row_alone(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins(Conv1D)
    ids = tokens(2, 7)
    out = ours.generate(ids, 9, attention_mask=padded(ids, 4, 0))
    assert torch.equal(out[:1, 4:], ours.generate(ids[:1, 4:], 9))
    assert not torch.equal(out[:1, 7:], ours.generate(ids[:1], 9)[:, 7:])


def test_a_prompt_without_a_mask_has_no_padding(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    ids = tokens(2, 7) * 0  # the id that padding has as often as not
    assert torch.equal(ours.generate(ids, 9), ours.generate(ids, 9, attention_mask=torch.ones_like(ids)))


def test_a_row_that_ended_is_filled_while_another_goes_on(twins: Twins, tokens: Tokens) -> None:
    ours, theirs = twins()
    ids = tokens(3, 7)
    mask = padded(ids, 2, 0, 5)
    plain = ours.generate(ids, 12, attention_mask=mask)[:, 7:].tolist()
    ends = {eos: [row.index(eos) if eos in row else 12 for row in plain] for row in plain for eos in row}
    eos = next(eos for eos, at in ends.items() if 0 < min(at) < 9 and max(at) == 12)  # ends a row and spares one
    out = ours.generate(ids, 12, attention_mask=mask, eos_token_id=eos)
    assert torch.equal(out, theirs_greedy(theirs, ids, 12, mask, eos))
    filled = [row[:end] + [eos] * (12 - end) for row, end in zip(plain, ends[eos], strict=True)]
    assert filled != plain
    assert out[:, 7:].tolist() == filled


def test_generation_ends_when_every_row_has(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    ids = tokens(1, 7).repeat(2, 1)
    plain = ours.generate(ids, 12)[0, 7:].tolist()
    out = ours.generate(ids, 12, eos_token_id=plain[4])
    assert out[:, 7:].tolist() == [plain[: plain.index(plain[4]) + 1]] * 2


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}, {"top_k": 1, "top_p": 0.5}], ids=str
)
def test_a_choice_of_one_is_greedy(twins: Twins, tokens: Tokens, options: dict[str, object]) -> None:
    ours, _ = twins()
    ids = tokens(2, 7)
    out = ours.generate(ids, 12, **{"temperature": 1.7} | options | drawn(0))
    assert torch.equal(out, ours.generate(ids, 12))


def test_greedy_takes_no_notice_of_k_and_p(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    assert torch.equal(ours.generate(tokens(2, 7), 9, top_k=40, top_p=0.9), ours.generate(tokens(2, 7), 9))


def test_a_seed_repeats_its_text_and_another_does_not(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    ids = tokens(2, 7)
    first, again, other = (ours.generate(ids, 12, temperature=1.0, **drawn(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_generator_is_the_only_source_of_chance(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    before = torch.get_rng_state()
    ours.generate(tokens(2, 7), 12, temperature=1.0, **drawn(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.3, 0, 1.0), (2.5, 0, 1.0), (1.0, 3, 1.0), (1.0, 99, 1.0), (1.0, 0, 0.6), (1.6, 5, 0.8)],
)
def test_a_draw_is_from_the_distribution_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(4096, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    warped = TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    expected = warped.softmax(dim=-1).multinomial(1, generator=torch.Generator().manual_seed(5))[:, 0]
    assert torch.equal(choose(logits, temperature, top_k, top_p, torch.Generator().manual_seed(5)), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((0, 0.35), {0}),
        ((0, 0.5), {0, 1}),  # the token that crosses p is kept
        ((0, 0.75), {0, 1, 2}),
        ((0, 1.0), {0, 1, 2, 3}),
        ((1, 1.0), {0}),
        ((3, 1.0), {0, 1, 2}),
        ((2, 0.5), {0}),  # p is counted over the k that are left: 0.4 / 0.7
        ((9, 1.0), {0, 1, 2, 3}),
    ],
)
def test_only_what_k_and_p_leave_is_drawn(options: tuple[int, float], expected: set[int]) -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(2000, 4)
    assert set(choose(logits, 1.0, *options, torch.Generator().manual_seed(0)).tolist()) == expected


def test_p_is_reached_by_the_fewest_tokens() -> None:
    drawn_tokens = choose(torch.zeros(2000, 4), 1.0, 0, 0.5, torch.Generator().manual_seed(0))  # a quarter each
    assert len(drawn_tokens.unique()) == 2


def test_each_token_is_computed_once_and_without_gradients(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    calls: list[tuple[int, bool]] = []
    ours.wte.register_forward_hook(lambda _module, args, _out: calls.append((args[0].size(1), torch.is_grad_enabled())))
    ours.generate(tokens(2, 7), 4)
    assert calls == [(7, False), (1, False), (1, False), (1, False)]


def test_no_new_tokens_are_none(twins: Twins, tokens: Tokens) -> None:
    assert torch.equal(twins()[0].generate(tokens(2, 7), 0), tokens(2, 7))


def test_going_beyond_the_last_position_is_refused_before_anything_is_computed(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    ours.wte.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(GPT2Error, match="prompt and new tokens are 25; the model has 24 positions"):
        ours.generate(tokens(1, 20), 5)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"top_p": 0.0}, 1), ({"top_p": 1.5}, 1), ({"top_k": -1}, 1), ({"temperature": -1.0}, 1), ({}, 0)],
)
def test_options_out_of_range_are_refused(options: dict[str, float], tokens: int) -> None:
    model = GPT2(GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2))
    with pytest.raises(GPT2Error, match="expected 0 or more of each"):
        model.generate(torch.zeros(1, tokens, dtype=torch.long), 2, **options)


def test_padding_takes_up_no_position() -> None:
    model = GPT2(GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2)).eval()
    padded, mask = torch.tensor([[0, 0, 0, 1, 2]]), torch.tensor([[0, 0, 0, 1, 1]])
    longer = model.generate(padded, 3, attention_mask=mask)
    assert torch.equal(longer[:, 3:], model.generate(padded[:, 3:], 3))
    with pytest.raises(GPT2Error, match="are 6; the model has 5 positions"):
        model.generate(padded, 4, attention_mask=mask)
