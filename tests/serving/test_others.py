"""Chats, other heads, tokens, and what is told of the model."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converter import load_head
from converter.runtime.chat import conversation_ids
from tests.serving.servers import Running, running

CHAT = "/v1/chat/completions"
TEMPLATE = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('No.') }}{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}model:"
)
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a class?"}]


@pytest.fixture(scope="module")
def chatty(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("chat") / "chatty"
    shutil.copytree(bundled, folder, symlinks=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with running(folder) as made:
        yield made


def test_an_answer_is_what_generate_gives_after_the_template(chatty: Running) -> None:
    ids = conversation_ids(chatty.model, TALK)
    expected = chatty.model.generate([ids], temperature=1.0, seed=3, best=2, max_new_tokens=8)
    asked = {"messages": TALK, "seed": 3, "n": 2, "max_completion_tokens": 8}
    answer = chatty.post(CHAT, **asked)
    assert [choice["message"]["content"] for choice in answer["choices"]] == expected.texts
    assert answer["usage"]["prompt_tokens"] == len(ids)
    *events, usage = chatty.events(CHAT, **asked, stream_options={"include_usage": True})
    assert usage["usage"] == answer["usage"]
    for index, text in enumerate(expected.texts):
        pieces = [each for event in events for each in event["choices"] if each["index"] == index]
        assert "".join(piece["delta"]["content"] for piece in pieces) == text
        assert [piece["delta"].get("role") for piece in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == "length"


def test_parts_of_a_message_are_one_text(chatty: Running) -> None:
    whole = chatty.post(CHAT, messages=TALK, temperature=0, max_tokens=3)
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a class?"}]
    assert (
        chatty.post(CHAT, messages=[TALK[0], {"role": "user", "content": parts}], temperature=0, max_tokens=3)[
            "choices"
        ]
        == whole["choices"]
    )
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    chatty.refused(CHAT, {"messages": [{"role": "user", "content": picture}]}, 400, "messages[0].content")


def test_log_probabilities_of_an_answer(chatty: Running) -> None:
    answer = chatty.post(CHAT, messages=TALK, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == answer["choices"][0]["message"]["content"]
    for token in content:
        assert len(token["top_logprobs"]) == 2
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] > token["top_logprobs"][1]["logprob"]


def test_what_is_no_conversation_is_refused(chatty: Running, server: Running) -> None:
    assert server.refused(CHAT, {"messages": TALK}, 400, "has no chat template")["code"] == "no_chat_template"
    chatty.refused(CHAT, {"messages": []}, 400, "messages")
    error = chatty.refused(
        CHAT, {"messages": [{"role": "assistant", "content": "a"}]}, 400, "refuses the conversation: No."
    )
    assert "of chatty refuses" in error["message"]  # and not of the folder by its path
    chatty.refused(CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role")
    chatty.refused(CHAT, {"messages": TALK, "tools": [{"type": "function"}]}, 400, "tools is not supported")
    chatty.refused(CHAT, {"messages": TALK, "top_logprobs": 2}, 400, "set logprobs to true")
    chatty.refused(CHAT, {"messages": [{"role": "user", "content": "a" * 3000}]}, 400, "reads at most 256")


# --- other heads ------------------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_model(heads: dict[str, Path]) -> None:
    texts = ["The following", "A class is a name"]
    with running(heads["base"]) as made:
        expected = [answer.mean for answer in load_head(heads["base"], threads=1).run(texts)]
        answer = made.post("/v1/embeddings", input=texts)
        assert np.allclose([row["embedding"] for row in answer["data"]], expected, atol=1e-6)
        packed = made.post("/v1/embeddings", input=texts, encoding_format="base64")
        vectors = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in packed["data"]]
        assert np.allclose(vectors, expected, atol=1e-6)
        assert answer["usage"]["prompt_tokens"] == sum(len(made.model.encode(text)[0]) for text in texts)
        made.refused("/v1/embeddings", {"input": "a", "dimensions": 5}, 400, "no other dimensions")
        made.refused("/v1/embeddings", {"input": "a" * 999}, 400, "longer than the model's 64 positions")
        made.refused("/v1/classify", {"input": "a"}, 400, "has the head base, which classifies nothing")
        made.refused("/v1/completions", {"prompt": "a"}, 400, "continues no text")
        assert made.ask("GET", "/v1/models")[1]["data"][0]["head"] == "base"
        assert made.ask("GET", "/metrics")[0] == 200


@pytest.mark.parametrize("head", ["sequence-classification", "token-classification", "question-answering"])
def test_a_head_says_what_it_says_elsewhere(heads: dict[str, Path], head: str) -> None:
    asks = head == "question-answering"
    texts = ["The following statement", "A class"]
    expected = load_head(heads[head], threads=1).run([("What?", text) for text in texts] if asks else texts)
    with running(heads[head]) as made:
        answer = made.post("/v1/classify", input=texts, **({"question": "What?"} if asks else {}))
        for row, told in zip(answer["data"], expected, strict=True):
            if asks:
                assert (row["answer"]["start"], row["answer"]["end"]) == (told.start, told.end)
                assert row["answer"]["score"] == pytest.approx(told.probability, rel=1e-4)
            elif head == "token-classification":
                assert [(token["text"], token["label"]) for token in row["tokens"]] == [t[2:4] for t in told.tokens]
            else:
                assert {label["label"]: label["score"] for label in row["labels"]} == pytest.approx(
                    told.scores, rel=1e-4
                )
        wrong = {"input": texts} if asks else {"input": texts, "question": "What?"}
        made.refused("/v1/classify", wrong, 400, "questions")
        made.refused("/v1/embeddings", {"input": "a"}, 400, "gives no vectors")


def test_a_language_model_has_no_other_head(server: Running) -> None:
    assert server.refused("/v1/embeddings", {"input": "a"}, 400, "has the head lm")["code"] == "wrong_head"
    assert server.refused("/v1/classify", {"input": "a"}, 400, "has the head lm")["code"] == "wrong_head"


# --- tokens and the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["The following", " → ü\n", "<|endoftext|>"])
def test_tokens_are_those_that_generate_reads_and_lead_back(server: Running, text: str) -> None:
    answer = server.post("/tokenize", prompt=text)
    assert answer["tokens"] == server.model.encode(text)[0]
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 256)
    assert server.post("/detokenize", tokens=answer["tokens"])["prompt"] == text


def test_tokens_that_are_none_are_refused(server: Running) -> None:
    server.refused("/detokenize", {"tokens": [99999]}, 400, "not one of the model's 2048 tokens")
    server.refused("/detokenize", {"tokens": [-1]}, 400, ">= 0")


def test_the_model_is_told_under_its_name(server: Running) -> None:
    _, answer, _ = server.ask("GET", "/v1/models")
    (card,) = answer["data"]
    assert (card["id"], card["max_model_len"], card["precision"]) == (server.server.served.name, 256, "fp32")
    assert server.ask("GET", f"/v1/models/{card['id']}")[1] == card
    status, told, _ = server.ask("GET", "/v1/models/gpt-4")
    assert (status, told["error"]["code"]) == (404, "model_not_found")
