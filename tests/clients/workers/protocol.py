"""What the tests of the clients and their workers say to each other; it needs the standard library only.

A worker reads one JSON object: ``folder``, ``precision``, ``model`` (the graph's file in it), ``prompts`` by what is
asked, ``new_tokens`` and ``beams``. It writes one: for each thing asked, its ``tokens`` or an ``error``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

Prompts = list[list[int]]
Request = dict[str, Any]
Generate = Callable[[Prompts, int], Prompts]  # a batch of prompts, beams → the new tokens of each
Answers = dict[str, Callable[[], Any]]  # what is asked → what gives it


def serve(answers: Callable[[Request], Answers]) -> None:
    """Answer the one request that comes in, each thing asked for itself."""
    respond(lambda request: {what: attempt(answer) for what, answer in answers(request).items()})


def respond(answer: Callable[[Request], dict[str, Any]]) -> None:
    """Answer the one request that comes in; what cannot be answered is an ``error``."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes where their errors go
    request = json.load(sys.stdin)
    try:
        reply = answer(request)
    except Exception as error:
        reply = {"error": one_line(error)}
    output.write(json.dumps(reply) + "\n")
    output.close()


def usual(request: Request, generate: Generate) -> Answers:
    """What every client is asked that has a loop of its own."""
    prompts = request["prompts"]
    return {
        "single": lambda: [generate([row], 1)[0] for row in prompts["single"]],
        "ended": lambda: [generate([row], 1)[0] for row in prompts["ended"]],
        "batch": lambda: generate(prompts["batch"], 1),
        "beams": lambda: generate(prompts["beams"], request["beams"]),
    }


def attempt(answer: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"tokens": answer()}
    except Exception as error:
        return {"error": one_line(error)}


def one_line(error: Exception) -> str:
    """What an error says first, without the places in somebody's source that lead there."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 - pytest shows it
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r".*(Status Message: |was false\. |failed:)(/\S+:\d+ .*\) )?", "", said)[:1000]
