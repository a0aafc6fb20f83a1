"""What a server answers instead of what was asked, in the form of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from converter.errors import EngineClosed, EngineFull, LongPromptError, PromptError

TOO_LONG = "context_length_exceeded"  # OpenAI's word for it
RETRY_AFTER = "1"  # seconds; of many texts that run, one has ended by then as a rule

# A status → the type that OpenAI gives such errors.
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818 - an answer, and no failure of ours
    """An answer that says no, in a sentence.

    Args:
        status: of HTTP.
        sentence: what is wrong and what to do.
        code: a word for programs.
        param: the field of the request that it concerns.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.code, self.param = status, sentence, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """Return OpenAI's name for errors of this kind."""
        return TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def content(self) -> dict[str, object]:
        """Return the body of the answer."""
        fields = {"message": self.sentence, "type": self.type, "param": self.param, "code": self.code}
        return {"error": fields}


def refusal_of(error: Exception, request_id: str) -> Refusal:
    """Return how a server answers an error. Of those that are its own fault only the request's id is told."""
    match error:
        case Refusal():
            return error
        case LongPromptError():
            return Refusal(400, str(error), code=TOO_LONG)
        case PromptError():
            return Refusal(400, str(error))
        case EngineFull():
            return Refusal(429, str(error), code="queue_full", headers={"Retry-After": RETRY_AFTER})
        case EngineClosed():
            return Refusal(503, str(error), code="shutting_down", headers={"Retry-After": RETRY_AFTER})
        case TimeoutError():
            return Refusal(504, "the request took longer than this server allows: ask for fewer tokens", code="timeout")
        case _:
            return Refusal(500, f"the server failed; its log tells more of request {request_id}", code="internal_error")


def of_status(status: int, headers: Mapping[str, str] | None = None) -> Refusal:
    """Return the answer to a request that reaches no route."""
    said = {
        404: "there is no such address; /openapi.json lists those that there are",
        405: "this address takes another method",
    }
    return Refusal(status, said.get(status, HTTPStatus(status).phrase), headers=headers)
