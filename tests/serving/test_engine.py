"""The engine: every request gets what ``generate`` gives for it, whatever runs beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.folder.convert import convert
from converter.runtime.options import GenerationOptions
from converter.runtime.session import Model, load
from converter.runtime.tokens import Token
from converter.serving.engine import Engine
from tests.conftest import random_gpt2

WAIT = 60  # seconds; what waits longer hangs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One graph whose cache is in place, and one whose cache grows."""
    folder = tmp_path_factory.mktemp("engine")
    for name, width in (("in place", 24), ("growing", 12)):
        random_gpt2(n_embd=width, n_positions=40).save_pretrained(folder / name)
        convert(folder / name, folder / f"{name} out")
    found = {name: load(folder / f"{name} out") for name in ("in place", "growing")}
    assert [model.in_place for model in found.values()] == [True, False]
    return found


class Inbox:
    """What came of a request: for each text its tokens, or what ended it."""

    def __init__(self, texts: int = 1) -> None:
        self.tokens: list[list[Token]] = [[] for _ in range(texts)]
        self.errors: list[Exception | None] = [None] * texts
        self._left, self._done = texts, threading.Event()

    def __call__(self, number: int, came: Token | Exception) -> None:
        if isinstance(came, Token):
            self.tokens[number].append(came)
        else:
            self.errors[number] = came
        if not isinstance(came, Token) or came.ended:
            self._left -= 1
            if not self._left:
                self._done.set()

    def wait(self) -> None:
        assert self._done.wait(WAIT)


@pytest.fixture
def engine(models: dict[str, Model]) -> Iterator[Engine]:
    made = Engine(models["in place"], rows=3, chunk=4)
    made.start()
    yield made
    made.close()


prompts = st.lists(st.integers(0, 60), min_size=1, max_size=30)
openings = st.sampled_from([[], [7, 3, 9, 11], [7, 3, 9, 11, 40, 41, 42, 2, 2]])
options = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 12), "seed": st.integers(0, 9)},
    optional={
        "temperature": st.sampled_from([0.7, 1.5]),
        "top_k": st.integers(1, 9),
        "repetition_penalty": st.just(1.3),
        "frequency_penalty": st.just(0.5),
        "no_repeat_ngram_size": st.just(2),
        "logprobs": st.integers(0, 2),
        "min_new_tokens": st.just(3),
    },
)
requests = st.tuples(openings, prompts, options, st.integers(1, 3), st.sampled_from(["", "", "cancelled"]))


@pytest.mark.parametrize("kind", ["in place", "growing"])
@settings(max_examples=25, deadline=None)
@given(asked=st.lists(requests, min_size=1, max_size=8), rows=st.integers(1, 4), chunk=st.integers(1, 9))
def test_what_comes_of_a_request_is_what_generate_gives_whatever_runs_beside_it(
    models: dict[str, Model], kind: str, asked: list[Any], rows: int, chunk: int
) -> None:
    model, kept = models[kind], []
    engine = Engine(model, rows=rows, queue=99, chunk=chunk)
    engine.start()
    for opening, rest, given_options, best, cancelled in asked:
        ids = (opening + rest)[:30]
        wanted = GenerationOptions(**given_options, best=best if "temperature" in given_options else 1)
        inbox = Inbox(wanted.best)
        tickets = engine.submit(ids, wanted, inbox)
        if cancelled:
            tickets[-1].cancel()
        else:
            kept.append((ids, wanted, inbox, tickets))
    for ids, wanted, inbox, tickets in kept:
        inbox.wait()
        expected = model.generate([ids], generation_config=False, **vars(wanted))
        assert [ticket.row.new_ids for ticket in tickets] == expected.new_ids
        assert [ticket.row.ended for ticket in tickets] == expected.ended
        for tokens, alone in zip(inbox.tokens, expected.tokens, strict=True):
            assert [(token.id, token.text, token.ended) for token in tokens] == [
                (token.id, token.text, token.ended) for token in alone
            ]
            assert [token.log_prob for token in tokens] == pytest.approx([token.log_prob for token in alone], abs=1e-4)
    assert engine.drain(WAIT)
    stats = engine.stats
    assert (stats.running, stats.waiting) == (0, 0)
    engine.close()
