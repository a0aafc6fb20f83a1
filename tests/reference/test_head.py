"""A head is one record; every table that is keyed by a head has a row for each."""

from __future__ import annotations

import pytest
import transformers

from converter.folder.card import TASKS
from converter.graph import heads as graph_heads
from converter.parity.diagnosis.operations import SORTS
from converter.parity.legs.heads import STACKED
from converter.runtime.heads import ANSWERS
from converter.weights.table import TABLE
from reference import heads
from reference.head import ASKED, DOUBLE_HEADS, HEADS, LM, MULTIPLE_CHOICE, head_of

GRAPHS = {graph for head in HEADS.values() for graph in head.per_graph}  # the heads that a graph can have
COMPUTED = GRAPHS - {LM}  # the language model has a class, a loop and a page of its own


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        (heads.CLASSES, GRAPHS),
        (graph_heads.CLASSES, COMPUTED),
        (STACKED, COMPUTED),
        (ANSWERS, COMPUTED - {MULTIPLE_CHOICE}),  # whose answers come for several texts at once
        (TASKS, (COMPUTED - {MULTIPLE_CHOICE}) | {DOUBLE_HEADS}),  # a folder may have two graphs and has one card
    ],
    ids=["reference", "graph", "stacked outputs", "answers", "model card"],
)
def test_every_table_has_a_row_for_each_head(table: dict[str, object], keys: set[str]) -> None:
    assert set(table) == keys


@pytest.mark.parametrize("name", HEADS)
def test_a_record_names_what_is_there(name: str) -> None:
    head, weights = HEADS[name], {weight.name for weight in TABLE}
    assert hasattr(transformers, head.class_name)
    assert head.name == name
    assert not head.known_by or head.known_by in weights
    assert all(graph in HEADS for graph in head.per_graph)
    assert set(head.taps) <= SORTS.keys()
    if name in graph_heads.CLASSES:
        assert tuple(graph_heads.CLASSES[name].gives) == head.outputs
        assert graph_heads.CLASSES[name].pools == heads.CLASSES[name].pools == head.pools  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ASKED)
def test_a_head_is_found_by_the_name_of_its_class(name: str) -> None:
    assert head_of([HEADS[name].class_name]) == name
    assert head_of([f"TF{HEADS[name].class_name}"]) == name


def test_a_part_of_a_model_cannot_be_asked_for() -> None:
    assert {name for name in HEADS if name not in ASKED} == {MULTIPLE_CHOICE}
