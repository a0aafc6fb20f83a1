"""The engine: every request gets what ``generate`` gives for it, whatever runs beside it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import EngineClosed, EngineFull, PromptError
from converter.folder.convert import convert
from converter.runtime.opening import load
from converter.runtime.options import GenerationOptions
from converter.runtime.session import Model
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


def counting(engine: Engine) -> list[str]:
    """What the engine runs, as it runs it: ``prompt 4`` or ``step 2``."""
    slots, seen = engine._batch.slots, list[str]()
    run, step = slots.run, slots.step
    slots.run = lambda row, ids, wanted: (seen.append(f"prompt {len(ids)}"), run(row, ids, wanted))[1]  # type: ignore[method-assign]
    slots.step = lambda tokens: (seen.append(f"step {len(tokens)}"), step(tokens))[1]  # type: ignore[method-assign]
    return seen


def test_nobody_waits_for_a_long_prompt_longer_than_for_a_chunk(engine: Engine) -> None:
    seen, first, second, long = counting(engine), Inbox(), Inbox(), list(range(1, 30))

    def ask_more(number: int, came: Token | Exception) -> None:
        first(number, came)
        if len(first.tokens[0]) == 1:
            engine.submit(long, GenerationOptions(max_new_tokens=2), second)

    engine.submit([5], GenerationOptions(max_new_tokens=20, min_new_tokens=20), ask_more)
    first.wait()
    second.wait()
    assert seen[:3] == ["step 1", "prompt 4", "step 1"]
    assert seen.count("prompt 4") == 7
    assert not any(a.startswith("prompt") and b.startswith("prompt") for a, b in itertools.pairwise(seen))
    assert "step 2" in seen


def test_texts_of_one_prompt_and_prompts_that_begin_alike_share_what_was_computed(engine: Engine) -> None:
    system, asked = list(range(1, 20)), GenerationOptions(temperature=1, seed=3, max_new_tokens=4, best=3)
    inbox = Inbox(3)
    engine.submit(system, asked, inbox)
    inbox.wait()
    assert (engine.stats.prompt_tokens, engine.stats.shared_tokens) == (19 + 2, 2 * 18)
    later = Inbox()  # after all of them have ended
    engine.submit([*system[:10], 50, 51], GenerationOptions(max_new_tokens=2), later)
    later.wait()
    assert (engine.stats.prompt_tokens, engine.stats.shared_tokens) == (19 + 2 + 2, 2 * 18 + 10)


def test_a_request_that_is_cancelled_makes_room_at_once(engine: Engine) -> None:
    endless = GenerationOptions(min_new_tokens=99)
    inboxes = [Inbox() for _ in range(4)]
    begun = threading.Semaphore(0)

    def note(inbox: Inbox) -> Any:
        return lambda number, came: (inbox(number, came), begun.release())

    tickets = [engine.submit([n], endless, note(inbox))[0] for n, inbox in enumerate(inboxes)]
    for _ in range(3):
        assert begun.acquire(timeout=WAIT)
    tickets[0].cancel()
    inboxes[3].wait()
    assert tickets[3].row.ended == "n_positions"
    assert tickets[0].row.ended == "" or len(inboxes[0].tokens[0]) == 39


def test_as_many_wait_as_may_and_no_more(models: dict[str, Model]) -> None:
    engine = Engine(models["in place"], rows=1, queue=2)
    asked, inbox = GenerationOptions(max_new_tokens=1), Inbox(3)
    waiting = [engine.submit([1], asked, inbox)[0] for _ in range(3)]
    with pytest.raises(EngineFull, match=r"0 texts run and 3 wait, of 1 and 2 that may; try again later"):
        engine.submit([1], asked, Inbox())
    waiting[1].cancel()
    assert engine.stats.waiting == 2
    engine.submit([1], asked, Inbox())
    engine.close()


def test_what_generate_refuses_is_refused_before_it_waits(engine: Engine) -> None:
    for ids, asked, words in (
        ([], {}, "a prompt is empty"),
        ([61], {}, "token id 61 is not one of the model's 61 tokens"),
        ([1] * 40, {}, "leave no room for a new one"),
        ([1], {"stop": ["a"]}, "has no tokenizer; stop strings need one"),
        ([1], {"beams": 2}, "beams is for one request at a time"),
        ([1], {"speculate": 2}, "speculate is for one request at a time"),
        ([1], {"best": 999, "temperature": 1}, "best is 999; this server gives at most 131 texts"),
    ):
        with pytest.raises(PromptError, match=words):
            engine.submit(ids, GenerationOptions(**asked), Inbox())
    assert engine.stats.waiting == engine.stats.running == 0


@pytest.mark.parametrize("part", ["run", "step"])
def test_a_failure_ends_the_requests_that_it_concerns_and_not_the_engine(engine: Engine, part: str) -> None:
    sound = getattr(engine._batch.slots, part)
    fails = threading.Event()
    fails.set()

    def fail_once(*given: Any, **named: Any) -> Any:
        if fails.is_set():
            fails.clear()
            raise MemoryError("no memory for a row")
        return sound(*given, **named)

    setattr(engine._batch.slots, part, fail_once)
    broken, whole = Inbox(), Inbox()
    (ticket,) = engine.submit([1, 2, 3, 4], GenerationOptions(max_new_tokens=3), broken)
    broken.wait()
    assert isinstance(broken.errors[0], MemoryError)
    assert ticket.error is broken.errors[0]
    engine.submit([1, 2, 3, 4], GenerationOptions(max_new_tokens=3), whole)
    whole.wait()
    expected = engine.model.generate([[1, 2, 3, 4]], max_new_tokens=3)
    assert [token.id for token in whole.tokens[0]] == [token.id for token in expected.tokens[0]]


def test_a_reader_that_fails_ends_its_own_request_only(engine: Engine) -> None:
    def gone(number: int, came: Token | Exception) -> None:
        raise ConnectionError("nobody reads this")

    inbox = Inbox()
    (ticket,) = engine.submit([1, 2], GenerationOptions(min_new_tokens=30), gone)
    engine.submit([3, 4], GenerationOptions(max_new_tokens=10), inbox)
    inbox.wait()
    assert engine.drain(WAIT)
    assert isinstance(ticket.error, ConnectionError)
    assert len(ticket.row.tokens) == 1


def test_an_engine_that_drains_ends_what_it_has_and_takes_no_more(engine: Engine) -> None:
    inboxes = [Inbox() for _ in range(5)]
    for n, inbox in enumerate(inboxes):
        engine.submit([n, 7], GenerationOptions(max_new_tokens=9, min_new_tokens=9), inbox)
    assert engine.drain(WAIT)
    assert all(len(inbox.tokens[0]) == 9 for inbox in inboxes)
    with pytest.raises(EngineClosed, match="takes no more requests"):
        engine.submit([1], GenerationOptions(), Inbox())


@pytest.mark.parametrize("started", [True, False])
def test_an_engine_that_is_closed_tells_everybody(models: dict[str, Model], started: bool) -> None:
    engine = Engine(models["in place"], rows=1)
    if started:
        engine.start()
    inboxes = [Inbox() for _ in range(3)]
    for inbox in inboxes:
        engine.submit([1], GenerationOptions(min_new_tokens=39), inbox)
    engine.close()
    for inbox in inboxes:
        inbox.wait()
        ended = inbox.tokens[0] and inbox.tokens[0][-1].ended
        assert ended or isinstance(inbox.errors[0], EngineClosed)
    assert isinstance(inboxes[-1].errors[0], EngineClosed) or inboxes[-1].tokens[0]
    assert engine.stats.running == engine.stats.waiting == 0


def test_the_memory_of_the_cache_is_known_at_the_start(models: dict[str, Model]) -> None:
    for model, heads in ((models["in place"], 24), (models["growing"], 12)):
        assert Engine(model, rows=5).stats.cache_bytes == 5 * 40 * 2 * 3 * heads * 4


def test_requests_from_many_threads_are_neither_lost_nor_mixed_up(engine: Engine) -> None:
    found: queue.Queue[tuple[int, list[int]]] = queue.Queue()

    def ask(first: int) -> None:
        inbox = Inbox()
        engine.submit([first, 2, 3], GenerationOptions(max_new_tokens=8), inbox)
        inbox.wait()
        found.put((first, [token.id for token in inbox.tokens[0]]))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    together = dict(found.get_nowait() for _ in range(40))
    alone = engine.model.generate([[n, 2, 3] for n in range(40)], max_new_tokens=8)
    assert [together[n] for n in range(40)] == [[token.id for token in row] for row in alone.tokens]


def test_what_lies_in_slots_that_nobody_uses_does_not_matter(models: dict[str, Model]) -> None:
    engine = Engine(models["in place"], rows=3, chunk=5)
    for layer in engine._batch.slots.buffers:  # type: ignore[attr-defined]
        layer[:] = np.nan
    engine.start()
    inboxes = [Inbox() for _ in range(6)]
    for n, inbox in enumerate(inboxes):
        engine.submit(list(range(n + 1)), GenerationOptions(max_new_tokens=1 + 5 * n), inbox)
    for n, inbox in enumerate(inboxes):
        inbox.wait()
        expected = engine.model.generate([list(range(n + 1))], max_new_tokens=1 + 5 * n)
        assert [token.id for token in inbox.tokens[0]] == [token.id for token in expected.tokens[0]]
    engine.close()


def test_a_cache_of_8_bits_gives_nearly_what_float32_gives_and_takes_a_quarter(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("eight")
    random_gpt2(n_embd=24, n_positions=200).save_pretrained(folder / "source")
    convert(folder / "source", folder / "out")
    rng, asked = np.random.default_rng(0), GenerationOptions(max_new_tokens=20, logprobs=0)
    beginning = rng.integers(61, size=70).tolist()
    prompts = [beginning + rng.integers(61, size=n).tolist() for n in (1, 9, 40)] + [[5], beginning[:30], beginning]
    found: dict[str, list[list[Token]]] = {}
    bytes_of: dict[str, int] = {}
    for cache in ("float32", "int8"):
        engine = Engine(load(folder / "out", cache=cache), rows=3, chunk=16)  # type: ignore[arg-type]
        engine.start()
        inboxes = [Inbox() for _ in prompts]
        for prompt, inbox in zip(prompts, inboxes, strict=True):
            engine.submit(prompt, asked, inbox)
        for inbox in inboxes:
            inbox.wait()
        found[cache], bytes_of[cache] = [inbox.tokens[0] for inbox in inboxes], engine.stats.cache_bytes
        engine.close()
    assert bytes_of["float32"] == 4 * bytes_of["int8"]
    for exact, rounded in zip(found["float32"], found["int8"], strict=True):
        alike = next((n for n, pair in enumerate(zip(exact, rounded, strict=True)) if pair[0].id != pair[1].id), 20)
        assert alike >= 3
        for one, other in zip(exact[:alike], rounded[:alike], strict=True):
            assert one.log_prob is not None
            assert other.log_prob == pytest.approx(one.log_prob, abs=0.05)
    assert found["float32"] != found["int8"]
