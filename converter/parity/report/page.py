"""Write the report of a check as one HTML page that is complete: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from converter.errors import OutputError
from converter.files import reason
from converter.folder.certificate import home_of, sha256, shipped_files
from converter.parity.diagnosis.taps import (
    TAP_FLOAT64_LIMIT,
    TAP_LIMIT,
    Localisation,
)
from converter.parity.legs.half import FLOAT16_MAXIMUM
from converter.parity.report import plots
from converter.parity.report.drawing import Plot
from converter.parity.report.positions import shown_leg, worst_positions
from converter.parity.report.report import Details, Report
from converter.parity.report.tables import KEYS, TABLES, WORDS, table
from converter.parity.report.words import NOT_A_NUMBER, error, plain, times
from converter.runtime.exports.files import files_of


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
        file.write_bytes(page.encode("utf-8", "backslashreplace"))  # names of files may not be Unicode
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def render(report: Report, command: str) -> str:
    """Return the page as HTML."""
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


def facts(report: Report) -> dict[str, str]:
    """Return the lines below the verdict, each with its name."""
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
    """A plot with its title and caption."""

    title: str
    plot: Plot | None
    caption: str


def figures(report: Report) -> list[Figure]:
    """Return all plots but that of the maxima, in the order of the page."""
    drawn = [operations(report)]
    details = report.details
    if details is None:
        return drawn
    drawn += [
        Figure(
            "Error along the text",
            plots.error_by_position(details),
            "RMS over the vocabulary and over all cases that have a token at a position. At full length only the last "
            "positions are compared. A fault in the cache, the padding or the positions would show as a step.",
        ),
        Figure(
            "Errors of all logits",
            plots.histogram(details),
            "The filled area is the noise floor. A leg that only rounds lies on it.",
        ),
        Figure(
            "Agreement on the likeliest tokens",
            plots.agreement(details),
            "The share of the truth's k likeliest tokens that are also among the leg's k likeliest, at all positions, "
            "near ties included.",
        ),
        Figure(
            "Divergence along the text",
            plots.kl_by_position(details),
            "Mean over the cases that have a token at a position. Values of exactly 0 are not drawn.",
        ),
    ]
    return [*drawn, calibration(details)]


def operations(report: Report) -> Figure:
    """Return the map of errors by layer and operation, or why there is none."""
    title, localisation = "Error by layer and operation", report.localisation
    if localisation is None:
        return Figure(title, None, "Not compared: operations are compared on a mismatch, or with --layers.")
    float64 = plots.shows_float64(localisation, report.passed)
    what = (
        "RMS error of the shipped graph in float64, as a share of the operation's right output. Blue: at most "
        f"{TAP_FLOAT64_LIMIT:.0e}, which is rounding of constants. Orange: more."
        if float64
        else "RMS error of the shipped graph in ONNX Runtime, in float32, as a multiple of Hugging Face's at the same "
        f"operation. Orange: further from the truth, darkest at the limit of {TAP_LIMIT:g}. Blue: nearer."
    )
    caption = " ".join([what, *_sentences(localisation, float64)])
    return Figure(title, plots.operations(localisation, report.passed), caption)


def _sentences(localisation: Localisation, float64: bool) -> Iterator[str]:
    """Yield what the map does not show."""
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
    """Return the plot of the leg's probabilities against the truth's, or why there is none."""
    title, leg = "Probability of the token that follows", shown_leg(details)
    if not len(plots.probabilities(leg)[0]):
        return Figure(title, None, f"No token was scored, or {leg.name} gives no token a finite probability.")
    caption = (
        "Left: on the diagonal, leg and truth give a token the same probability. Right: by what share they differ."
    )
    return Figure(title, plots.calibration(details, leg), caption)


def maxima(report: Report) -> Figure:
    """Return the plot of the largest values of each layer, or why there is none."""
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


def ledger(details: Details) -> list[tuple[str, ...]]:
    """Return a row for each tensor of the source."""
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
    """Return the owner, the name and the SHA-256 of each file: of the source's files that were read, and of those that
    were compared.
    """
    found: list[tuple[str, str, str]] = []
    if report.details is not None:
        baseline = report.details.baseline
        read = {weight.file for weight in baseline.ledger.weights.values()} | baseline.checkpoint.described_by
        found += [("source", file.name, _hash(file)) for file in sorted(read)]
    out = Path(report.out)
    if report.export is not None:
        return found + [("export", str(file.relative_to(home_of(out))), _hash(file)) for file in files_of(out)]
    files = shipped_files(out) if out.is_dir() else []  # it may have gone since
    return found + [("folder", str(file.relative_to(out)), _hash(file)) for file in files]


def _hash(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        return f"cannot be read: {reason(error)}"
