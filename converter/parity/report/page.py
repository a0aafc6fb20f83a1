"""The report of a check as one HTML page that needs nothing but itself: no network, no script, no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from converter import tokenizer
from converter.errors import OutputError
from converter.files import reason
from converter.folder.certificate import sha256, shipped_files
from converter.parity.diagnosis.taps import (
    FLOAT16_MAXIMUM,
    TAP_FLOAT64_LIMIT,
    TAP_LIMIT,
    Localisation,
)
from converter.parity.legs.cases import Case
from converter.parity.report import plots
from converter.parity.report.plots import Plot
from converter.parity.report.report import Details, Report
from converter.parity.verdict.judge import LegReport, MeasuredLeg
from converter.parity.verdict.metrics import TOP_K
from converter.weights.precisions import FULL

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORST = 5  # positions that are shown with their text
CONTEXT = 24  # tokens of it

SMALLEST = float(np.finfo(np.float32).tiny)  # a histogram of errors does not tell less from 0

MINUS, NOT_A_NUMBER, INFINITE = "−", "–", "∞"


def write(report: Report, file: Path, command: str) -> None:
    """Write the report as an HTML page.

    Args:
        command: the command line that made the report.

    Raises:
        OutputError: the file cannot be written.
        TokenizerError: the source's tokenizer can no longer be read.
    """
    page = render(report, command)
    try:
        file.write_bytes(page.encode("utf-8", "backslashreplace"))  # names of files may be no Unicode
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def render(report: Report, command: str) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("converter.parity", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    details = report.details
    return environment.get_template("page.html.j2").render(
        report=report,
        command=command,
        facts=facts(report),
        tables=[table(columns, report) for columns in TABLES],
        words=WORDS,
        keys=KEYS,
        figures=figures(report),
        worst=worst_positions(details) if details else [],
        runtime=shown_leg(details).name if details else "",
        maxima=maxima(report),
        ledger=ledger(details) if details else [],
        environment={key.replace("_", " "): plain(value) for key, value in report.settings.items()},
        limits=[(name.replace("_", " "), f"{value:g}", LIMITS.get(name, "")) for name, value in report.limits.items()],
        hashes=hashes(report),
    )


# What each limit bounds.
LIMITS = {
    "huggingface_float64": "largest error of Hugging Face in float64, as a share of the logits' scale",
    "graph_float64": "largest error of the graph in float64, as a share of the logits' scale",
    "noise": "RMS error of Hugging Face's own float32, as a share of the logits' scale",
    "rms": "RMS error of a float32 leg, as a multiple of the noise floor",
    "maximum": "largest error of a float32 leg, as a multiple of the noise floor",
}


# --- Numbers, for people ---


def error(value: float) -> str:
    """A share or a divergence: ``3.1e-07``."""
    return _unless_special(value, lambda: "0" if abs(value) < SMALLEST else f"{value:.1e}")


def times(value: float) -> str:
    """A multiple: ``1.04``."""
    return _unless_special(value, lambda: f"{value:,.2f}" if abs(value) < 1000 else f"{value:.1e}")


def with_error(value: float, deviation: float) -> str:
    """A number and its standard error: ``109.6 ± 27.1``."""
    return _unless_special(value, lambda: f"{value:,.2f} ± {_unless_special(deviation, lambda: f'{deviation:,.2f}')}")


def ratio(value: float, deviation: float) -> str:
    """A ratio that is near 1, and its standard error: ``1 + 2.4e-08 ± 1.0e-07``."""

    def near() -> str:
        if abs(value - 1) > 1e-3:
            return f"{value:.4f} ± {_unless_special(deviation, lambda: f'{deviation:.4f}')}"
        away = f" {MINUS if value < 1 else '+'} {error(abs(value - 1))}" if value != 1 else ""
        return f"1{away} ± {error(deviation)}" if deviation != 0 else f"1{away}"

    return _unless_special(value, near)


def share(value: float) -> str:
    """``99.73 %``."""
    return _unless_special(value, lambda: f"{100 * value:.4g} %")


def _unless_special(value: float, text: Callable[[], str]) -> str:
    if math.isnan(value):
        return NOT_A_NUMBER
    return text() if math.isfinite(value) else INFINITE


def plain(value: Any) -> str:
    """A setting as text."""
    if value is None or value == {}:
        return NOT_A_NUMBER
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else str(value)


# --- The tables of legs ---

Columns = Mapping[str, Callable[[LegReport], str]]


@dataclass(frozen=True)
class TableOfLegs:
    """One of the tables in which every leg has a row.

    Attributes:
        caption: what its numbers are.
        judged: whether it says what a leg is there for, and the verdict.
        headings: of its columns.
        rows: what stands in them.
    """

    caption: str
    judged: bool
    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class TableRow:
    """A leg, or what the files themselves say.

    Attributes:
        name, proves: which, and what it is there for.
        cells: texts under the headings.
        verdict: ``pass``, ``FAIL``, or what is said of a leg that is not judged.
    """

    name: str
    proves: str
    cells: tuple[str, ...]
    verdict: str


def _floors(text: Callable[[LegReport], str]) -> Callable[[LegReport], str]:
    """Leave the cell empty where multiples of float32's noise mean nothing."""
    return lambda leg: text(leg) if leg.has_floors else ""


