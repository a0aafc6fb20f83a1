"""``generate`` as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from converter.data import CHECKPOINT
from tests.cli.commands import assert_one_sentence, run, succeed
from tests.conftest import Save


def test_generate_prints_prompt_and_continuation_and_its_figures_apart(bundled: Path) -> None:
    result = run("generate", bundled, "The following", "-n", 20)
    assert result.exit_code == 0
    assert result.stdout.startswith("The following")
    assert len(result.stdout) > 30
    assert re.fullmatch(r"20 tokens, \d+ tokens/s after \d+ ms of prefill\n", result.stderr)
    assert run("generate", bundled, "The following", "-n", 20, "--quiet").stderr == ""


def test_generate_reads_standard_input(bundled: Path) -> None:
    piped = run("generate", bundled, "-n", 10, stdin="The following\n").stdout
    assert piped == run("generate", bundled, "The following", "-n", 10).stdout


def test_generate_takes_several_prompts_as_a_batch(bundled: Path) -> None:
    lines = run("generate", bundled, "The following", "An", "-n", 10).stdout
    assert lines.startswith("--- 1 of 2\nThe following")
    assert "--- 2 of 2\nAn" in lines
    rows = json.loads(run("generate", bundled, "The following", "An", "-n", 10, "--json").stdout)["rows"]
    assert [row["prompt"] for row in rows] == ["The following", "An"]
    assert all(len(row["new_ids"]) == 10 for row in rows)
    assert rows[0]["text"] in lines


def test_generate_draws_the_same_text_for_the_same_seed(bundled: Path) -> None:
    def draw(seed: int) -> str:
        return run("generate", bundled, "The", "-n", 30, "--temperature", 1, "--seed", seed).stdout

    assert draw(1) == draw(1) != draw(2)


def test_generate_stops_at_the_last_position_and_says_so(bundled: Path) -> None:
    result = run("generate", bundled, "The", "-n", 9999)
    assert result.exit_code == 0
    assert "stopped at the model's 256 positions" in result.stderr


def test_generate_gives_several_texts_of_each_prompt(bundled: Path) -> None:
    drawn = run("generate", bundled, "The", "An", "-n", 8, "--temperature", 1, "--seed", 2, "--best", 2)
    assert re.findall(r"--- (\d) of 4\n(The|An)", drawn.stdout) == [
        ("1", "The"),
        ("2", "The"),
        ("3", "An"),
        ("4", "An"),
    ]
    found = run("generate", bundled, "The", "-n", 8, "--beams", 3, "-k", 2, "--length-penalty", 0.5)
    assert re.findall(r"--- (\d) of 2 \(-\d+\.\d{4}\)\nThe", found.stdout) == ["1", "2"]
    facts = json.loads(run("generate", bundled, "The", "-n", 8, "--beams", 3, "-k", 2, "--json").stdout)
    assert facts["rows"][0]["score"] > facts["rows"][1]["score"]


def test_generate_says_how_good_its_guesses_were(bundled: Path) -> None:
    arguments = ("generate", bundled, "The following", "-n", 100)
    plain, fast = run(*arguments), run(*arguments, "--speculate")
    assert fast.stdout == plain.stdout == run(*arguments, "--speculate=3").stdout
    assert re.search(r"; \d+ of \d+ proposals right, \d\.\d\d tokens a run\n", fast.stderr)
    facts = json.loads(run(*arguments, "--json", "--speculate").stdout)["speculation"]
    assert list(facts) == ["runs", "proposed", "accepted", "acceptance", "tokens_per_run"]
    assert "speculation" not in json.loads(run(*arguments, "--json").stdout)


def test_generate_ends_before_a_stop_string(bundled: Path) -> None:
    whole = run("generate", bundled, "The following", "-n", 40, "-q").stdout
    cut = run("generate", bundled, "The following", "-n", 40, "--stop", "zzz", "--stop", whole[20:26]).stdout
    assert cut == whole[: whole.index(whole[20:26])] + "\n"


def test_generate_takes_and_gives_token_ids(bundled: Path) -> None:
    result = run("generate", bundled, "340, 794", "--ids", "-n", 3, "-q")
    assert re.fullmatch(r"340 794 \d+ \d+ \d+\n", result.stdout)


@pytest.fixture
def told(bundled: Path, tmp_path: Path) -> Path:
    """A model folder whose generation_config.json says much."""
    folder = shutil.copytree(bundled, tmp_path / "told", symlinks=True)
    said = {"eos_token_id": 0, "do_sample": True, "temperature": 0.7, "max_new_tokens": 9, "typical_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


def test_generate_does_what_the_folder_says_and_the_options_win(told: Path) -> None:
    def rows(*options: object) -> list[list[int]]:
        return [row["new_ids"] for row in json.loads(run("generate", told, "The", "--json", *options).stdout)["rows"]]

    greedy = json.loads(run("generate", told, "The", "--json", "--no-generation-config").stdout)["rows"][0]["new_ids"]
    assert len(greedy) == 128
    assert rows("--temperature", 0) == [greedy[:9]] != rows("--seed", 1) != rows("--seed", 2)
    assert len(rows("-n", 12)[0]) == 12 == len(rows("--max-length", 13)[0])
    assert rows("--beams", 2, "-k", 2, "-n", 3)[1:] != []


def test_generate_says_once_what_of_the_folder_it_cannot_do(told: Path) -> None:
    result = run("generate", told, "The", "-q")
    assert result.exit_code == 0
    assert re.fullmatch(r"gpt2onnx: warning: \S+ asks for typical_p 0\.9, which [^\n]+ left aside\n", result.stderr)
    assert run("generate", told, "The", "-q", "--no-generation-config").stderr == ""
    assert run("generate", told, "The", "-q", "--temperature", 0).stderr == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["word " * 300], ["the model's 256 positions leave no room for a new one"]),
        (["2048", "--ids"], ["token id 2048 is not one of the model's 2048 tokens (0 to 2047)"]),
        (["-5", "--ids"], ["token id -5"]),
        (["x y", "--ids"], ["'x y' is not a list of token ids"]),
        (["x", "--temperature", "-1"], ["temperature is -1.0; expected 0 or more"]),
        (["x", "--top-p", "2"], ["top_p is 2.0"]),
        (["x", "-n", "0"], ["max_new_tokens is 0; expected 1 or more"]),
        (["x", "--min-p", "1.5"], ["min_p is 1.5; expected 0 to 1"]),
        (["x", "--repetition-penalty", "0"], ["repetition_penalty is 0.0; expected above 0"]),
        (["x", "--beams", "-1"], ["beams is -1; expected 1 or more"]),
        (["x", "--beams", "2", "--temperature", "1"], ["beams pursue the likeliest texts and draw nothing"]),
        (["x", "--beams", "2", "-k", "3"], ["best is 3, more than the 2 beams that there are"]),
        (["x", "--best", "2"], ["best needs texts that differ"]),
        (["x", "--early-stopping", "yes"], ["early_stopping", "are for beams"]),
        (["x", "y", "--speculate"], ["speculate is for one prompt at a time, and these are 2"]),
        (["x", "--temperature", "1", "--speculate"], ["speculate", "leave temperature at 0"]),
        (["x", "--stop", ""], ["stop is ('',); expected texts, none of them empty"]),
        (["x", "--provider", "cuda"], ["no provider cuda", "install onnxruntime-gpu"]),
        (["x", "--cuda-graphs"], ["cannot run as CUDA graphs with CPU", "--provider cuda", "omit --cuda-graphs"]),
    ],
)
def test_generate_refuses_in_one_sentence(bundled: Path, arguments: list[str], parts: list[str]) -> None:
    at = arguments.index("-5") if "-5" in arguments else None
    if at is not None:
        arguments = [*arguments[:at], *arguments[at + 1 :], "--", "-5"]
    result = run("generate", bundled, *arguments)
    assert_one_sentence(result, *parts)


def test_generate_without_a_tokenizer_asks_for_ids(save: Save, tmp_path: Path) -> None:
    succeed("convert", save(), tmp_path / "out", "-q")
    assert_one_sentence(run("generate", tmp_path / "out", "text"), "has no tokenizer", "token ids")
    assert run("generate", tmp_path / "out", "1 2", "--ids", "-n", 2).exit_code == 0


def test_generate_in_a_broken_folder_is_one_sentence(tmp_path: Path) -> None:
    assert_one_sentence(run("generate", tmp_path / "nowhere", "x"), "there is no model folder", "gpt2onnx convert")
    assert_one_sentence(run("generate", CHECKPOINT, "x"), "has no onnx/model.onnx")


CHATML = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{{ eos_token }}"


@pytest.fixture
def chatty(bundled: Path, tmp_path: Path) -> Path:
    """The bundled model with two chat templates."""
    folder = shutil.copytree(bundled, tmp_path / "chatty", symlinks=True)
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "bare.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    return folder


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("Hi", "--chat"), "<user>Hi"),
        (("Hi", "--chat", "bare"), "Hi"),
        (("Hi", "--chat=bare"), "Hi"),
        (("Hi", "--chat", "--system", "Be kind."), "<system>Be kind.<user>Hi"),
        (('[{"role": "tool", "content": "7"}]', "--chat"), "<tool>7"),
        (("[1, 2]", "--chat"), "<user>[1, 2]"),
    ],
)
def test_generate_answers_by_the_folders_template(chatty: Path, options: tuple[str, ...], text: str) -> None:
    facts = json.loads(run("generate", chatty, *options, "-n", 8, "--json").stdout)
    expected = json.loads(run("generate", chatty, f"{text}<|endoftext|>", "-n", 8, "--json").stdout)
    assert facts["rows"][0]["prompt_ids"] == expected["rows"][0]["prompt_ids"]
    assert facts["rows"][0]["text"] == expected["rows"][0]["text"]
    assert run("generate", chatty, *options, "-n", 8, "--quiet").stdout == expected["rows"][0]["text"] + "\n"


def test_generate_says_which_templates_there_are(chatty: Path, bundled: Path) -> None:
    assert_one_sentence(
        run("generate", chatty, "--chat", "Hi"),
        r"has no chat template 'Hi'; it has bare, default; write --chat after the PROMPT, or as --chat=NAME",
    )
    assert_one_sentence(run("generate", bundled, "Hi", "--chat"), "has no chat template; give the prompt as")
    for options, said in {("--chat", "--ids"): "--chat takes texts", ("--system", "x"): "--system is for conv"}.items():
        refused = run("generate", chatty, "1 2", *options)
        assert refused.exit_code == 2
        assert said in refused.stderr
