"""What came of a generation: for people as it comes, and for programs as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from converter.runtime.generation import Generation
    from converter.runtime.session import Model
    from converter.runtime.speculation import Speculation
    from converter.runtime.tokens import Token


class Stream:
    """Shows a prompt and its continuation as it grows. Nothing is shown before the first token: a prompt may be
    refused.
    """

    def __init__(self, prompt: str) -> None:
        self.pending = prompt

    def show(self, _row: int, text: str) -> None:
        """Show the next piece of text."""
        click.echo(self.pending + text, nl=False)
        self.pending = ""

    def end(self) -> None:
        """End the line."""
        click.echo(self.pending)


def print_rows(prompts: Sequence[str], done: Generation, ids: bool) -> None:
    """Print several continuations, one after another; beams with their scores."""
    for number, (old, new, text) in enumerate(zip(done.prompt_ids, done.new_ids, done.texts, strict=True)):
        if len(done.texts) > 1:
            score = f" ({done.scores[number]:.4f})" if done.scores else ""
            click.echo(f"--- {number + 1} of {len(done.texts)}{score}")
        click.echo(" ".join(map(str, old + new)) if ids else prompts[number // done.best] + text)


def facts(model: Model, prompts: Sequence[str], done: Generation, logprobs: bool) -> dict[str, Any]:
    """Return a generation for JSON."""
    rows = [{"prompt": prompts[n // done.best], **row_facts(model, done, n, logprobs)} for n in range(len(done.texts))]
    found = {
        "rows": rows,
        "prefill_seconds": round(done.prefill_seconds, 4),
        "decode_seconds": round(done.decode_seconds, 4),
        "tokens_per_second": round(done.tokens_per_second, 1),
    }
    return found if done.speculation is None else found | {"speculation": speculation_facts(done.speculation)}


def row_facts(model: Model, done: Generation, number: int, logprobs: bool) -> dict[str, Any]:
    """Return one text for JSON."""
    row: dict[str, Any] = {
        "text": done.texts[number],
        "prompt_ids": done.prompt_ids[number],
        "new_ids": done.new_ids[number],
        "ended": done.ended[number],
    }
    if done.scores:
        row["score"] = done.scores[number]
    if logprobs:
        row["tokens"] = [token_facts(model, token) for token in done.tokens[number]]
    return row


def token_facts(model: Model, token: Token) -> dict[str, Any]:
    """Return a token for JSON, with its log-probability and the likeliest tokens in its place."""
    best = [{"id": i, "text": model.piece(i), "log_prob": log_prob} for i, log_prob in token.best]
    return {"id": token.id, "text": model.piece(token.id), "log_prob": token.log_prob, "best": best}


def speculation_facts(found: Speculation) -> dict[str, Any]:
    """Return for JSON what was proposed and how much of it was right."""
    return {
        "runs": found.runs,
        "proposed": found.proposed,
        "accepted": found.accepted,
        "acceptance": round(found.acceptance, 4),
        "tokens_per_run": round(found.tokens_per_run, 3),
    }


def line(done: Generation, n_positions: int) -> str:
    """Give a generation's figures in one line, and say if the model's positions ended it."""
    new = sum(map(len, done.new_ids))
    full = sum(ended == "n_positions" for ended in done.ended)
    words = f"{new} tokens, {done.tokens_per_second:.0f} tokens/s after {done.prefill_seconds * 1000:.0f} ms of prefill"
    if (found := done.speculation) is not None:
        words += f"; {found.accepted} of {found.proposed} proposals right, {found.tokens_per_run:.2f} tokens a run"
    return words + (f"; stopped at the model's {n_positions} positions" if full else "")
