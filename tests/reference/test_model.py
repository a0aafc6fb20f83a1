"""The model against transformers' in float64: logits, loss, cache, masks, dtypes, drawing and loading."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from reference import GPT2, Conv1D, GPT2Config, GPT2Error, WeightsError
from reference import model as model_module
from reference.model import LayerNorm, Projection, ScaledDotProduct, causal_mask

Twins = Callable[..., tuple[GPT2, GPT2LMHeadModel]]
Tokens = Callable[..., Tensor]

both_projections = pytest.mark.parametrize("projection", [nn.Linear, Conv1D])
HALVES = (torch.float16, torch.bfloat16)
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_the_model_file_is_at_most_350_lines() -> None:
    assert len(Path(model_module.__file__).read_text(encoding="utf-8").splitlines()) <= 350


# The logits ----------------------------------------------------------------------------------------------------


@both_projections
@pytest.mark.parametrize(
    "config",
    [
        *(
            {"scale_attn_weights": by_width, "scale_attn_by_inverse_layer_idx": by_layer}
            for by_width, by_layer in itertools.product((True, False), repeat=2)
        ),
        {"layer_norm_epsilon": 1e-3},
        {"n_inner": None},
        {"n_inner": 37},
        {"n_inner": 12},  # == n_embd
        {"n_inner": 5},  # < n_embd
        {"n_layer": 1},
        {"n_head": 1},
        {"n_head": 12},
        {"tie_word_embeddings": False},
        {"tie_word_embeddings": False, "vocab_size": 12},  # a square head, which is not to be transposed
        *(
            {"activation_function": name}
            for name in ("gelu", "gelu_pytorch_tanh", "prelu", "quick_gelu", "relu", "relu2", "silu", "tanh")
        ),
    ],
    ids=str,
)
def test_the_logits_are_those_of_transformers(
    twins: Twins, tokens: Tokens, projection: Projection, config: dict[str, object]
) -> None:
    ours, theirs = twins(projection, **config)
    ids = tokens(2, 9) % config.get("vocab_size", 61)
    assert_close(ours(ids).logits, theirs(ids).logits)


@both_projections
def test_the_gradients_are_those_of_transformers(twins: Twins, tokens: Tokens, projection: Projection) -> None:
    ours, theirs = twins(projection, activation_function="prelu")
    for model in (ours, theirs):
        model(tokens(2, 9)).logits.square().mean().backward()
    theirs = {name.removeprefix("transformer."): parameter.grad for name, parameter in theirs.named_parameters()}
    modules = dict(ours.named_modules())
    assert {name for name, _ in ours.named_parameters()} == set(theirs)
    for name, parameter in ours.named_parameters():
        path, _, key = name.rpartition(".")
        transposed = key == "weight" and isinstance(modules[path], nn.Linear)
        assert_close(parameter.grad, theirs[name].T if transposed else theirs[name])


def test_explicit_positions_are_those_of_transformers(twins: Twins, tokens: Tokens) -> None:
    ours, theirs = twins()
    ids, positions = tokens(2, 4), torch.tensor([[5, 2, 23, 0], [1, 1, 7, 3]])
    assert_close(ours(ids, position_ids=positions).logits, theirs(ids, position_ids=positions).logits)


@pytest.mark.parametrize(("keep", "kept"), [(0, 9), (1, 1), (4, 4), (9, 9), (20, 9)])
def test_only_the_logits_of_the_last_positions_are_kept(twins: Twins, tokens: Tokens, keep: int, kept: int) -> None:
    ours, theirs = twins()
    ids = tokens(2, 9)
    output = ours(ids, logits_to_keep=keep)
    assert_close(output.logits, theirs(ids).logits[:, 9 - kept :])
    assert output.past_key_values[2][0].size(2) == 9  # of the cache nothing is left out


def test_a_conv1d_is_a_linear_with_the_weight_transposed() -> None:
    torch.manual_seed(0)
    conv = Conv1D(5, 7).double()
    nn.init.normal_(conv.bias)
    linear = nn.Linear(5, 7).double()
    linear.load_state_dict({"weight": conv.weight.T, "bias": conv.bias})
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    assert list(conv.weight.shape) == [5, 7]
    assert_close(conv(x), linear(x))
    assert_close(conv(x.transpose(0, 1)), linear(x.transpose(0, 1)))  # not contiguous


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@both_projections
def test_a_model_runs_in_its_dtype_and_near_float64(
    twins: Twins, tokens: Tokens, projection: Projection, dtype: torch.dtype
) -> None:
    ours, _ = twins(projection)
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    exact = ours(ids, attention_mask=mask).logits
    output = ours.to(dtype)(ids, attention_mask=mask)
    assert output.logits.dtype == output.past_key_values[2][1].dtype == dtype
    error = (output.logits.double() - exact).abs().max() / exact.abs().max()
    assert 0 < error < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_masked_key_gets_nothing_however_low_the_others_score(dtype: torch.dtype) -> None:
    attention = ScaledDotProduct(GPT2Config(n_embd=2, n_head=1), layer_idx=0).eval()
    q, k, v = torch.full((1, 1, 1, 2), 1e4), torch.tensor([[[[0.0, 0.0], [-1e4, -1e4]]]]), torch.eye(2)[None, None]
    mask = torch.tensor([[[[False, True]]]])  # the key with a score of -1.4e8
    assert attention(*(x.to(dtype) for x in (q, k, v)), mask).tolist() == [[[0.0, 1.0]]]


# Attention in half precision -----------------------------------------------------------------------------------


def attend(dtype: torch.dtype, q: Tensor, k: Tensor, **config: object) -> Tensor:
    """What one query of one head takes of two values, [1, 0] and [0, 1]: its attention weights themselves."""
    attention = ScaledDotProduct(GPT2Config(n_embd=2, n_head=1, **config), layer_idx=0).eval()
    q, k, v = (x.to(dtype)[None, None] for x in (q, k, torch.eye(2)))
    return attention(q, k, v, torch.ones(1, 1, 1, 2, dtype=torch.bool))[0, 0]


@pytest.mark.parametrize("dtype", HALVES)
def test_upcast_scores_keep_what_half_precision_rounds_away(dtype: torch.dtype) -> None:
    q, k = torch.tensor([[64.0, 1.0]]), torch.tensor([[64.0, 0.0], [64.0, 1.0]])  # scores 4096 and 4097
    blind = attend(dtype, q, k, scale_attn_weights=False)
    upcast = attend(dtype, q, k, scale_attn_weights=False, reorder_and_upcast_attn=True)
    assert torch.equal(blind, torch.tensor([0.5, 0.5], dtype=dtype))
    assert torch.equal(upcast, torch.tensor([0.0, 1.0]).softmax(dim=0).to(dtype))


def test_upcast_scores_do_not_overflow_float16() -> None:
    q, k = torch.tensor([[300.0, 1.0]]), torch.tensor([[300.0, 0.0], [300.0, 3.0]])  # beyond 65504
    assert attend(torch.float16, q, k).isnan().any()
    scores = torch.tensor([0.0, 3.0]) / 2**0.5  # their difference, scaled
    upcast = attend(torch.float16, q, k, reorder_and_upcast_attn=True)
    torch.testing.assert_close(upcast, scores.softmax(dim=0).half(), rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_upcast_attention_is_that_of_transformers_in_half_precision(
    twins: Twins, tokens: Tokens, dtype: torch.dtype
) -> None:
    ours, theirs = twins(Conv1D, dtype, reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True)
    plain, _ = twins(Conv1D, dtype, scale_attn_by_inverse_layer_idx=True)
    ids = tokens(2, 9)
    logits = ours(ids).logits
    assert not torch.equal(logits, plain(ids).logits)
    torch.testing.assert_close(logits, theirs(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upcasting_is_nothing_to_a_model_that_is_not_in_half_precision(
    twins: Twins, tokens: Tokens, dtype: torch.dtype
) -> None:
    ids = tokens(2, 9)
    assert torch.equal(*(twins(dtype=dtype, reorder_and_upcast_attn=flag)[0](ids).logits for flag in (True, False)))


# The loss ------------------------------------------------------------------------------------------------------


def test_without_labels_there_is_no_loss(twins: Twins, tokens: Tokens) -> None:
    assert twins()[0](tokens(1, 3)).loss is None


@pytest.mark.parametrize("ignored", [[], [(0, 0)], [(0, 8)], [(0, 3), (1, 1), (1, 2), (1, 8)]], ids=str)
def test_the_loss_is_that_of_transformers(twins: Twins, tokens: Tokens, ignored: list[tuple[int, int]]) -> None:
    ours, theirs = twins()
    ids, labels = tokens(2, 9), tokens(2, 9, seed=1)
    for place in ignored:
        labels[place] = -100
    loss = ours(ids, labels=labels).loss
    assert_close(loss.float(), theirs(ids, labels=labels).loss, 1e-6)  # theirs is computed in float32
    surprise = -theirs(ids).logits.log_softmax(dim=-1)
    scored = [surprise[b, s - 1, labels[b, s]] for b in range(2) for s in range(1, 9) if labels[b, s] != -100]
    assert_close(loss, torch.stack(scored).mean())


# The cache -----------------------------------------------------------------------------------------------------


def in_chunks(model: GPT2, ids: Tensor, sizes: tuple[int, ...], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits of one pass after another over ``ids``, and all the keys and values they leave."""
    logits, past, done = [], None, 0
    for size in sizes:
        step = slice(done, done + size)
        output = model(ids[:, step], past, None if mask is None else mask[:, : step.stop])
        logits.append(output.logits)
        past, done = output.past_key_values, step.stop
    assert done == ids.size(1)
    return torch.cat(logits, dim=1), torch.stack([torch.stack(pair) for pair in past])


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 1, 4, 2), (1, 11), (11, 1)], ids=str)
@both_projections
def test_a_cached_pass_is_part_of_the_whole(
    twins: Twins, tokens: Tokens, projection: Projection, sizes: tuple[int, ...], padding: int
) -> None:
    ours, _ = twins(projection)
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[0, :padding] = 0
    whole = in_chunks(ours, ids, (12,), mask)
    parts = in_chunks(ours, ids, sizes, mask if padding else None)
    assert_close(parts[0], whole[0])
    assert_close(parts[1], whole[1])
    assert list(parts[1].shape) == [3, 2, 2, 3, 12, 4]  # layers, keys and values, B, H, T, D