def _budget(leg: LegReport) -> str:
    """Say which budget is in force, and whether the leg keeps it."""
    if leg.allowed is None:
        return ""
    kept = "kept" if leg.within_budget else "EXCEEDED"
    return f"{leg.budget}: KL ≤ {leg.allowed.kl_mean:.0e}, ratio ≤ {leg.allowed.perplexity_ratio:g}: {kept}"


ERRORS: Columns = {
    "RMS": lambda leg: error(leg.rms),
    "max": lambda leg: error(leg.maximum),
    "RMS ÷ floor": _floors(lambda leg: times(leg.rms_floors)),
    "max ÷ floor": _floors(lambda leg: times(leg.maximum_floors)),
    "50 %": lambda leg: error(leg.p50),
    "99 %": lambda leg: error(leg.p99),
    "99.9 %": lambda leg: error(leg.p999),
    "worst in": lambda leg: leg.worst_case,
}
DECISIONS: Columns = {
    "other top-1": lambda leg: f"{leg.flips:,}",
    "near ties": lambda leg: f"{leg.near_ties:,}",
    f"top-{TOP_K} shared": lambda leg: share(leg.top_k),
    "KL mean": lambda leg: error(leg.kl_mean),
    "KL 99 %": lambda leg: error(leg.kl_99),
    "KL 99.9 %": lambda leg: error(leg.kl_999),
    "KL max": lambda leg: error(leg.kl_maximum),
    "Δp RMS": lambda leg: error(leg.dp_rms),
    "Δp 99 %": lambda leg: error(leg.dp_99),
    "Δp max": lambda leg: error(leg.dp_maximum),
}
TEXT: Columns = {
    "perplexity": lambda leg: with_error(leg.perplexity, leg.perplexity_error),
    "ratio to the truth's": lambda leg: ratio(leg.perplexity_ratio, leg.perplexity_ratio_error),
    "tokens scored": lambda leg: f"{leg.scored:,}",
    "positions": lambda leg: f"{leg.positions:,}",
    "budget": _budget,
    "seconds": lambda leg: f"{leg.seconds:.2f}",
}
WORDS = ("worst in", "budget")  # columns of words, the others are of numbers
TABLES: tuple[tuple[str, Columns], ...] = (
    ("Errors of the logits, as shares of their scale", ERRORS),
    ("Decisions and distributions", DECISIONS),
    ("Perplexity, budgets, time", TEXT),
)

KEYS = (
    (
        "RMS, max",
        "distance of a leg's logits from the float64 truth; 50 %, 99 %, 99.9 %: what so many logits stay within",
    ),
    ("÷ floor", "the same as multiples of the noise floor, which is Hugging Face's own float32"),
    (
        "other top-1",
        "positions whose likeliest token is not the truth's; near ties, which an allowed error could swap, apart",
    ),
    ("KL", "divergence of the leg's distribution from the truth's, by position, in nats"),
    ("Δp", "by how much the probability of the token that follows in the text differs"),
    ("±", "standard error; of a ratio that of the paired difference"),
)


def table(titled: tuple[str, Columns], report: Report) -> TableOfLegs:
    """A table with a row for each leg; that of errors also says what the files say."""
    caption, columns = titled
    rows = []
    for leg in report.legs:
        cells = tuple(text(leg) for text in columns.values())
        rows.append(TableRow(leg.name, leg.kind, cells, leg.status))
    if columns is ERRORS:
        rows = [*files(report, ("",) * len(columns)), *rows]
    return TableOfLegs(caption, columns is ERRORS, tuple(columns), tuple(rows))


