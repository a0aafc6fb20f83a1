"""What ``run`` says of a text is what transformers' pipelines say, or a few lines of numpy where there is none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from converter import convert
from converter.errors import GPT2Error, ModelFolderError, PromptError
from converter.runtime.answers import Choice, Embedding, Labels, Span, TokenLabels
from converter.runtime.heads import MAX_ANSWER_TOKENS, batch_of, load, softmax

Make = Callable[..., Any]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?Ġ"
TEXTS = ["What a film!".replace("!", "."), "Ada", "Ada was born in London, they say."]
NAMED = {"id2label": {0: "good", 1: "bad", 2: "so so"}, "label2id": {"good": 0, "bad": 1, "so so": 2}}


@pytest.fixture
def make(save: Make, tmp_path: Path) -> Make:
    """``make(head, special=False, **config)`` saves a source that reads letters, converts it, and returns both."""

    def made(head: str, special: bool = False, **config: Any) -> tuple[Path, Path]:
        source = save(head=head, **{"vocab_size": 80, "n_positions": 60} | config)
        tokenizer = Tokenizer(models.BPE(vocab={letter: 79 - i for i, letter in enumerate(LETTERS)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if special:
            tokenizer.add_special_tokens(["<s>"])
            places = [("<s>", tokenizer.token_to_id("<s>"))]
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A <s> $B:1 <s>:1", special_tokens=places
            )
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="a").save_pretrained(source)
        convert(source, tmp_path / "out")
        return source, tmp_path / "out"

    return made


def pipeline(task: str, source: Path, **options: Any) -> Any:
    return transformers.pipeline(task, str(source), **options)


def assert_close(found: float, expected: float) -> None:
    assert found == pytest.approx(expected, rel=2e-4, abs=2e-6)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_labels": 1},
        NAMED,
        NAMED | {"problem_type": "multi_label_classification"},
        NAMED | {"problem_type": "single_label_classification"},
        NAMED | {"problem_type": "regression"},
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 1, "problem_type": "multi_label_classification"},
        {"num_labels": 7, "pad_token_id": 5},
    ],
    ids=str,
)
def test_labels_are_those_of_transformers_pipeline(make: Make, config: dict[str, Any]) -> None:
    source, out = make("sequence-classification", **config)
    theirs = pipeline("text-classification", source, top_k=None)
    for text, found in zip(TEXTS, load(out).run(TEXTS), strict=True):
        expected = theirs([text])[0]
        assert isinstance(found, Labels)
        assert list(found.scores) == [row["label"] for row in expected]
        assert found.probabilities is (config.get("problem_type") != "regression")
        for row in expected:
            assert_close(found.scores[row["label"]], row["score"])


def test_marks_are_those_of_transformers_pipeline(make: Make) -> None:
    source, out = make("token-classification", **NAMED)
    theirs = pipeline("token-classification", source, ignore_labels=[])
    for text, found in zip(TEXTS, load(out).run(TEXTS), strict=True):
        assert isinstance(found, TokenLabels)
        expected = theirs(text)
        assert len(found.tokens) == len(expected) == len(text)
        for (start, end, piece, label, p), row in zip(found.tokens, expected, strict=True):
            assert (start, end, label) == (row["start"], row["end"], row["entity"])
            assert piece == text[start:end]
            assert_close(p, row["score"])


def test_embeddings_are_those_of_transformers_pipeline(make: Make) -> None:
    source, out = make("base")
    theirs = pipeline("feature-extraction", source)
    for text, found in zip(TEXTS, load(out).run(TEXTS), strict=True):
        assert isinstance(found, Embedding)
        expected = np.array(theirs(text)[0])
        np.testing.assert_allclose(found.tokens, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.mean, expected.mean(axis=0), rtol=1e-4, atol=1e-5)


def best_span(start: np.ndarray, end: np.ndarray, allowed: list[int]) -> tuple[int, int, float]:
    """The likeliest of all pairs, by trying each; softmax over the text alone, as what is masked has no share."""
    p, q = (np.exp(x[allowed]) / np.exp(x[allowed]).sum() for x in (start, end))
    pairs = itertools.product(range(len(allowed)), repeat=2)
    fitting = [(p[i] * q[j], i, j) for i, j in pairs if i <= j < i + MAX_ANSWER_TOKENS]
    score, i, j = max(fitting, key=lambda pair: pair[0])
    return allowed[i], allowed[j], float(score)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_span_is_the_likeliest_start_and_end_within_the_text(make: Make, seed: int, special: bool) -> None:
    source, out = make("question-answering", special=special, seed=seed)
    theirs = transformers.GPT2ForQuestionAnswering.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    question = "Where?"
    for text, found in zip(TEXTS, load(out).run([(question, text) for text in TEXTS]), strict=True):
        assert isinstance(found, Span)
        encoded = tokenizer(question, text, return_offsets_mapping=True)
        with torch.no_grad():
            answer = theirs(torch.tensor([encoded["input_ids"]]))
        allowed = [i for i, part in enumerate(encoded.sequence_ids()) if part == 1]
        first, last, score = best_span(answer.start_logits[0].numpy(), answer.end_logits[0].numpy(), allowed)
        start, end = encoded["offset_mapping"][first][0], encoded["offset_mapping"][last][1]
        assert (found.start, found.end, found.text) == (start, end, text[start:end])
        assert_close(found.probability, score)


def test_a_question_by_itself_and_a_text_that_is_empty_are_refused(make: Make) -> None:
    _, out = make("question-answering", special=True)
    model = load(out)
    for wrong in ([("Where?", "")], ["Where?"]):
        with pytest.raises(PromptError, match="expected pairs of a question and a text"):
            model.run(wrong)
    assert isinstance(model.run(("Where?", "in London"))[0], Span)


def test_an_answer_is_never_longer_than_transformers_lets_it_be(make: Make) -> None:
    _, out = make("question-answering")
    model = load(out)
    long = [list(range(10, 50)), list(range(60, 20, -1))]
    for found in model.run(long):
        assert 0 < found.end - found.start <= MAX_ANSWER_TOKENS == 15
    ids = long[0]
    found = model.run([ids])[0]
    assert found.text == " ".join(map(str, ids[found.start : found.end]))


def test_choices_compare_as_transformers_scores_them(make: Make) -> None:
    source, out = make("double-heads", summary_activation="tanh")
    model = transformers.GPT2DoubleHeadsModel.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    found = load(out).run(TEXTS)
    scores = []
    for text in TEXTS:
        ids = torch.tensor([[tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            scores.append(float(model(ids).mc_logits))
    expected = torch.tensor(scores).softmax(dim=0).tolist()
    for choice, score, p in zip(found, scores, expected, strict=True):
        assert isinstance(choice, Choice)
        assert_close(choice.score, score)
        assert_close(choice.probability, p)
    assert sum(choice.probability for choice in found) == pytest.approx(1)


HEADS = ["base", "sequence-classification", "token-classification", "question-answering"]


def numbers(answer: Any) -> list[float]:
    match answer:
        case Labels(scores):
            return [scores[label] for label in sorted(scores)]
        case TokenLabels(tokens):
            return [float(x) for token in tokens for x in (token[0], token[1], token[4])]
        case Embedding(tokens):
            return tokens.ravel().tolist()
        case Span(_, start, end, p):
            return [start, end, p]
    raise AssertionError(answer)


@pytest.mark.parametrize("head", HEADS)
def test_texts_of_unequal_length_in_a_batch_are_answered_as_one_by_one(make: Make, head: str) -> None:
    _, out = make(head)
    model = load(out)
    texts: list[Any] = [("Who?", text) for text in TEXTS] if head == "question-answering" else TEXTS
    for text, found in zip(texts, model.run(texts), strict=True):
        np.testing.assert_allclose(numbers(found), numbers(model.run([text])[0]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(numbers(found), numbers(model.run(text)[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["base", "sequence-classification", "token-classification", "double-heads"])
def test_ids_are_answered_as_the_text_that_they_are_of(make: Make, head: str) -> None:
    _, out = make(head)
    model = load(out)
    assert model.tokenizer is not None
    ids = [model.tokenizer.encode(text).ids for text in TEXTS]
    for of_ids, of_text in zip(model.run(ids), model.run(TEXTS), strict=True):
        if isinstance(of_ids, Choice):
            assert of_ids == of_text
            continue
        if isinstance(of_ids, TokenLabels):
            assert [token[3:] for token in of_ids.tokens] == [token[3:] for token in of_text.tokens]
            assert [token[:2] for token in of_ids.tokens] == [(i, i + 1) for i in range(len(of_ids.tokens))]
            continue
        np.testing.assert_array_equal(numbers(of_ids), numbers(of_text))
    assert len(model.run(ids[0])) == 1


@pytest.mark.parametrize("head", [*HEADS, "double-heads"])
def test_what_cannot_be_answered_for_is_refused_in_a_sentence(make: Make, head: str) -> None:
    _, out = make(head)
    model = load(out)
    for wrong, message in (
        ([[]], "a text is empty"),
        ([[1, 2], []], "a text is empty"),
        ([[1] * 61], "a text of 61 tokens is longer than the model's 60 positions"),
        ([[1, 80]], r"token id 80 is not one of the model's 80 tokens"),
        ([[-1, 8]], r"token id -1 is not one of the model's 80 tokens"),
    ):
        with pytest.raises(PromptError, match=message):
            model.run(wrong)
    assert model.run([]) == []
    assert len(model.run([[1] * 60])) == 1


def test_without_a_tokenizer_a_text_is_refused_and_ids_are_not(save: Make, tmp_path: Path) -> None:
    convert(save(head="base"), tmp_path / "out")
    with pytest.raises(PromptError, match="has no tokenizer; give token ids"):
        load(tmp_path / "out").run(["a"])
    assert load(tmp_path / "out").run([[1, 2]])[0].tokens.shape == (2, 12)


def test_a_language_model_and_a_graph_of_another_interface_are_refused(save: Make, tmp_path: Path) -> None:
    convert(save(), tmp_path / "lm")
    with pytest.raises(ModelFolderError, match=r"no head but the language model's: gpt2onnx generate .* PROMPT"):
        load(tmp_path / "lm")
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2Model"]}))
    with pytest.raises(ModelFolderError, match=r"not the graph that config\.json describes"):
        load(tmp_path / "lm")


def test_the_second_graph_of_double_heads_is_needed(save: Make, tmp_path: Path) -> None:
    convert(save(head="double-heads"), tmp_path / "out")
    (tmp_path / "out" / "onnx" / "model_multiple_choice.onnx").unlink()
    with pytest.raises(GPT2Error, match=r"model_multiple_choice\.onnx"):
        load(tmp_path / "out")


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_batch_holds_its_rows_and_nothing_else_that_counts(rows: list[list[int]]) -> None:
    ids, mask = batch_of(rows)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [ids[i][mask[i] > 0].tolist() for i in range(len(rows))] == rows
    assert all(sorted(row, reverse=True) == row.tolist() for row in mask)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9))
def test_softmax_is_finite_and_sums_to_one(scores: list[float]) -> None:
    found = softmax(np.array(scores, np.float32))
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, torch.tensor(scores, dtype=torch.float64).softmax(dim=0).numpy(), atol=1e-6)


@pytest.mark.parametrize(("last", "whole"), [(MAX_ANSWER_TOKENS - 1, True), (MAX_ANSWER_TOKENS, False)])
def test_an_answer_of_as_many_tokens_is_given_and_of_one_more_is_not(
    make: Make, monkeypatch: pytest.MonkeyPatch, last: int, whole: bool
) -> None:
    start, end = np.zeros((1, 20), np.float32), np.zeros((1, 20), np.float32)
    start[0, 0] = end[0, last] = 9
    _, out = make("question-answering")
    model = load(out)
    monkeypatch.setattr(type(model), "outputs", lambda *_: {"start_logits": start, "end_logits": end})
    found = model.run([list(range(20))])[0]
    assert ((found.start, found.end) == (0, last + 1)) is whole
    assert found.end - found.start <= MAX_ANSWER_TOKENS