# Masks and positions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_type", [torch.int64, torch.int32, torch.bool])
def test_a_row_padded_on_the_left_is_the_row_alone(twins: Twins, tokens: Tokens, as_type: torch.dtype) -> None:
    ours, theirs = twins()
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=as_type)
    for row, padding in enumerate((0, 4, 8)):
        mask[row, :padding] = 0
    logits = ours(ids, attention_mask=mask).logits
    for row, padding in enumerate((0, 4, 8)):
        assert_close(logits[row, padding:], theirs(ids[row : row + 1, padding:]).logits[0])


def test_what_stands_in_the_padding_is_nothing_to_the_tokens(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    ids, mask = tokens(1, 9), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    other = ids.clone()
    other[0, :3] = (ids[0, :3] + 1) % 61
    assert torch.equal(*(ours(row, attention_mask=mask).logits[:, 3:] for row in (ids, other)))


def test_padding_between_tokens_is_skipped_and_not_counted(twins: Twins, tokens: Tokens) -> None:
    ours, theirs = twins()
    ids, mask = tokens(1, 6), torch.tensor([[1, 1, 0, 0, 1, 1]])
    assert_close(ours(ids, attention_mask=mask).logits[mask == 1], theirs(ids[mask == 1][None]).logits[0])


def test_a_row_of_nothing_but_padding_is_finite(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins()
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    assert ours(tokens(2, 4), attention_mask=mask).logits.isfinite().all()


def test_a_query_looks_back_past_the_padding_and_always_at_itself() -> None:
    expected = [[[0, 1, 1, 0], [0, 1, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1]], [[0, 0, 1, 0], [0, 0, 0, 1]]]
    mask = causal_mask(torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]), new=2)
    assert mask.tolist() == [[[[bool(cell) for cell in row] for row in rows]] for rows in expected]


