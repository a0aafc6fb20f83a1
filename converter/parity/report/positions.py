"""Find the worst positions of the leg that the HTML report is about, with the text before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter import tokenizer
from converter.parity.legs.cases import Case
from converter.parity.report import plots
from converter.parity.report.report import Details
from converter.parity.verdict.judge import MeasuredLeg
from converter.weights.precisions import FULL

if TYPE_CHECKING:
    from tokenizers import Tokenizer
from converter.parity.report.words import error, text_of, times, unless_special

WORST = 5  # positions that are shown
CONTEXT = 24  # tokens of text before each


def shown_leg(details: Details) -> MeasuredLeg:
    """Return the leg that the report is about: the shipped fp32 graph as it runs, or else the last leg."""
    return next((leg for leg in details.measured if leg.ships(FULL)), details.measured[-1])


# --- The worst positions ---


@dataclass(frozen=True)
class Rank:
    """A place in the two lists of likeliest tokens."""

    true: str
    p_true: str
    found: str
    p_found: str
    same: bool


@dataclass(frozen=True)
class Position:
    """A position of a case, and what the truth and the leg give there.

    Attributes:
        case, row, position: the place.
        before, token, following: the text around it; the logits are those after ``token``.
        error, floors, kl: how far the leg is from the truth there.
        ranks: the two lists of likeliest tokens.
    """

    case: str
    row: int
    position: int
    before: str
    token: str
    following: str
    error: str
    floors: str
    kl: str
    ranks: tuple[Rank, ...]


def worst_positions(details: Details) -> list[Position]:
    """Return where the shown leg is furthest from the truth.

    Of the cases with the same text before a position only the worst is kept.
    """
    checkpoint = details.baseline.checkpoint
    leg, read = shown_leg(details), tokenizer.from_source(checkpoint.companions, checkpoint.tokenizer)
    found = [
        (float(distance.maximum[index]), case, index)
        for case, distance in plots.usable(leg, details.baseline.cases)
        for index in range(len(distance.maximum))
    ]
    chosen: dict[bytes, tuple[Case, int]] = {}
    for _, case, index in sorted(found, key=lambda place: -place[0]):
        chosen.setdefault(_text_until(case, index).tobytes(), (case, index))
        if len(chosen) == WORST:
            break
    return [_position(details, leg, case, index, read) for case, index in chosen.values()]


def _place(case: Case, index: int) -> tuple[int, int]:
    """Return the row and column of a compared position in the case's token ids."""
    if case.last is not None:
        return index, int(case.last[index])
    rows, columns = np.nonzero(case.real)
    return int(rows[index]), int(columns[index]) + case.input_ids.shape[1] - case.real.shape[1]


def _text_until(case: Case, index: int) -> np.ndarray:
    """Return the token ids up to a compared position, without padding."""
    row, column = _place(case, index)
    return case.input_ids[row, : column + 1][case.attention_mask[row, : column + 1].astype(bool)]


def _position(details: Details, leg: MeasuredLeg, case: Case, index: int, read: Tokenizer | None) -> Position:
    """Return what is shown of one position."""
    distance, ids = leg.distances[case.name], _text_until(case, index)
    following = int(case.following[case.real][index])
    before = ids[:-1]
    return Position(
        case=case.name,
        row=_place(case, index)[0] + 1,
        position=int(plots.positions(case)[index]),
        before=("… " if len(before) > CONTEXT else "") + text_of(before[-CONTEXT:], read, " "),
        token=text_of(ids[-1:], read, " "),
        following=text_of([following], read, " ") if following >= 0 else "",
        error=error(float(distance.maximum[index]) / details.baseline.scale),
        floors=times(float(distance.maximum[index]) / details.judge.floor(leg.distances)[1]),
        kl=error(float(distance.kl[index])),
        ranks=_ranks(
            details.baseline.truths[case.name][case.real][index],
            distance.likeliest[index],
            distance.p_likeliest[index],
            read,
        ),
    )


def _ranks(truth: np.ndarray, found: np.ndarray, p_found: np.ndarray, read: Tokenizer | None) -> tuple[Rank, ...]:
    """Return the likeliest tokens of the truth's logits, ``[vocab_size]``, beside the leg's, ``[TOP_K]``."""
    p = np.exp(truth - truth.max())
    p /= p.sum()
    ours = plots.likeliest(truth[None])[0]
    return tuple(
        Rank(
            true=text_of([true], read),
            p_true=f"{p[true]:.6f}",
            found=text_of([token], read) if token >= 0 else "not finite",
            p_found=unless_special(float(p_token), lambda p_token=p_token: f"{p_token:.6f}"),  # type: ignore[misc]
            same=bool(true == token),
        )
        for true, token, p_token in zip(ours, found, p_found, strict=False)  # a vocabulary may have fewer
    )
