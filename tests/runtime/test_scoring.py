"""Texts are scored as the reference scores them, however they are cut and batched."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from converter.cli import cli
from converter.data import CHECKPOINT, HELD_OUT
from converter.errors import PromptError
from converter.folder.convert import convert
from converter.runtime.opening import load
from converter.runtime.scoring import CHUNK_TOKENS, perplexity, score, windows
from converter.runtime.session import Model
from reference import GPT2

Save = Callable[..., Path]
SIZE = 24


@pytest.fixture
def pair(save: Save, tmp_path: Path) -> tuple[Model, GPT2]:
    source = save()
    convert(source, tmp_path / "out")
    return load(tmp_path / "out"), GPT2.from_pretrained(source)


def expected(reference: GPT2, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits = reference(torch.tensor([ids])).logits[0].double()
    return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def rows(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(61, size=draw.integers(2, longest + 1)).tolist() for _ in range(count)]


def test_every_token_but_the_first_gets_the_references_probability(pair: tuple[Model, GPT2]) -> None:
    model, reference = pair
    texts = rows(7, SIZE)
    for ids, found in zip(texts, score(model, texts, batch_size=3), strict=True):
        assert found.token_ids == ids
        assert found.log_probs[0] is None
        assert np.allclose(found.log_probs[1:], expected(reference, ids), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
        assert found.perplexity == pytest.approx(math.exp(-expected(reference, ids).mean()), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 12, 24])
def test_a_long_text_is_scored_in_windows_that_overlap(pair: tuple[Model, GPT2], stride: int) -> None:
    model, reference = pair
    ids = rows(1, 90, seed=3)[0] + list(range(61))
    [found] = score(model, [ids], stride=stride)
    by_hand: list[float] = []
    begin, scored = 0, 1
    while scored < len(ids):
        end = min(begin + SIZE, len(ids))
        by_hand += expected(reference, ids[begin:end])[scored - begin - 1 :].tolist()
        begin, scored = min(begin + stride, end - 1), end
    assert np.allclose(found.log_probs[1:], by_hand, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@given(length=st.integers(1, 200), size=st.integers(1, 30), data=st.data())
def test_each_token_is_scored_once_and_has_something_before_it(length: int, size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, size))
    if size == 1 and length > 1:
        return  # a model of one position has nothing before any token
    scored = []
    for window in windows(0, length, size, stride):
        assert window.end - window.begin <= size
        assert window.first > window.begin or window.end == window.first
        scored += range(window.first, window.end)
    assert scored == list(range(1, length))


def test_batches_and_company_change_nothing(pair: tuple[Model, GPT2]) -> None:
    model, _ = pair
    texts = rows(9, 60, seed=1)
    alone = [score(model, [ids], batch_size=1)[0] for ids in texts]
    together = score(model, texts, batch_size=5)
    for one, other in zip(alone, together, strict=True):
        assert np.allclose(one.log_probs[1:], other.log_probs[1:], atol=1e-5)  # type: ignore[arg-type]
    assert perplexity(together) == pytest.approx(perplexity(alone), rel=1e-5)


def test_the_bundled_model_scores_its_held_out_text_as_the_reference_does(bundled: Path) -> None:
    model, reference = load(bundled), GPT2.from_pretrained(CHECKPOINT, dtype=torch.float32)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(HELD_OUT.read_text(encoding="utf-8")).ids[: model.config.n_positions]
    assert len(ids) > CHUNK_TOKENS
    [found] = score(model, [ids])
    assert np.allclose(found.log_probs[1:], expected(reference, ids), atol=2e-4)  # type: ignore[arg-type]
    assert 20 < found.perplexity < 200


def test_a_single_token_has_no_perplexity(pair: tuple[Model, GPT2]) -> None:
    [found] = score(pair[0], [[5]])
    assert found.log_probs == [None]
    assert math.isnan(found.perplexity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride is 0; expected 1 to the model's 24 positions"),
        ({"stride": 25}, "stride is 25"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    ],
)
def test_an_option_out_of_range_is_refused(pair: tuple[Model, GPT2], options: dict[str, int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        score(pair[0], [[1, 2]], **options)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="token id 61 is not one of the model's"):
        score(pair[0], [[1, 61]])


def test_a_model_of_one_position_scores_nothing(save: Save, tmp_path: Path) -> None:
    convert(save(n_positions=1), tmp_path / "out")
    with pytest.raises(PromptError, match="nothing before any token"):
        score(load(tmp_path / "out"), [[1, 2]])


def test_the_command_line_prints_a_json_object_for_each_text(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "The following"}\n{"text": "If an exception"}\n')
    result = CliRunner().invoke(cli, ["score", str(bundled), str(tmp_path / "texts.jsonl")])
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [len(line["log_probs"]) == line["tokens"] == len(line["token_ids"]) for line in lines] == [True, True]
    assert lines[0]["log_probability"] == pytest.approx(sum(lines[0]["log_probs"][1:]))
    assert "2 texts" in result.stderr
    assert "perplexity" in result.stderr
    piped = CliRunner().invoke(cli, ["score", str(bundled), "-", "-q"], input="The following\n")
    assert json.loads(piped.stdout)["token_ids"] == lines[0]["token_ids"]
    assert piped.stderr == ""
    more = CliRunner().invoke(cli, ["score", str(bundled), "-", "-q"], input="The following\n\n")
    assert json.loads(more.stdout)["token_ids"][:-1] == lines[0]["token_ids"]  # one line end is echo's
    refused = CliRunner().invoke(cli, ["score", str(bundled), str(tmp_path / "absent")])
    assert refused.exit_code == 2


def test_progress_counts_every_token_that_is_read(pair: tuple[Model, GPT2]) -> None:
    seen: list[tuple[int, int]] = []
    score(pair[0], [[1, 2, 3], list(range(40))], stride=12, batch_size=2, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (3 + 24 + 24 + 16, 3 + 24 + 24 + 16)  # windows begin 12 apart: at 0, 12 and 24
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 2


def test_scores_go_on_where_they_were_interrupted(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.runtime.scoring.BATCHES", 1)
    file, whole, cut = tmp_path / "t.jsonl", tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    file.write_text("\n".join(json.dumps({"text": "The following is a list. " * n}) for n in range(1, 8)))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, ["score", *map(str, (bundled, file, "--batch-size", 2, *arguments))])

    first = run("-o", whole)
    assert (first.exit_code, first.stdout, first.stderr.count("7 texts, ")) == (0, "", 1)
    assert whole.read_text() == run("-q").stdout
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:5]) + lines[5][:40])  # two groups, one text of the next, and a part of another
    again = run("-o", cut)
    assert (again.exit_code, cut.read_bytes()) == (0, whole.read_bytes())
    assert again.stderr.splitlines()[-1] == first.stderr.splitlines()[-1]
    refused = run("-o", whole, "--stride", 8)
    assert refused.exit_code == 2
    assert "line 1, was not made by this model with these options" in refused.stderr
    assert whole.read_bytes() == b"".join(lines)
    cut.write_bytes(lines[1])
    refused = run("-o", cut)
    assert refused.exit_code == 2
    assert "line 1, is not of text 1: it comes from another FILE" in refused.stderr