def test_every_position_can_be_used(twins: Twins, tokens: Tokens) -> None:
    ours, theirs = twins()
    ids = tokens(2, 24)
    assert_close(ours(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("sizes", [(25,), (24, 1), (20, 5)], ids=str)
def test_a_token_beyond_the_last_position_is_refused(twins: Twins, tokens: Tokens, sizes: tuple[int, ...]) -> None:
    with pytest.raises(GPT2Error, match="25 tokens are more than the model's 24 positions"):
        in_chunks(twins()[0], tokens(1, 25), sizes, None)


def test_padding_takes_up_no_position(twins: Twins, tokens: Tokens) -> None:
    ours, theirs = twins()
    ids, mask = tokens(1, 30), torch.tensor([[0] * 6 + [1] * 24])
    assert_close(ours(ids, attention_mask=mask).logits[:, 6:], theirs(ids[:, 6:]).logits)
    with pytest.raises(GPT2Error, match="positions"):
        ours(ids, attention_mask=torch.tensor([[0] * 5 + [1] * 25]))


# Dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_DROPOUT)
def test_dropout_is_active_in_training_alone(twins: Twins, tokens: Tokens, name: str) -> None:
    ours, theirs = twins(**NO_DROPOUT | {name: 0.5})
    ids = tokens(2, 9)
    assert_close(ours.eval()(ids).logits, theirs(ids).logits)
    torch.manual_seed(0)
    ours.train()
    assert not torch.equal(ours(ids).logits, ours(ids).logits)


# With p = 1 nothing is left to chance.
@pytest.mark.parametrize("name", NO_DROPOUT)
def test_dropout_drops_where_transformers_drops(twins: Twins, tokens: Tokens, name: str) -> None:
    ours, theirs = twins(**NO_DROPOUT | {name: 1.0})
    ids = tokens(2, 9)
    assert not torch.equal(ours.train()(ids).logits, ours.eval()(ids).logits)
    assert_close(ours.train()(ids).logits, theirs.train()(ids).logits)


def test_without_dropout_training_is_evaluation(twins: Twins, tokens: Tokens) -> None:
    ours, _ = twins(**NO_DROPOUT)
    assert torch.equal(ours.train()(tokens(2, 9)).logits, ours.eval()(tokens(2, 9)).logits)


# Drawing -------------------------------------------------------------------------------------------------------


def assert_normal(sample: Tensor, std: float) -> None:
    """Within five standard errors of N(0, std): the mean, the deviation and the share within one deviation."""
    n, share = sample.numel(), 0.6827
    assert abs(sample.mean().item()) < 5 * std / n**0.5
    assert abs(sample.std().item() / std - 1) < 5 / (2 * n) ** 0.5
    assert abs((sample.abs() < std).double().mean().item() - share) < 5 * (share * (1 - share) / n) ** 0.5


def test_a_conv1d_is_drawn_normal_with_its_bias_zero() -> None:
    torch.manual_seed(0)
    conv = Conv1D(400, 300)
    assert_normal(conv.weight, 0.02)
    assert torch.equal(conv.bias, torch.zeros(300))


@pytest.mark.parametrize("initializer_range", [0.02, 0.11])
@both_projections
def test_a_fresh_model_is_drawn_as_gpt_2_was(projection: Projection, initializer_range: float) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=251,
        n_positions=120,
        n_embd=96,
        n_layer=3,
        tie_word_embeddings=False,
        activation_function="prelu",
        initializer_range=initializer_range,
    )
    model = GPT2(config, projection)
    norms = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, LayerNorm)}
    assert len(norms) == 7
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif name in norms:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("act.weight"):
            assert parameter.tolist() == [0.25], name
        elif name.endswith("c_proj.weight"):
            assert_normal(parameter, initializer_range / 6**0.5)  # two residual projections in each of three layers
        else:
            assert_normal(parameter, initializer_range)


