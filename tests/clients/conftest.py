"""One converted folder, and what every client of it has to answer.

``scripts/clients.sh`` installs each client into an environment of its own, ``.clients/NAME``; ``pytest -m clients``
runs those that are there, and with ``--clients-table docs/clients.md`` writes down what was seen.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter import convert, load
from converter.data import CHECKPOINT
from converter.weights.precisions import PRECISIONS
from tests.clients.asking import WORKERS, Reply, replied
from tests.clients.exporters_table import EDITED, JUDGED, write_exporters
from tests.clients.exports import BROKEN, INTERFACES, VARIANTS, config_of
from tests.clients.making import Order, made
from tests.clients.table import Seen, write

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".clients"

NEW_TOKENS = 20
BEAMS = 3
# The bundled model is as sure of what follows these as it ever is, whatever its precision: no rounding decides.
SINGLE = ("The syntax of", "This can lead to errors")
BATCH = ("The following list", 'The default behavior for equality comparison ("=="', "Iterating views")
TURNS = ("The syntax of", " This can lead to errors")
ENDED = ("The following<|endoftext|>", "The syntax of<|endoftext|><|endoftext|>")  # as each of DialoGPT's prompts

SEEN = pytest.StashKey[list[Seen]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SEEN] = []
    config.stash[JUDGED] = []
    config.stash[EDITED] = []


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("clients")


def pytest_sessionfinish(session: pytest.Session) -> None:
    page, seen = session.config.getoption("--clients-table"), session.config.stash[SEEN]
    if page and seen:
        write(Path(page), seen, ENVIRONMENTS)
    page, judged = session.config.getoption("--exporters-table"), session.config.stash[JUDGED]
    if page and judged:
        write_exporters(Path(page), judged, session.config.stash[EDITED], ENVIRONMENTS)


@pytest.fixture(scope="session")
def environment() -> Callable[[str], Path]:
    """``environment(client)`` is the folder of a client's environment; the test is skipped where it is absent."""

    def find(client: str) -> Path:
        folder = ENVIRONMENTS / client
        if not (folder / "installed").is_file():
            pytest.skip(f"bash scripts/clients.sh {client} installs it")
        return folder

    return find


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled trained checkpoint as transformers 5 saves it: its names for tokenizers are new to older software."""
    import transformers

    source = tmp_path_factory.mktemp("saved") / "tiny"
    transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT).save_pretrained(source)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(CHECKPOINT / "tokenizer.json"),
        eos_token="<|endoftext|>",
        extra_special_tokens=["Ġ{'"],  # a token of the vocabulary, in a form that no text has
    ).save_pretrained(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "TokenizersBackend"
    assert isinstance(settings["extra_special_tokens"], list)
    return source


@pytest.fixture(scope="session")
def folder(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint in every precision, as it is written."""
    out = tmp_path_factory.mktemp("clients") / "tiny"
    convert(saved, out, precision=list(PRECISIONS))
    return out


