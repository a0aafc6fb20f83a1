"""``generate --prompts``: JSONL in, JSONL out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from converter.runtime.opening import load
from tests.cli.commands import assert_one_sentence, run

PROMPTS = ["The following", "In a class", "The following", "def", "A name"]


def lines(*values: Any) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text(lines(*({"prompt": text, "id": n} for n, text in enumerate(PROMPTS))))
    return tmp_path / "prompts.jsonl"


def rows(*arguments: object, stdin: str | None = None) -> list[dict[str, Any]]:
    result = run("generate", *arguments, "-n", 8, "-q", stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_prompt_gets_a_line_in_its_order_with_all_that_its_own_line_has(bundled: Path, file: Path) -> None:
    expected = load(bundled).generate(PROMPTS, max_new_tokens=8)
    found = rows(bundled, "--prompts", file)
    assert [row["id"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["prompt"] for row in found] == PROMPTS
    assert [row["text"] for row in found] == expected.texts
    assert [row["new_ids"] for row in found] == expected.new_ids
    assert set(found[0]) == {"prompt", "id", "text", "prompt_ids", "new_ids", "ended", "run"}


def test_the_size_of_the_batch_changes_no_text_drawn_or_not(bundled: Path, file: Path) -> None:
    for options in ((), ("--temperature", 1, "--seed", 5, "--best", 2), ("--beams", 3, "-k", 2)):
        found = [rows(bundled, "--prompts", file, "--batch-size", size, *options) for size in (1, 2, 8)]
        for row in itertools.chain(*found):
            row.pop("score", None)  # whose last bits the size of a batch may change
        assert found[0] == found[1] == found[2]
    drawn = rows(bundled, "--prompts", file, "--batch-size", 1, "--temperature", 1, "--seed", 5)
    assert drawn[0]["text"] != drawn[2]["text"]  # the same prompt again


def test_prompts_may_be_ids_or_texts_of_any_script_on_standard_input(bundled: Path) -> None:
    given = lines({"prompt": [340, 794]}, "größer\u2028≥", {"text": "The", "prompt_id": 7})
    found = rows(bundled, "--prompts", "-", stdin=given)
    assert [row["prompt"] for row in found] == [[340, 794], "größer\u2028≥", "The"]
    assert found[0]["prompt_ids"] == [340, 794]
    assert found[2]["prompt_id"] == 7


def test_log_probabilities_come_with_each_token_and_the_likeliest_beside_it(bundled: Path, file: Path) -> None:
    model = load(bundled)
    for row in rows(bundled, "--prompts", file, "--logprobs", 3):
        assert [token["id"] for token in row["tokens"]] == row["new_ids"]
        for token in row["tokens"]:
            assert [best["log_prob"] for best in token["best"]] == sorted(
                (b["log_prob"] for b in token["best"]), reverse=True
            )
            assert token["best"][0] == {name: token[name] for name in ("id", "text", "log_prob")}  # which is greedy
            assert token["text"] == model.piece(token["id"])
    result = run("generate", bundled, "The", "-n", 4, "--json", "--logprobs", 0)
    assert [token["best"] for token in json.loads(result.stdout)["rows"][0]["tokens"]] == [[]] * 4


def test_guesses_are_made_for_each_prompt_of_a_file(bundled: Path, file: Path) -> None:
    assert rows(bundled, "--prompts", file, "--speculate=4") == rows(bundled, "--prompts", file)


DRAWN = ("-n", 8, "-q", "--temperature", 1, "--seed", 5, "--best", 2)


@pytest.mark.parametrize("cut", ["nothing", "half a line", "a text of two", "a line feed", "all"])
def test_what_was_interrupted_goes_on_where_it_stopped(bundled: Path, file: Path, tmp_path: Path, cut: str) -> None:
    to = tmp_path / "texts.jsonl"
    command = ("generate", bundled, "--prompts", file, "-o", to, *DRAWN)
    assert run(*command).stdout == ""
    whole = to.read_bytes()
    assert whole.decode() == run("generate", bundled, "--prompts", file, *DRAWN).stdout
    lengths = [len(line) for line in whole.splitlines(keepends=True)]
    kept = {
        "nothing": len(whole),
        "half a line": sum(lengths[:6]) + lengths[6] // 2,
        "a text of two": sum(lengths[:5]),
        "a line feed": sum(lengths[:4]) - 1,
        "all": 0,
    }[cut]
    to.write_bytes(whole[:kept])
    assert run(*command).exit_code == 0
    assert to.read_bytes() == whole


def test_only_what_is_missing_is_generated(bundled: Path, file: Path, tmp_path: Path) -> None:
    to = tmp_path / "texts.jsonl"
    run_of = rows(bundled, "--prompts", file)[0]["run"]
    own = [{"prompt": text, "text": "as somebody changed it", "run": run_of} for text in PROMPTS[:3]]
    to.write_text(lines(*own))
    assert run("generate", bundled, "--prompts", file, "-o", to, "-n", 8, "-q").exit_code == 0
    found = [json.loads(line) for line in to.read_text().splitlines()]
    assert found[:3] == own
    assert found[3:] == rows(bundled, "--prompts", file)[3:]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (lines({"prompt": PROMPTS[0]}, {"prompt": "Another"}), 2),
        ("a text of somebody\n", 1),
        (lines(*({"prompt": text} for text in (*PROMPTS, PROMPTS[0]))), 6),
        ("[]\n", 1),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(
    bundled: Path, file: Path, tmp_path: Path, content: str, line: int
) -> None:
    made = rows(bundled, "--prompts", file)[0]["run"]
    content = content.replace('"}', f'", "run": "{made}"}}')
    (tmp_path / "texts.jsonl").write_text(content)
    result = run("generate", bundled, "--prompts", file, "-o", tmp_path / "texts.jsonl", "-n", 8)
    assert_one_sentence(result, f"texts.jsonl, line {line}, is not of text 1 of prompt {line}", "give another --output")
    assert (tmp_path / "texts.jsonl").read_text() == content


@pytest.mark.parametrize("options", [("-n", 9), ("-n", 8, "--temperature", 1), ("-n", 8, "--precision", "int8")])
def test_what_other_options_or_another_model_made_is_not_gone_on_with(
    things: Path, file: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    to = tmp_path / "texts.jsonl"
    command = ("generate", things / "gpt2-onnx", "--prompts", file, "-o", to, "-q")
    assert run(*command, "-n", 8).exit_code == 0
    whole = to.read_bytes()
    result = run(*command, *options)
    assert_one_sentence(result, "texts.jsonl, line 1, was not made by this model with these options; give another")
    assert to.read_bytes() == whole
    assert run(*command, "-n", 8, "--threads", 1, "--batch-size", 3).exit_code == 0  # which change nothing


def test_prompts_are_no_texts_of_themselves(bundled: Path, file: Path) -> None:
    whole = file.read_bytes()
    result = run("generate", bundled, "--prompts", file, "-o", file, "-n", 8)
    assert_one_sentence(result, "prompts.jsonl, line 1, was not made by this model with these options")
    assert file.read_bytes() == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_device_is_no_output(bundled: Path, file: Path) -> None:
    result = run("generate", bundled, "--prompts", file, "-o", "/dev/full", "-n", 8)
    assert_one_sentence(result, "/dev/full is a pipe, a socket or a device; expected a file on a disk; omit --output")


def test_an_output_that_cannot_be_written_is_named(bundled: Path, file: Path, tmp_path: Path) -> None:
    result = run("generate", bundled, "--prompts", file, "-o", tmp_path / "nowhere/texts.jsonl")
    assert_one_sentence(result, "nowhere/texts.jsonl cannot be written: No such file or directory")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["prompts.jsonl cannot be read as JSONL: it is empty", '{"prompt": "…"} in every line']),
        ('{"prompt": "a"}\n\n{"x": 1}\n', ["prompts.jsonl cannot be read as JSONL: line 3 has no prompt"]),
        ('{"prompt": "a"}\nnot json\n', ["line 2 is no JSON; expected"]),
        ('{"prompt": 5}\n', ["line 1 has no prompt"]),
        ('{"prompt": "a"}\n{"prompt": [99999]}\n', ["prompts.jsonl, line 2: token id 99999 is not one"]),
        ('"a"\n' + json.dumps("word " * 300) + "\n", ["prompts.jsonl, line 2: a prompt has", "leave no room"]),
        ('{"prompt": []}\n', ["prompts.jsonl, line 1: ", "give"]),
    ],
)
def test_a_line_that_cannot_be_continued_is_named_before_anything_is_printed(
    bundled: Path, tmp_path: Path, content: str, parts: list[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    result = run("generate", bundled, "--prompts", tmp_path / "prompts.jsonl")
    assert_one_sentence(result, *parts)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["The", "--prompts", "FILE"], "omit PROMPT"),
        (["--prompts", "FILE", "--json"], "omit --json"),
        (["--prompts", "FILE", "--ids"], "omit --ids"),
        (["The", "-o", "texts.jsonl"], "--output is for --prompts FILE"),
        (["The", "--batch-size", "2"], "--batch-size is for --prompts FILE"),
        (["The", "--logprobs", "2"], "add --json, or give --prompts FILE"),
        (["The", "--json", "--logprobs", "-1"], "logprobs is -1; expected 0 or more"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl cannot be read: No such file"),
    ],
)
def test_what_does_not_go_together_is_refused(bundled: Path, file: Path, arguments: list[str], part: str) -> None:
    result = run("generate", bundled, *(str(file) if name == "FILE" else name for name in arguments))
    assert result.exit_code == 2
    assert part in result.stderr