def files(report: Report, blank: tuple[str, ...]) -> list[TableRow]:
    """What comparing the files themselves found."""
    if not report.exactness:
        return [TableRow("weights, config, tokenizer", "the files", blank, "not compared")]
    return [
        TableRow(
            f"{report.initializers} initializers", "bit for bit", blank, "FAIL" if report.exactness_faults else "pass"
        ),
        TableRow("config and tokenizer", "as the source's", blank, "FAIL" if report.beside_faults else "pass"),
    ]


def facts(report: Report) -> dict[str, str]:
    """What stands below the verdict."""
    known = {
        "Text": report.text,
        "Scale of the logits": f"{report.scale:.4g}",
        "Noise floor": f"{error(report.floor_rms)} RMS, {error(report.floor_maximum)} max",
        "ONNX Runtime": f"{report.settings.get('onnxruntime', '')}, {report.settings.get('provider', '')}",
        "Level": report.level,
        "Time": f"{report.seconds:.1f} s",
    }
    if report.details is None:
        return known
    ledger = report.details.baseline.ledger
    config = ledger.config
    model = f"{ledger.parameters:,} parameters: {config.n_layer} layers, {config.n_head} heads, width {config.n_embd}"
    return {"Model": f"{model}, {config.n_positions:,} positions, {config.vocab_size:,} tokens"} | known


# --- Figures ---


@dataclass(frozen=True)
class Figure:
    """A plot with what is to be said of it."""

    title: str
    plot: Plot | None
    caption: str


def figures(report: Report) -> list[Figure]:
    """All plots but that of the maxima, in the order of the page."""
    drawn = [operations(report)]
    details = report.details
    if details is None:
        return drawn
    drawn += [
        Figure(
            "Error along the text",
            plots.error_by_position(details),
            "RMS over the vocabulary, over all cases with a token at a position; of a text of full length the last "
            "positions are compared. A fault of the cache, of padding or of positions would show as a step.",
        ),
        Figure(
            "Errors of all logits",
            plots.histogram(details),
            "Against the noise floor, filled: a leg that only rounds lies on it.",
        ),
        Figure(
            "Agreement on the likeliest tokens",
            plots.agreement(details),
            "Of the truth's k likeliest tokens, the share that is among the leg's k likeliest; at all positions, "
            "near ties included.",
        ),
        Figure(
            "Divergence along the text",
            plots.kl_by_position(details),
            "Mean over the cases that have a token at a position. What is exactly 0 is not drawn.",
        ),
    ]
    return [*drawn, calibration(details)]


def operations(report: Report) -> Figure:
    """The map of errors by layer and operation, or why there is none."""
    title, localisation = "Error by layer and operation", report.localisation
    if localisation is None:
        return Figure(title, None, "Not compared: operations are on a mismatch, or when asked for (--layers).")
    float64 = plots.shows_float64(localisation, report.passed)
    what = (
        "RMS error of the shipped graph in float64, as a share of what the operation should put out. Blue: at most "
        f"{TAP_FLOAT64_LIMIT:.0e}, which is rounding of constants; orange: beyond."
        if float64
        else "RMS error of the shipped graph in ONNX Runtime, in float32, as a multiple of Hugging Face's at the same "
        f"operation. Orange: further from the truth, full at the limit of {TAP_LIMIT:g}; blue: nearer."
    )
    caption = " ".join([what, *_sentences(localisation, float64)])
    return Figure(title, plots.operations(localisation, report.passed), caption)


def _sentences(localisation: Localisation, float64: bool) -> Iterator[str]:
    """What the map has no place for."""
    outside = [
        f"{tap.name} {error(tap.onnx_float64) if float64 else times(plots.ratio(tap))}"
        for tap in localisation.taps
        if tap.layer is None
    ]
    if outside:
        yield f"Outside the layers: {', '.join(outside)}."
    yield f"Case: {localisation.case}."
    if localisation.first:
        yield f"The first operation that diverges is {localisation.first}, framed if it is in a layer."
    if localisation.missing:
        yield f"Not in the graph: {', '.join(localisation.missing)}."


def calibration(details: Details) -> Figure:
    """Probabilities against probabilities, or why they are not shown."""
    title, leg = "Probability of the token that follows", shown_leg(details)
    if not len(plots.probabilities(leg)[0]):
        return Figure(title, None, f"No token was scored, or {leg.name} gives none a finite probability.")
    caption = (
        "Left: on the diagonal, the leg gives every token what the truth gives it. Right: by what share it does not."
    )
    return Figure(title, plots.calibration(details, leg), caption)


