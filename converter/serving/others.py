"""Everything beside texts that are continued: other heads, tokens, the model, the server's health."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from converter.runtime.answers import Answer, Choice, Labels, Span, TokenLabels
from converter.runtime.heads import HeadModel
from converter.serving.asking import refuse_many
from converter.serving.calls import Call, encoded, refuse_another_model, several
from converter.serving.openai import (
    Answered,
    Classification,
    Classified,
    ClassifyRequest,
    Detokenized,
    EmbeddingRequest,
    EmbeddingRow,
    Embeddings,
    EmbeddingUsage,
    Label,
    Live,
    ModelCard,
    Models,
    Ready,
    TokenLabel,
    Tokens,
)
from converter.serving.refusals import Refusal

TOGETHER = 8  # texts of a request that a head reads at once: more take memory, and are no faster on a CPU


async def embeddings(call: Call) -> Embeddings:
    """Turn texts into vectors."""
    asked: EmbeddingRequest = call.asked
    model = _head_of(call, embeds=True)
    width = model.config.n_embd
    if asked.dimensions not in (None, width):
        raise Refusal(
            400, f"the model's vectors have {width} numbers; no other dimensions can be had", param="dimensions"
        )
    texts = several(asked.input, "input")
    answers, usage = await _answers(call, model, texts)
    vectors = (answer.mean.astype("<f4") for answer in answers)
    packed = asked.encoding_format == "base64"
    rows = [
        EmbeddingRow(index=i, embedding=_base64(vector) if packed else vector.tolist())
        for i, vector in enumerate(vectors)
    ]
    return Embeddings(data=rows, model=call.served.name, usage=usage)


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.tobytes()).decode()


async def classify(call: Call) -> Classification:
    """Ask the head of a model about texts."""
    asked: ClassifyRequest = call.asked
    model = _head_of(call, embeds=False)
    texts: Sequence[Any] = several(asked.input, "input")
    if model.config.head_spec.asks != (asked.question is not None):
        said = "answers questions: give one" if model.config.head_spec.asks else "answers no questions: omit it"
        raise Refusal(400, f"{call.served.name} {said}", param="question")
    if asked.question is not None:
        texts = [(asked.question, text) for text in texts]
        if not all(isinstance(text, str) for _, text in texts):
            raise Refusal(400, "a question is asked about texts, not about token ids", param="input")
    answers, usage = await _answers(call, model, texts)
    rows = [Classified(index=i, **_facts(answer)) for i, answer in enumerate(answers)]
    return Classification(data=rows, model=call.served.name, usage=usage)


def _facts(answer: Answer) -> dict[str, Any]:
    """Return what a head says of a text."""
    match answer:
        case Labels(scores):
            return {"labels": [Label(label=label, score=score) for label, score in scores.items()]}
        case TokenLabels(tokens):
            return {"tokens": [TokenLabel(start=a, end=b, text=t, label=k, score=p) for a, b, t, k, p in tokens]}
        case Span(text, start, end, p):
            return {"answer": Answered(text=text, start=start, end=end, score=p)}
        case Choice(p, score):
            return {"probability": p, "score": score}
        case _:
            raise TypeError(f"{type(answer).__name__} is no classification")


def _head_of(call: Call, embeds: bool) -> HeadModel:
    """Return the model whose head answers.

    Raises:
        Refusal: it answers something else.
    """
    model, head = call.served.model, call.served.head
    if not isinstance(model, HeadModel) or (head == "base") != embeds:
        what = "gives no vectors" if embeds else "classifies nothing"
        raise Refusal(400, f"{call.served.name} has the head {head}, which {what}", code="wrong_head")
    return model


async def _answers(call: Call, model: HeadModel, texts: Sequence[Any]) -> tuple[list[Any], EmbeddingUsage]:
    """Return what a head says of texts, and how many tokens these have."""
    refuse_many(call.served, len(texts), "input")
    read = sum(map(len, await encoded(call, texts)))
    call.facts["prompt_tokens"] = read
    step = len(texts) if model.config.head_spec.compares else TOGETHER
    answers = list[Any]()
    for at in range(0, len(texts), step):
        answers += await call.served.aside.run(model.run, texts[at : at + step])
    return answers, EmbeddingUsage(prompt_tokens=read, total_tokens=read)


async def tokenize(call: Call) -> Tokens:
    """Turn a text into the token ids that the model reads."""
    (ids,) = await encoded(call, [call.asked.prompt])
    return Tokens(tokens=ids, count=len(ids), max_model_len=call.served.model.config.n_positions)


async def detokenize(call: Call) -> Detokenized:
    """Turn token ids into a text."""
    model = call.served.model
    if model.tokenizer is None:
        raise Refusal(400, f"{call.served.name} has no tokenizer", code="no_tokenizer")
    size = model.config.vocab_size
    if any(token >= size for token in call.asked.tokens):
        raise Refusal(400, f"a token id is not one of the model's {size} tokens", param="tokens")
    text = await asyncio.to_thread(model.tokenizer.decode, call.asked.tokens, skip_special_tokens=False)
    return Detokenized(prompt=text)


async def models(call: Call) -> Models:
    """Tell the model that is served."""
    return Models(data=[call.served.card])


async def model(call: Call) -> ModelCard:
    """Tell about a model."""
    refuse_another_model(call.served, call.path["model"])
    return call.served.card


async def live(_: Call) -> Live:
    """Tell that the server runs."""
    return Live()


async def ready(call: Call) -> Ready:
    """Tell whether the server takes requests, and whether its folder is proven."""
    return Ready(status="ready", model=call.served.name, certificate=call.served.certificate)
