"""What a server takes and gives, in the form of OpenAI's API. The OpenAPI document is made of these types.

Beside OpenAI's fields there are the tool's own: ``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens`` and
``return_token_ids``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

# JSON Schema cannot be derived of what Python decides later: that a list holds one kind of thing.
TOKEN_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TEXT: dict[str, Any] = {"type": "string"}
PROMPTS = [
    TEXT,
    {"type": "array", "items": TEXT, "minItems": 1},
    TOKEN_IDS,
    {"type": "array", "items": TOKEN_IDS, "minItems": 1},
]

Prompt = Annotated[
    str | list[str | int | list[int]],
    Meta(description="A text, token ids, or a list of either.", extra_json_schema={"anyOf": PROMPTS}),
]
Stop = Annotated[str | list[str], Meta(description="The text ends before any of these, which are not empty.")]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1)]


class StreamOptions(Struct, kw_only=True):
    """Of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, Meta(description="Is not done, and may be false only.")] = None


class Asked(Struct, kw_only=True):
    """What requests for texts have in common."""

    model: Annotated[str | None, Meta(description="The served model, by its name.")] = None
    n: Annotated[Positive | None, Meta(description="Texts for each prompt.")] = None
    temperature: Annotated[Annotated[float, Meta(ge=0, le=2)] | None, Meta(description="0 is the likeliest token.")] = (
        None
    )
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, description="0 or -1: draw among all tokens.")] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    min_tokens: Annotated[Count | None, Meta(description="The text does not end before.")] = None
    seed: Annotated[Seed | None, Meta(description="The same one draws the same tokens.")] = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: Annotated[bool | None, Meta(description="Give the token ids of each text, too.")] = None


class CompletionRequest(Asked, kw_only=True):
    """Continue one or more prompts."""

    prompt: Prompt
    max_tokens: Annotated[Count | None, Meta(description="16 by default.")] = None
    best_of: Annotated[Positive | None, Meta(description="Compute so many texts, give the n likeliest.")] = None
    echo: Annotated[bool | None, Meta(description="Begin with the prompt.")] = None
    logprobs: Annotated[Annotated[int, Meta(ge=0, le=20)] | None, Meta(description="So many likeliest tokens.")] = None


class TextPart(Struct, kw_only=True, tag="text"):
    """A part of a message."""

    text: str


class Message(Struct, kw_only=True):
    """A part of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | UnsetType = UNSET


class ChatRequest(Asked, kw_only=True):
    """Answer a conversation."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Annotated[Positive | None, Meta(description="The newer name of max_tokens.")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """Turn texts into vectors."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Positive | None, Meta(description="The model's width; no other can be had.")] = None


Question = Annotated[str, Meta(description="Of a model that answers questions: what is asked about each text.")]


class ClassifyRequest(Struct, kw_only=True):
    """Ask the head of a model about texts."""

    input: Prompt
    model: str | None = None
    question: Question | None = None


class TokenizeRequest(Struct, kw_only=True):
    """Turn a text into token ids."""

    prompt: str
    model: str | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """Turn token ids into a text."""

    tokens: list[Annotated[int, Meta(ge=0)]]
    model: str | None = None


# --- answers ----------------------------------------------------------------------------------------------------------


class Usage(Struct, kw_only=True):
    """Tokens of a request. Those of texts count the end of text, and texts that best_of left out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Logprobs(Struct, kw_only=True):
    """Of each token, how likely it was; the first token of a prompt has nothing before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


FinishReason = Literal["stop", "length"]


class Choice(Struct, kw_only=True):
    """A text, or a piece of it."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | UnsetType = UNSET


class Made(Struct, kw_only=True):
    """What was made for a request."""

    id: str
    created: int
    model: str


class Completion(Made, kw_only=True):
    """Texts, or a piece of one."""

    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class TopLogprob(Struct, kw_only=True):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob, kw_only=True):
    """A token, and those that might have come in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    """Of each token, how likely it was."""

    content: list[ChatLogprob]


class Said(Struct, kw_only=True):
    """What the model says."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, kw_only=True):
    """An answer."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Made, kw_only=True):
    """Answers."""

    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(Struct, kw_only=True):
    """A piece of what the model says."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    """A piece of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Made, kw_only=True):
    """A piece of an answer, as it is streamed."""

    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class EmbeddingUsage(Struct, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingRow(Struct, kw_only=True):
    """The vector of a text: the mean of its hidden states."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class Embeddings(Struct, kw_only=True):
    """The vectors of texts."""

    data: list[EmbeddingRow]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Label(Struct, kw_only=True):
    """A label and its probability; of a regression its value."""

    label: str
    score: float


class TokenLabel(Struct, kw_only=True):
    """The likeliest label of a token, and where the token stands in the text."""

    start: int
    end: int
    text: str
    label: str
    score: float


class Answered(Struct, kw_only=True):
    """The part of a text that answers a question."""

    text: str
    start: int
    end: int
    score: float


class Classified(Struct, kw_only=True, omit_defaults=True):
    """What the head says of a text: one of these, as the head is."""

    index: int
    labels: list[Label] | UnsetType = UNSET
    tokens: list[TokenLabel] | UnsetType = UNSET
    answer: Answered | UnsetType = UNSET
    score: float | UnsetType = UNSET
    probability: float | UnsetType = UNSET


class Classification(Struct, kw_only=True):
    """What the head says of texts."""

    data: list[Classified]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Tokens(Struct, kw_only=True):
    """The token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(Struct, kw_only=True):
    """The text of token ids."""

    prompt: str


class Figures(Struct, kw_only=True):
    """What a check measured of a precision beside the float64 truth."""

    kl_mean: float
    top_1: float
    perplexity_ratio: float


class Certificate(Struct, kw_only=True):
    """Whether a check proved these files."""

    verified: bool
    sentence: str
    date: str | None = None
    level: str | None = None
    figures: Figures | None = None


class ModelCard(Struct, kw_only=True):
    """The model that is served."""

    id: str
    created: int
    head: str
    precision: str
    parameters: int
    max_model_len: int
    chats: bool
    max_tokens: int
    certificate: Certificate
    object: Literal["model"] = "model"
    owned_by: str = "gpt2onnx"


class Models(Struct, kw_only=True):
    """The models that are served: one."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class Live(Struct, kw_only=True):
    """The server runs."""

    status: Literal["live"] = "live"


class Ready(Struct, kw_only=True):
    """Whether the server takes requests, and whether its folder is proven."""

    status: Literal["ready", "draining"]
    model: str
    certificate: Certificate


class ErrorDetail(Struct, kw_only=True):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct, kw_only=True):
    """An answer that says no."""

    error: ErrorDetail