def test_two_fresh_models_differ() -> None:
    config = GPT2Config(vocab_size=7, n_positions=5, n_embd=4, n_layer=1, n_head=2)
    for (name, one), other in zip(GPT2(config).named_parameters(), GPT2(config).parameters(), strict=True):
        assert torch.equal(one, other) == (one.dim() == 1), name


@both_projections
def test_a_fresh_model_is_deaf_to_nothing(tokens: Tokens, projection: Projection) -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=2, n_head=3), projection)
    model(tokens(2, 9), labels=tokens(2, 9)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


# Tying ---------------------------------------------------------------------------------------------------------


def fresh(**config: object) -> GPT2:
    return GPT2(GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=3, n_head=3, n_inner=20, **config))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", ["drawn", "loaded", "loaded in place", "converted"])
def test_the_head_is_the_embedding_only_when_tied(twins: Twins, weights_of: Callable, way: str, tied: bool) -> None:
    loaded, theirs = twins(tie_word_embeddings=tied)
    model = {
        "drawn": lambda: fresh(tie_word_embeddings=tied),
        "loaded": lambda: loaded,
        "loaded in place": lambda: fresh(tie_word_embeddings=tied).load(weights_of(theirs)),
        "converted": lambda: loaded.to(torch.bfloat16),
    }[way]()
    assert (model.lm_head.weight.data_ptr() == model.wte.weight.data_ptr()) is tied
    assert ("lm_head.weight" in dict(model.named_parameters(remove_duplicate=True))) is not tied
    with torch.no_grad():
        model.wte.weight[0, 0] = 7
    assert (model.lm_head.weight[0, 0].item() == 7) is tied


