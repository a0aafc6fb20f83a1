"""OpenAI's own client, over a real socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter import load_head
from tests.serving.servers import Running, running

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


def client_of(server: Running, key: str = "any") -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def chatty(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("client") / "chatty"
    shutil.copytree(bundled, folder, symlinks=True)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}\n{% endfor %}")
    with running(folder, key="s3cret") as made:
        yield made


def test_it_completes_and_streams(server: Running) -> None:
    client, name = client_of(server), server.server.served.name
    assert [model.id for model in client.models.list()] == [name]
    asked = {"model": name, "prompt": "The following", "max_tokens": 9, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2, extra_body={"repetition_penalty": 1.3})
    expected = server.model.generate("The following", max_new_tokens=9, repetition_penalty=1.3)
    assert whole.choices[0].text == expected.texts[0]
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens == 9
    *events, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    text = "".join(event.choices[0].text for event in events)
    assert text == server.model.generate("The following", max_new_tokens=9).texts[0]
    assert (last.usage.completion_tokens, events[-1].choices[0].finish_reason) == (9, "length")


def test_it_leaves_a_stream_and_the_place_is_free(server: Running) -> None:
    stream = client_of(server).completions.create(
        model=server.server.served.name, prompt="A", max_tokens=250, stream=True
    )
    next(iter(stream))
    stream.close()
    server.until(lambda: not server.engine.stats.running)


def test_it_chats(chatty: Running) -> None:
    client = client_of(chatty, "s3cret")
    asked = {
        "model": "chatty",
        "messages": [{"role": "user", "content": "What is a class?"}],
        "seed": 4,
        "max_tokens": 7,
    }
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content) == 7
    events = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(event.choices[0].delta.content for event in events)
    assert text == answer.choices[0].message.content


def test_it_embeds(heads: dict[str, Path]) -> None:
    with running(heads["base"]) as made:
        answer = client_of(made).embeddings.create(model="base", input=["The following", "A class"])
    expected = [each.mean for each in load_head(heads["base"], threads=1).run(["The following", "A class"])]
    assert np.allclose([row.embedding for row in answer.data], expected, atol=1e-6)


def test_it_raises_its_own_errors(server: Running, chatty: Running) -> None:
    client, name = client_of(server), server.server.served.name
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client_of(chatty).models.list()
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model="gpt-4", prompt="a")
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=name, prompt="a" * 3000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_it_comes_again_when_it_is_told_to(bundled: Path) -> None:
    with running(bundled, rows=1, queue=0) as small:
        client = client_of(small)
        stream = client.completions.create(model="onnx-folder", prompt="A", max_tokens=200, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="onnx-folder", prompt="A")
        stream.close()
        small.until(lambda: not small.engine.stats.running)
        assert client.completions.create(model="onnx-folder", prompt="A", max_tokens=1).choices