@pytest.fixture(scope="session")
def only(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``only(precision)`` is a folder that holds it alone, so that it is the one that all its files name."""

    @functools.cache
    def convert_to(precision: str) -> Path:
        out = tmp_path_factory.mktemp("only") / precision
        convert(saved, out, precision=precision)
        return out

    return convert_to


@pytest.fixture(scope="session")
def questions() -> Reply:
    """What is asked, as texts and as tokens: prompts alone, as one batch, with beams, in turns each half as long, and
    with the end of text at their end.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    asked = {"single": SINGLE, "batch": BATCH, "beams": SINGLE[:1], "continued": TURNS, "ended": ENDED}
    return {
        "new_tokens": NEW_TOKENS,
        "beams": BEAMS,
        "texts": {what: list(texts) for what, texts in asked.items()},
        "prompts": {what: [tokenizer.encode(text).ids for text in texts] for what, texts in asked.items()},
    }


@pytest.fixture(scope="session")
def expected(folder: Path, questions: Reply) -> Callable[[str, str], list[list[int]]]:
    """``expected(precision, what)``: the new tokens of each prompt.

    They are Hugging Face's for float32, and for what is rounded those of our own runtime at that precision.
    """
    found = {"fp32": answered(huggingface(), questions)}

    def tokens(precision: str, what: str) -> list[list[int]]:
        if precision not in found:
            found[precision] = answered(ours(folder, precision), questions)
        wanted = found[precision][what]
        assert sum(map(len, wanted)) % NEW_TOKENS == 0, "prompts whose texts do not end show more"
        return wanted

    return tokens


Generate = Callable[[list[list[int]], int, int], list[list[int]]]  # prompts, new tokens, beams → the new tokens of each


def answered(generate: Generate, questions: Reply) -> dict[str, list[list[int]]]:
    """What is asked of every client, answered by one that is trusted."""
    prompts = questions["prompts"]
    said, turns = list[int](), list[list[int]]()
    for turn in prompts["continued"]:
        said += turn
        turns += generate([said], NEW_TOKENS // len(prompts["continued"]), 1)
        said += turns[-1]
    return {
        "single": [generate([row], NEW_TOKENS, 1)[0] for row in prompts["single"]],
        "batch": generate(prompts["batch"], NEW_TOKENS, 1),
        "beams": generate(prompts["beams"], NEW_TOKENS, BEAMS),
        "continued": turns,
        "ended": [generate([row], NEW_TOKENS, 1)[0] for row in prompts["ended"]],
    }


def ours(folder: Path, precision: str) -> Generate:
    model = load(folder, precision=precision)
    return lambda rows, new_tokens, beams: model.generate(rows, max_new_tokens=new_tokens, beams=beams).new_ids


def huggingface() -> Generate:
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(CHECKPOINT, dtype=torch.float32)

    def generate(rows: list[list[int]], new_tokens: int, beams: int) -> list[list[int]]:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        options = {"max_new_tokens": new_tokens, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, attention_mask=mask, **options)[:, longest:].tolist()

    return generate


@pytest.fixture(scope="session")
def ask(environment: Callable[[str], Path]) -> Callable[[str, str, Reply], Reply]:
    """``ask(client, worker, request)`` runs a worker in a client's environment; both sides are one JSON object.

    A worker in Python or JavaScript reads the request from its input and writes the reply to its output. A reply has
    ``tokens`` or an ``error`` for each thing that was asked, or an ``error`` for all of them.
    """

    def run(client: str, worker: str, request: Reply) -> Reply:
        home = environment(client)
        program = "node" if worker.endswith("js") else str(home / "bin" / "python")
        return replied([program, str(WORKERS / worker)], request, home)

    return run


@pytest.fixture(scope="session")
def source_of(head_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``source_of(variant)`` is the checkpoint that an export claims to be of."""

    @functools.cache
    def save(variant: str) -> Path:
        source = tmp_path_factory.mktemp("sources") / "source"
        head_model("lm", **config_of(variant)).save_pretrained(source)
        return source

    return save


@pytest.fixture(scope="session")
def exported(
    environment: Callable[[str], Path], source_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``exported(interface, variant="usual")`` is the folder of an export; the tables in ``exports.py`` name both.

    It is made once for all runs. The test is skipped where the exporter's environment is absent.
    """

    @functools.cache
    def export(interface: str, variant: str = "usual") -> Path:
        row, defect = (INTERFACES | BROKEN)[interface], VARIANTS[variant]
        home = environment(row.environment) if row.environment else None
        source = source_of(variant)
        if defect.change:
            source = shutil.copytree(source, tmp_path_factory.mktemp("changed") / "source")
            defect.change(source)
        order = Order(row.exporter, home, source, row.options, defect.ignore)
        return made(ENVIRONMENTS / "exports", order, breaks=interface in BROKEN)

    return export


Record = Callable[..., None]


@pytest.fixture
def record(pytestconfig: pytest.Config) -> Record:
    """``record(client, precision, what, outcome, note="")`` keeps what was seen: "ok" or "cannot: why"."""

    def keep(client: str, precision: str, what: str, outcome: str, note: str = "") -> None:
        pytestconfig.stash[SEEN].append(Seen(client, precision, what, outcome, note))

    return keep


@pytest.fixture
def hold(record: Record) -> Callable[..., None]:
    """``hold(client, precision, what, reply, wanted, cannot="", note="")``: record a reply, assert that it is right.

    Where a client cannot, ``cannot`` is what its error says, or "wrong tokens"; the day it can, the test fails.
    """

    def compare(
        client: str, precision: str, what: str, reply: Reply, wanted: Any, cannot: str = "", note: str = ""
    ) -> None:
        answer = reply.get(what, reply)
        failure = answer.get("error") or ("" if answer["tokens"] == wanted else "wrong tokens")
        reason = cannot if cannot in failure else failure
        record(client, precision, what, f"cannot: {reason or failure}" if failure else "ok", note)
        if cannot:
            assert cannot in failure, failure or "it can by now: take it from the exceptions"
        else:
            assert not failure, failure
            assert answer["tokens"] == wanted

    return compare
