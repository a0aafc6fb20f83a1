"""The table of all addresses: what each takes and gives, and who answers."""

from __future__ import annotations

from importlib.resources import files

from converter.serving import openai, others
from converter.serving.answers import Raw
from converter.serving.calls import Call
from converter.serving.chats import chat_completions
from converter.serving.completions import completions
from converter.serving.metrics import CONTENT_TYPE
from converter.serving.openapi import document_of
from converter.serving.route import Handler, Route

# The page is all that a browser may load, and it may talk to this server only.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no text of a model can become markup
)


def page(name: str, kind: str) -> Handler:
    """Return what answers with a file of the page."""

    async def answer(_: Call) -> Raw:
        body = files("converter.serving").joinpath("page", name).read_bytes()
        return Raw(body, f"{kind}; charset=utf-8", {"content-security-policy": POLICY})

    answer.__doc__ = f"The page that tries the model: {name}."
    return answer


async def metrics(call: Call) -> Raw:
    """Tell what the server counts and times, for Prometheus."""
    return Raw(call.meter.text(), CONTENT_TYPE, {})


async def document(_: Call) -> Raw:
    """Describe all addresses: this document."""
    return Raw(document_of(ROUTES), "application/json", {})


ROUTES = (
    Route(
        "POST", "/v1/completions", completions,
        takes=openai.CompletionRequest, gives=openai.Completion, streams=openai.Completion,
    ),
    Route(
        "POST", "/v1/chat/completions", chat_completions,
        takes=openai.ChatRequest, gives=openai.ChatCompletion, streams=openai.ChatChunk,
    ),
    Route("POST", "/v1/embeddings", others.embeddings, takes=openai.EmbeddingRequest, gives=openai.Embeddings),
    Route("POST", "/v1/classify", others.classify, takes=openai.ClassifyRequest, gives=openai.Classification),
    Route("GET", "/v1/models", others.models, gives=openai.Models),
    Route("GET", "/v1/models/{model}", others.model, gives=openai.ModelCard),
    Route("POST", "/tokenize", others.tokenize, takes=openai.TokenizeRequest, gives=openai.Tokens),
    Route("POST", "/detokenize", others.detokenize, takes=openai.DetokenizeRequest, gives=openai.Detokenized),
    Route("GET", "/health/live", others.live, gives=openai.Live, is_open=True, is_logged=False),
    Route("GET", "/health/ready", others.ready, gives=openai.Ready, is_open=True, is_logged=False),
    Route("GET", "/metrics", metrics, gives="text/plain", is_logged=False),
    Route("GET", "/openapi.json", document, gives="application/json", is_open=True, is_logged=False),
    *(
        Route("GET", path, page(name, kind), gives=kind, is_open=True, is_logged=False)
        for path, name, kind in (
            ("/", "index.html", "text/html"),
            ("/page.css", "page.css", "text/css"),
            ("/page.js", "page.js", "text/javascript"),
        )
    ),
)  # fmt: skip


def find(method: str, path: str) -> tuple[Route | None, dict[str, str], set[str]]:
    """Return the route of a request, what its path names, and the methods that the path takes."""
    there = [(route, match) for route in ROUTES if (match := route.pattern.fullmatch(path))]
    wanted = "GET" if method == "HEAD" else method
    for route, match in there:
        if route.method == wanted:
            return route, match.groupdict(), {route.method}
    return None, {}, {route.method for route, _ in there}
