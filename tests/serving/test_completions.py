"""/v1/completions gives what ``generate`` gives, in OpenAI's form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.serving.servers import Running

PATH = "/v1/completions"
PROMPTS = ["The following", "A class"]


def generated(server: Running, prompts: Any, **options: Any) -> Any:
    return server.model.generate(prompts, **{"temperature": 1.0, "max_new_tokens": 9, **options})


def test_texts_are_those_of_generate(server: Running) -> None:
    answer = server.post(PATH, prompt=PROMPTS, n=2, seed=5, max_tokens=9, return_token_ids=True)
    expected = generated(server, PROMPTS, best=2, seed=5)
    assert [choice["text"] for choice in answer["choices"]] == expected.texts
    assert [choice["token_ids"] for choice in answer["choices"]] == expected.new_ids
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert len({*expected.texts}) == 4
    read = len(server.model.encode(PROMPTS)[0]) + len(server.model.encode(PROMPTS)[1])
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": 36, "total_tokens": read + 36}


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.7, "top_p": 0.8}),
        ({"top_k": 5, "min_p": 0.1}, {"top_k": 5, "min_p": 0.1}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_p": 0}, {"temperature": 0.0}),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}),
        ({"temperature": 0, "repetition_penalty": 1.5}, {"temperature": 0.0, "repetition_penalty": 1.5}),
        ({"stop": "e"}, {"stop": "e"}),
        ({"stop": [" of", "in"]}, {"stop": [" of", "in"]}),
        ({"seed": -3}, {"seed": 2**64 - 3}),
    ],
)
def test_every_field_means_what_the_option_means(server: Running, asked: Any, options: Any) -> None:
    answer = server.post(PATH, prompt="The following", max_tokens=9, **{"seed": 7, **asked})
    expected = generated(server, "The following", **{"seed": 7, **options})
    assert answer["choices"][0]["text"] == expected.texts[0]
    reason = {"stop string": "stop", "end of text": "stop", "max_new_tokens": "length"}[expected.ended[0]]
    assert answer["choices"][0]["finish_reason"] == reason


def test_what_is_left_out_is_as_openai_has_it(server: Running) -> None:
    answer = server.post(PATH, prompt="The following", seed=1)
    assert answer["choices"][0]["text"] == generated(server, "The following", seed=1, max_new_tokens=16).texts[0]
    null = dict.fromkeys(("n", "stop", "temperature", "max_tokens", "logprobs", "stream", "user", "tools"))
    assert server.post(PATH, prompt="The following", seed=1, **null)["choices"] == answer["choices"]
    assert server.post(PATH, prompt="The", seed=1)["choices"] != server.post(PATH, prompt="The")["choices"]


@pytest.mark.parametrize("prompt", ["The following", [340, 794], ["The following"], [[340, 794]]])
def test_a_prompt_has_four_forms(server: Running, prompt: Any) -> None:
    answer = server.post(PATH, prompt=prompt, temperature=0, max_tokens=5)
    assert answer["choices"][0]["text"] == generated(server, "The following", temperature=0, max_new_tokens=5).texts[0]


def test_a_stream_is_the_whole_in_pieces(server: Running) -> None:
    asked = {"prompt": PROMPTS, "n": 2, "seed": 5, "max_tokens": 9, "logprobs": 2, "echo": True, "stop": "zzz"}
    whole = server.post(PATH, **asked)
    *events, usage = server.events(PATH, **asked, stream_options={"include_usage": True})
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    for choice in whole["choices"]:
        pieces = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name in choice["logprobs"]:
            joined = [each for piece in pieces for each in piece["logprobs"][name]]
            if name == "token_logprobs":  # in fp32 neighbours in a batch change the last bits
                assert joined[0] is choice["logprobs"][name][0] is None
                assert joined[1:] == pytest.approx(choice["logprobs"][name][1:], abs=1e-4)
            elif name != "top_logprobs":
                assert joined == choice["logprobs"][name]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + [choice["finish_reason"]]
    assert all(event["usage"] is None for event in events)
    assert "usage" not in server.events(PATH, prompt="The", max_tokens=1)[0]


def test_logprobs_are_those_of_the_logits(server: Running) -> None:
    asked = {"prompt": "The following", "temperature": 0, "max_tokens": 6, "logprobs": 3, "echo": True}
    (choice,) = server.post(PATH, **asked, return_token_ids=True)["choices"]
    ids, found = [*server.model.encode("The following")[0], *choice["token_ids"]], choice["logprobs"]
    logits = server.model.logits([ids])[0].astype("float64")
    logs = logits - logits.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx([logs[i, token] for i, token in enumerate(ids[1:])], abs=1e-4)
    for row, best in zip(logs, found["top_logprobs"][1:], strict=False):
        assert list(best.values()) == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-4)
        assert [server.model.piece(int(i)) for i in (-row).argsort()[:3]] == list(best)
    text, offsets = choice["text"], found["text_offset"]
    assert [text[a:b] for a, b in zip(offsets, [*offsets[1:], len(text)], strict=True)] == found["tokens"]


def test_each_offset_is_where_its_token_begins_even_after_a_character_that_lacks_bytes(server: Running) -> None:
    broken = 0
    for seed in range(4):
        asked = {"prompt": "日", "temperature": 2, "seed": seed, "max_tokens": 120, "logprobs": 0}
        (choice,) = server.post(PATH, **asked)["choices"]
        tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
        assert offsets == sorted(offsets)
        for name, following, offset in zip(tokens, [*tokens[1:], ""], offsets, strict=True):
            if not name.startswith("bytes:"):
                assert choice["text"][offset : offset + len(name)] == name
            elif following and not following.startswith("bytes:"):
                broken += choice["text"][offset] == "\ufffd"
    assert broken  # there were such characters


def test_a_text_is_scored_without_a_new_token(server: Running) -> None:
    text = "The following statement"
    (choice,) = server.post(PATH, prompt=text, max_tokens=0, echo=True, logprobs=0)["choices"]
    assert choice["text"] == text
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(
        server.model.score(text)[0].log_probs[1:], abs=1e-4
    )


def test_best_of_gives_the_likeliest_texts_and_counts_all(server: Running) -> None:
    answer = server.post(PATH, prompt="The following", n=2, best_of=5, seed=2, max_tokens=8)
    expected = generated(server, "The following", best=5, seed=2, max_new_tokens=8, logprobs=0)
    means = [math.fsum(token.log_prob for token in row) / len(row) for row in expected.tokens]
    best = sorted(range(5), key=means.__getitem__, reverse=True)[:2]
    assert [choice["text"] for choice in answer["choices"]] == [expected.texts[i] for i in best]
    assert answer["usage"]["completion_tokens"] == sum(map(len, expected.tokens))


def test_a_character_in_parts_is_named_by_its_bytes(server: Running) -> None:
    ids = server.model.encode("→")[0]
    assert len(ids) > 1
    (choice,) = server.post(PATH, prompt=[340, *ids], max_tokens=0, echo=True, logprobs=0)["choices"]
    names = choice["logprobs"]["tokens"][1:]
    assert all(name.startswith("bytes:") for name in names)
    assert "".join(name.removeprefix("bytes:") for name in names) == "".join(f"\\x{byte:02x}" for byte in "→".encode())


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({}, None, "missing required field `prompt`"),
        ({"prompt": []}, "prompt", "empty or mixed"),
        ({"prompt": [[]]}, "prompt", "empty or mixed"),
        ({"prompt": ["a", 1]}, "prompt", "empty or mixed"),
        ({"prompt": [True]}, "prompt[0]", "Expected"),
        ({"prompt": [1, 99999]}, None, "token id 99999 is not one of the model's 2048 tokens"),
        ({"prompt": [-1]}, None, "token id -1 is not"),
        ({"prompt": [10**30]}, None, "cannot be read"),
        ({"prompt": "a" * 3000}, "prompt", "tokens; this server reads at most 256"),
        ({"prompt": [1] * 256}, None, "leave no room for a new one"),
        ({"prompt": "a", "max_tokens": 257}, "max_tokens", "this server gives at most 256"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "nothing to answer"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "Expected `int | null`, got `str`"),
        ({"prompt": "a", "temperature": -1}, "temperature", ">= 0"),
        ({"prompt": "a", "temperature": 3}, "temperature", "<= 2"),
        ({"prompt": "a", "top_p": 1.5}, "top_p", "<= 1"),
        ({"prompt": "a", "n": 0}, "n", ">= 1"),
        ({"prompt": "a", "n": 65}, "n", "asks for 65 texts; this server gives at most 64"),
        ({"prompt": ["a"] * 9, "n": 9}, "n", "asks for 81 texts"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of", "less than n"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "add stream"),
        ({"prompt": "a", "stop": ""}, None, "expected texts, none of them empty"),
        ({"prompt": "a", "stop": [""]}, None, "expected texts, none of them empty"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "logit_bias is not supported"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "suffix is not supported"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ({"prompt": "a", "temprature": 1}, "temprature", 'there is no field "temprature"'),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    server: Running, asked: Any, param: str | None, said: str
) -> None:
    error = server.refused("/v1/completions", asked, 400, said)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_fills_the_model_is_too_long_as_one_that_is_longer(server: Running) -> None:
    for tokens in (256, 257):
        error = server.refused("/v1/completions", {"prompt": [1] * tokens}, 400, f"a prompt has {tokens} tokens")
        assert error["code"] == "context_length_exceeded"


def test_another_model_is_not_there(server: Running) -> None:
    name = server.server.served.name
    assert server.post(PATH, prompt="a", model=name, max_tokens=1)["model"] == name
    assert server.refused(PATH, {"prompt": "a", "model": "gpt-4"}, 404, name)["code"] == "model_not_found"


def test_a_field_that_changes_nothing_is_taken(server: Running) -> None:
    server.post(PATH, prompt="a", max_tokens=1, user="me", metadata={"a": "b"}, tools=[], logit_bias={}, suffix=None)