# Loading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(random_gpt2: Callable[..., GPT2LMHeadModel], weights_of: Callable) -> dict[str, Tensor]:
    return weights_of(random_gpt2())


def test_load_returns_the_model_and_leaves_the_mapping(weights: dict[str, Tensor]) -> None:
    names, model = sorted(weights), fresh()
    assert model.load(weights) is model
    assert sorted(weights) == names


def test_a_loaded_model_can_be_trained(weights: dict[str, Tensor]) -> None:
    assert all(parameter.requires_grad for parameter in fresh().load(weights).parameters())


def test_a_frozen_parameter_stays_frozen(weights: dict[str, Tensor]) -> None:
    model = fresh()
    model.wpe.requires_grad_(False)
    model.load(weights)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["wpe.weight"]


def test_parameters_take_on_the_dtype_of_their_weights(weights: dict[str, Tensor]) -> None:
    weights["ln_f.bias"] = weights["ln_f.bias"].double()
    dtypes = {name: parameter.dtype for name, parameter in fresh().load(weights).named_parameters()}
    assert dtypes == {name: weight.dtype for name, weight in weights.items()}


@both_projections
@pytest.mark.parametrize("n_inner", [20, 12])
def test_only_the_weight_of_a_linear_is_transposed_and_nothing_is_copied(
    twins: Twins, weights_of: Callable, projection: Projection, n_inner: int
) -> None:
    # vocab_size, n_positions and n_inner == n_embd: every matrix but c_attn's is square, so no shape can tell.
    square = {"vocab_size": 12, "n_positions": 12, "tie_word_embeddings": False}
    ours, theirs = twins(projection, n_inner=n_inner, **square)
    weights, seen = weights_of(theirs), set()
    for name, parameter in ours.named_parameters():
        transposed = projection is nn.Linear and name.split(".")[-2] in ("c_attn", "c_fc", "c_proj")
        view = parameter.T if transposed and name.endswith("weight") else parameter
        assert view.data_ptr() == weights[name].data_ptr(), name
        assert (view.shape, view.stride()) == (weights[name].shape, weights[name].stride()), name
        seen.add(name)
    assert seen == set(weights)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wte.weight", [61, 12]),
        ("wpe.weight", [24, 12]),
        ("h.0.attn.c_attn.weight", [12, 36]),
        ("h.1.attn.c_proj.bias", [12]),
        ("h.2.ln_2.weight", [12]),
        ("h.2.mlp.c_fc.bias", [20]),
        ("ln_f.bias", [12]),
    ],
)
def test_a_missing_weight_is_named_with_its_shape(weights: dict[str, Tensor], name: str, shape: list[int]) -> None:
    del weights[name]
    with pytest.raises(WeightsError) as refused:
        fresh().load(weights)
    assert str(refused.value) == f"weight {name} is missing; expected shape {shape}"