def maxima(report: Report) -> Figure:
    """The largest values of each layer, or why they are not shown."""
    title, localisation = "Largest values, and what float16 holds", report.localisation
    if localisation is None:
        return Figure(title, None, "Operations were not compared.")
    largest = max(localisation.taps, key=lambda tap: tap.largest)
    fits = "all fit" if largest.largest <= FLOAT16_MAXIMUM else "it would overflow"
    caption = (
        f"Absolute values of the float64 truth, case {localisation.case}. The largest is {largest.largest:,.4g}, of "
        f"{largest.name}; float16 holds {FLOAT16_MAXIMUM:,.0f}: {fits}."
    )
    return Figure(title, plots.maxima(localisation), caption)


def shown_leg(details: Details) -> MeasuredLeg:
    """The leg that the report is about: what ships, as it runs."""
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
    """A position of a case and what truth and leg make of it.

    Attributes:
        case, row, position: where.
        before, token, following: the text around it; the logits are those after ``token``.
        error, floors, kl: how far apart they are there.
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
    """Where the leg that ships is furthest from the truth; of the cases with one text before it only the worst."""
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
    """TableRow and column in the case's token ids of a compared position."""
    if case.last is not None:
        return index, int(case.last[index])
    rows, columns = np.nonzero(case.real)
    return int(rows[index]), int(columns[index]) + case.input_ids.shape[1] - case.real.shape[1]


def _text_until(case: Case, index: int) -> np.ndarray:
    """The token ids up to a compared position, padding left out."""
    row, column = _place(case, index)
    return case.input_ids[row, : column + 1][case.attention_mask[row, : column + 1].astype(bool)]


def _position(details: Details, leg: MeasuredLeg, case: Case, index: int, read: Tokenizer | None) -> Position:
    """What is shown of one position."""
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
    """The likeliest tokens of the truth's logits, ``[vocab_size]``, beside the leg's, ``[TOP_K]``."""
    p = np.exp(truth - truth.max())
    p /= p.sum()
    ours = plots.likeliest(truth[None])[0]
    return tuple(
        Rank(
            true=text_of([true], read),
            p_true=f"{p[true]:.6f}",
            found=text_of([token], read) if token >= 0 else "not finite",
            p_found=_unless_special(float(p_token), lambda p_token=p_token: f"{p_token:.6f}"),  # type: ignore[misc]
            same=bool(true == token),
        )
        for true, token, p_token in zip(ours, found, p_found, strict=False)  # a vocabulary may have fewer
    )


def text_of(ids: Sequence[int] | np.ndarray, read: Tokenizer | None, space: str = "·") -> str:
    """Tokens as text, what cannot be seen made visible; their ids where nothing reads them."""
    text = read.decode([int(i) for i in ids], skip_special_tokens=False) if read is not None and len(ids) else ""
    return visible(text, space) if text else " ".join(f"#{int(i)}" for i in ids)


def visible(text: str, space: str = "·") -> str:
    """Spaces, line ends and what does not print, as signs that do."""
    signs = {" ": space, "\n": "↵" + space.strip("·"), "\t": "⇥"}
    return "".join(signs.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


# --- What was compared with what ---


def ledger(details: Details) -> list[tuple[str, ...]]:
    """A row for each tensor of the source."""
    return [
        (
            entry.tensor.name,
            entry.name,
            entry.role,
            entry.layout or NOT_A_NUMBER,
            entry.tensor.dtype,
            " × ".join(map(str, entry.tensor.shape)) or "scalar",
        )
        for entry in details.baseline.ledger.entries
    ]


def hashes(report: Report) -> list[tuple[str, str, str]]:
    """Whose file, its name, its SHA-256; of the source's files that were read, and of the folder's."""
    found: list[tuple[str, str, str]] = []
    if report.details is not None:
        baseline = report.details.baseline
        read = {weight.file for weight in baseline.ledger.weights.values()} | baseline.checkpoint.described_by
        found += [("source", file.name, _hash(file)) for file in sorted(read)]
    out = Path(report.out)
    return found + [("folder", str(file.relative_to(out)), _hash(file)) for file in shipped_files(out)]


def _hash(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        return f"cannot be read: {reason(error)}"
