"""The heads that can stand on GPT-2's body, one record each. All other code reads these records.

The classes that compute are in ``reference/heads.py`` and ``converter/graph/heads.py``. ``converter/runtime/heads.py``
turns their outputs into answers. Each of the three has a table with the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class HeadSpec:
    """The description of one head.

    Attributes:
        name: its name in ``GPT2Config.head`` and for ``--head``.
        class_name: its class in transformers.
        said: what it gives, for the help text.
        outputs: the names of its graph's outputs, which are those of transformers.
        taps: the operations after the blocks, in the order in which data flows; "pool" picks the position that answers.
        modules: tap → the module that computes it, if the names differ.
        reads: the fields of ``GPT2Config`` that this head alone uses.
        known_by: a weight that no other head has.
        predicts: whether it predicts tokens, so that ``generate`` runs it.
        bare: whether its class in transformers is the body itself, so that weights have no prefix.
        asks: whether a question comes with every text.
        compares: whether the rows of a batch are the choices of one question.
        graphs: the head of each graph, if the model becomes several graphs.
        part_of: the head that this one is a part of; such a part cannot be asked for.
    """

    name: str
    class_name: str
    said: str = ""
    outputs: tuple[str, ...] = ("logits",)
    taps: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    reads: tuple[str, ...] = ()
    known_by: str = ""
    predicts: bool = False
    bare: bool = False
    asks: bool = False
    compares: bool = False
    graphs: tuple[str, ...] = ()
    part_of: str = ""

    @property
    def pools(self) -> bool:
        """Tell whether one position answers for the whole text."""
        return "pool" in self.taps

    @property
    def labelled(self) -> bool:
        """Tell whether its numbers stand for labels that a config names."""
        return "num_labels" in self.reads

    @property
    def per_graph(self) -> tuple[str, ...]:
        """Return the head of each graph that the model becomes."""
        return self.graphs or (self.name,)


LM, MULTIPLE_CHOICE, DOUBLE_HEADS = "lm", "multiple-choice", "double-heads"
SUMMARY = "multiple_choice_head.summary"

HEADS: Mapping[str, HeadSpec] = {
    head.name: head
    for head in (
        HeadSpec(LM, "GPT2LMHeadModel", taps=("ln_f", "logits"), modules={"logits": "lm_head"}, predicts=True),
        HeadSpec(
            "base", "GPT2Model", "hidden states", outputs=("last_hidden_state",), taps=("last_hidden_state",),
            modules={"last_hidden_state": "ln_f"}, bare=True,
        ),
        HeadSpec(
            "sequence-classification", "GPT2ForSequenceClassification", taps=("pool", "ln_f", "score"),
            reads=("num_labels", "pad_token_id"), known_by="score.weight",
        ),
        HeadSpec(
            "token-classification", "GPT2ForTokenClassification", taps=("ln_f", "logits"),
            modules={"logits": "classifier"}, reads=("num_labels",), known_by="classifier.weight",
        ),
        HeadSpec(
            "question-answering", "GPT2ForQuestionAnswering", outputs=("start_logits", "end_logits"),
            taps=("ln_f", "qa_outputs"), known_by="qa_outputs.weight", asks=True,
        ),
        HeadSpec(
            DOUBLE_HEADS, "GPT2DoubleHeadsModel", reads=("summary_activation",), known_by=f"{SUMMARY}.weight",
            predicts=True, graphs=(LM, MULTIPLE_CHOICE),
        ),
        HeadSpec(
            MULTIPLE_CHOICE, "GPT2DoubleHeadsModel", outputs=("mc_logits",),
            taps=("pool", "ln_f", SUMMARY, "multiple_choice_head.activation"), compares=True, part_of=DOUBLE_HEADS,
        ),
    )
}  # fmt: skip

# The heads that a user can ask for, and that a config can name.
ASKED = tuple(name for name, head in HEADS.items() if not head.part_of)


def head_of(architectures: object) -> str | None:
    """Return the head that ``architectures`` of a ``config.json`` names; None if it names none of GPT-2's."""
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    classes = {name.removeprefix("TF").removeprefix("Flax") for name in names}
    return next((name for name in ASKED if HEADS[name].class_name in classes), None)