def test_a_missing_head_is_named_unless_it_is_tied(weights: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"weight lm_head\.weight is missing; expected shape \[61, 12\]"):
        fresh(tie_word_embeddings=False).load(weights)


@pytest.mark.parametrize(
    "name", ["score.weight", "h.3.ln_1.weight", "h.0.attn.bias", "lm_head.weight", "h.0.mlp.act.weight"]
)
def test_a_surplus_weight_is_named(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = torch.zeros(61, 12)
    with pytest.raises(WeightsError) as refused:
        fresh().load(weights)
    assert str(refused.value) == f"weight {name} has no place in this GPT-2"


MISSHAPEN = [
    ("wte.weight", [60, 12], [61, 12]),
    ("wpe.weight", [12, 24], [24, 12]),
    ("h.0.attn.c_attn.weight", [36, 12], [12, 36]),  # a Linear's layout, which no file has
    ("h.1.mlp.c_proj.weight", [12, 20], [20, 12]),
    ("h.1.mlp.c_fc.weight", [12, 21], [12, 20]),
    ("h.2.ln_1.weight", [1], [12]),
    ("ln_f.bias", [12, 1], [12]),
]


@pytest.mark.parametrize(("name", "shape", "expected"), MISSHAPEN)
def test_a_misshapen_weight_is_named_with_both_shapes(
    weights: dict[str, Tensor], name: str, shape: list[int], expected: list[int]
) -> None:
    weights[name] = torch.zeros(shape)
    with pytest.raises(WeightsError) as refused:
        GPT2(fresh().config, Conv1D).load(weights)
    assert str(refused.value) == f"weight {name} is {shape}; expected {expected}"


@pytest.mark.parametrize(("name", "shape", "expected"), MISSHAPEN)
def test_a_model_of_linears_refuses_the_same_shapes(
    weights: dict[str, Tensor], name: str, shape: list[int], expected: list[int]
) -> None:
    weights[name] = torch.zeros(shape)
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as refused:
        model.load(weights)
    assert str(refused.value) == f"weight {name} is {shape}; expected {expected}"  # as the file has them
    assert model.lm_head.weight is model.wte.weight
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())  # all or nothing
    weights[name] = torch.zeros(expected)
    fresh().load(weights)


def test_a_weight_of_integers_is_named(weights: dict[str, Tensor]) -> None:
    weights["ln_f.bias"] = torch.zeros(12, dtype=torch.int64)
    with pytest.raises(WeightsError, match=r"weight ln_f\.bias is torch\.int64; expected a floating-point type"):
        fresh().load(weights)
