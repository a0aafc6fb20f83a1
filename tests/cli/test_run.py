"""``run`` as a user meets it: what each head prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from converter.data import CHECKPOINT
from converter.runtime.heads import load
from tests.cli.commands import assert_one_sentence, run, succeed
from tests.conftest import Save

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,?Ġ"
NAMES = {0: "good", 1: "bad", 2: "so so"}
NAMED = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}


@pytest.fixture
def made(save: Save, tmp_path: Path) -> Callable[..., Path]:
    """``made(head, **config)``: a model folder with this head, which reads letters."""

    def make(head: str, outputs: str = "", **config: object) -> Path:
        source = save(head=head, **{"vocab_size": 80, "n_positions": 60, "n_layer": 1} | config)
        tokenizer = Tokenizer(models.BPE(vocab={letter: 79 - i for i, letter in enumerate(LETTERS)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.save(str(source / "tokenizer.json"))
        asked = ("--outputs", outputs) if outputs else ()
        assert run("convert", source, tmp_path / "out", "--quiet", *asked).exit_code == 0
        return tmp_path / "out"

    return make


def test_run_prints_labels_with_their_probabilities_the_likeliest_first(made: Callable[..., Path]) -> None:
    out = made("sequence-classification", **NAMED)
    result = run("run", out, "What a film.")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = [re.fullmatch(r" *([\d.]+)%  (good|bad|so so)", line) for line in result.stdout.splitlines()]
    assert len(lines) == 3
    shares = [float(line[1]) for line in lines if line]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.02)
    assert len(run("run", out, "What a film.", "--top", 2).stdout.splitlines()) == 2
    facts = json.loads(run("run", out, "What a film.", "Ada", "--json").stdout)
    assert [fact["text"] for fact in facts] == ["What a film.", "Ada"]
    assert sum(facts[1]["labels"].values()) == pytest.approx(1)
    assert next(iter(facts[0]["labels"])) in result.stdout.splitlines()[0]
    assert run("run", out, stdin="What a film.\n").stdout == result.stdout
    two = run("run", out, "What a film.", "Ada").stdout
    assert two.startswith(f"--- 1 of 2\n{result.stdout}--- 2 of 2\n")


def test_run_prints_the_values_of_a_regression_as_they_are(made: Callable[..., Path]) -> None:
    out = made("sequence-classification", num_labels=1, problem_type="regression")
    result = run("run", out, "What a film.")
    assert re.fullmatch(r" *-?[\d.]+  LABEL_0\n", result.stdout)
    value = json.loads(run("run", out, "What a film.", "--json").stdout)[0]["labels"]["LABEL_0"]
    assert float(result.stdout.split()[0]) == pytest.approx(value, rel=1e-5)


def test_run_prints_a_mark_for_every_token(made: Callable[..., Path]) -> None:
    out = made("token-classification", **NAMED)
    lines = run("run", out, "Ada a").stdout.splitlines()
    assert len(lines) == 5
    for i, line in enumerate(lines):
        assert re.fullmatch(rf" +{i}–{i + 1} +'{'Ada a'[i]}'  (good|bad|so so)  [\d.]+%", line), line
    facts = json.loads(run("run", out, "Ada a", "--json").stdout)[0]["tokens"]
    assert [(fact["start"], fact["end"], fact["text"]) for fact in facts] == [
        (i, i + 1, letter) for i, letter in enumerate("Ada a")
    ]
    assert all(set(fact) == {"start", "end", "text", "label", "probability"} for fact in facts)


def test_run_prints_the_span_that_answers_a_question(made: Callable[..., Path]) -> None:
    out = made("question-answering")
    text = "Ada was born in London."
    result = run("run", out, text, "--question", "Where?")
    assert result.exit_code == 0
    found = re.fullmatch(r"(.*)  \(([\d.]+)%, characters (\d+) to (\d+)\)\n", result.stdout)
    assert found is not None
    assert text[int(found[3]) : int(found[4])].strip() == found[1]
    facts = json.loads(run("run", out, text, "--question", "Where?", "--json").stdout)[0]
    assert facts["text"] == text[facts["start"] : facts["end"]]
    assert 0 < facts["probability"] <= 1
    assert run("run", out, "5 7 9 11", "--ids").exit_code == 0
    for arguments in ((text,), ("1 2", "--ids", "--question", "Where?")):
        result = run("run", out, *arguments)
        assert result.exit_code == 2
        assert "--question" in result.stderr
    assert_one_sentence(run("run", out, "", "--question", "Where?"), "a text is empty")


def test_run_says_how_choices_compare(made: Callable[..., Path]) -> None:
    out = made("double-heads")
    result = run("run", out, "one ending", "another")
    lines = [re.fullmatch(r" *([\d.]+)%  (one ending|another)", line) for line in result.stdout.splitlines()]
    assert [line[2] for line in lines if line] == ["one ending", "another"]
    assert sum(float(line[1]) for line in lines if line) == pytest.approx(100, abs=0.02)
    facts = json.loads(run("run", out, "one ending", "another", "--json").stdout)
    assert [set(fact) for fact in facts] == [{"text", "probability", "score"}] * 2
    assert run("generate", out, "one", "-n", 2, "-q").exit_code == 0


def test_run_prints_an_embedding_as_numbers(made: Callable[..., Path]) -> None:
    out = made("base")
    result = run("run", out, "Ada")
    numbers = [float(number) for number in result.stdout.split()]
    assert len(numbers) == 12
    facts = json.loads(run("run", out, "Ada", "--json").stdout)[0]
    assert numbers == pytest.approx(facts["mean"], rel=1e-5)
    assert [len(facts["tokens"]), len(facts["tokens"][0])] == [3, 12]


@pytest.mark.parametrize("head", ["base", "sequence-classification", "token-classification", "double-heads"])
def test_run_refuses_in_a_sentence_what_it_cannot_answer_for(made: Callable[..., Path], head: str) -> None:
    out = made(head)
    assert_one_sentence(run("run", out, ""), "a text is empty")
    assert_one_sentence(run("run", out, "", "--ids"), "a text is empty")
    assert_one_sentence(run("run", out, "a" * 61), "a text of 61 tokens is longer than the model's 60 positions")
    assert_one_sentence(run("run", out, "1 80", "--ids"), "token id 80 is not one of the model's 80 tokens")
    assert_one_sentence(run("run", out, "one", "--ids"), "'one' is not a list of token ids")
    result = run("run", out, "a", "--question", "Who?")
    assert result.exit_code == 2
    assert "--question is for texts of a model that answers questions" in result.stderr
    (out / "tokenizer.json").unlink()
    assert_one_sentence(run("run", out, "a"), "has no tokenizer; give token ids (--ids)")
    assert run("run", out, "1 2 3", "4", "--ids").exit_code == 0


def test_run_and_generate_send_to_each_other(bundled: Path, made: Callable[..., Path]) -> None:
    assert_one_sentence(run("run", bundled, "a"), f"gpt2onnx generate {bundled} PROMPT")
    out = made("base")
    assert_one_sentence(run("generate", out, "a"), "has the head base", f"gpt2onnx run {out} TEXT")


@pytest.mark.parametrize("command", ["convert", "inspect", "check"])
def test_a_head_that_there_is_not_is_refused(save: Save, bundled: Path, tmp_path: Path, command: str) -> None:
    out = {"convert": [tmp_path / "new"], "inspect": [], "check": [bundled]}[command]
    assert_one_sentence(run(command, CHECKPOINT, *out, "--head", "nonsense"), "there is no head 'nonsense'", "lm, base")
    assert not (tmp_path / "new").exists()


def test_a_head_that_is_asked_for_is_converted_checked_and_shown(save: Save, tmp_path: Path) -> None:
    source = save()
    result = run("convert", source, tmp_path / "out", "--head", "base", "--check")
    assert result.exit_code == 0, result.output
    facts = json.loads(run("inspect", source, "--head", "base", "--json").stdout)
    assert facts["config"]["head"] == "base"
    assert_one_sentence(run("check", source, tmp_path / "out"), "its head is base, the source's lm; --head says")
    assert run("check", source, tmp_path / "out", "--head", "base").exit_code == 0
    assert_one_sentence(run("check", "--prove", save("b", head="base")), "has the head base")


def test_of_a_language_model_run_prints_what_its_graph_returns(save: Save, tmp_path: Path) -> None:
    assert run("convert", CHECKPOINT, tmp_path / "out", "--outputs", "attentions,ln_f", "-q").exit_code == 0
    shown = succeed("run", tmp_path / "out", "The following").stdout
    rows = [line.split(maxsplit=1) for line in shown.splitlines() if "×" in line]
    assert [name for name, _ in rows] == ["logits", *(f"attentions.{i}" for i in range(5)), "ln_f"]
    assert dict(rows)["attentions.3"].strip() == "6 × 2 × 2"
    two = succeed("run", tmp_path / "out", "The following", "A", "--json").stdout
    assert [fact["outputs"]["ln_f"] for fact in json.loads(two)] == [[2, 192], [1, 192]]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_run_saves_what_a_graph_returns_and_the_ids(made: Callable[..., Path], tmp_path: Path, ending: str) -> None:
    out, file = made("token-classification", outputs="h.0.mlp.act"), tmp_path / f"inside.{ending}"
    read = {"npz": lambda: dict(np.load(file)), "safetensors": lambda: load_file(file)}[ending]
    shown = succeed("run", out, "Ada", "--save", file).stdout
    assert len(shown.splitlines()) > 3  # the answer, and the shapes
    found, expected = read(), load(out).outputs("Ada")
    assert found.pop("input_ids").tolist() == load(out).encode("Ada")[0]
    assert found.keys() == expected.keys() == {"logits", "h.0.mlp.act"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    succeed("run", out, "Ada", "a", "--save", file, "--json")
    assert {name.partition("/")[0] for name in read()} == {"1", "2"}


def test_run_saves_an_answer_too_where_nothing_else_is_returned(made: Callable[..., Path], tmp_path: Path) -> None:
    out = made("double-heads")
    succeed("run", out, "one", "another", "--save", tmp_path / "all.npz")
    found = dict(np.load(tmp_path / "all.npz"))
    assert {name: array.shape for name, array in found.items()} == {"input_ids": (2, 7), "mc_logits": (2,)}


def test_run_refuses_a_file_that_it_cannot_write(bundled: Path, tmp_path: Path) -> None:
    result = run("run", bundled, "a", "--save", tmp_path / "a.txt")
    assert result.exit_code == 2
    assert "--save writes .npz and .safetensors files, not a.txt" in result.stderr
    result = run("run", bundled, "a", "--save", tmp_path / "nowhere" / "a.npz")
    assert "there is no folder" in result.stderr
