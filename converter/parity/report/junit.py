"""Write the report of a check as JUnit XML, which CI systems show.

Each leg is a test case, and so are each comparison of files and what each graph returns beside its answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from converter.errors import OutputError
from converter.files import reason
from converter.parity.outputs import summaries
from converter.parity.report.report import FILES, Report
from converter.parity.verdict.judge import LegReport

# Characters that XML 1.0 cannot hold, not even escaped. Names of files and of tensors may have them.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(report: Report, file: Path) -> None:
    """Write the report as JUnit XML.

    Raises:
        OutputError: the file cannot be written.
    """
    suites = tree(report)
    ElementTree.indent(suites)
    try:
        file.write_bytes(ElementTree.tostring(suites, "utf-8", xml_declaration=True) + b"\n")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {reason(error)}") from error


def tree(report: Report) -> Element:
    """Return ``<testsuites>`` with one suite: the check."""
    suites = Element("testsuites", name="gpt2onnx check")
    suite = SubElement(suites, "testsuite", name=clean(f"{report.out} is {report.source}"))
    properties = SubElement(suite, "properties")
    for name, value in facts(report).items():
        SubElement(properties, "property", name=clean(name), value=clean(value))
    _files(suite, report)
    for leg in report.legs:
        _case(suite, leg.name, [leg.fault] if leg.fault else [], leg.seconds, figures(leg))
    for found in summaries(report.outputs):
        _case(suite, found.name, found.faults, 0.0, f"RMS error {found.rms:.3g} of their size at most")
    SubElement(suite, "system-out").text = clean("\n".join(_sentences(report)))
    for element in (suites, suite):
        element.set("tests", str(len(suite.findall("testcase"))))
        element.set("failures", str(len(suite.findall("testcase/failure"))))
        element.set("skipped", str(len(suite.findall("testcase/skipped"))))
        element.set("errors", "0")
        element.set("time", seconds(report.seconds))
    return suites


def _files(suite: Element, report: Report) -> None:
    """Add a test case for each comparison of files; they are skipped if files were not compared."""
    for row in report.comparisons:
        _case(suite, row.case, row.faults, 0.0, f"{row.name}: {row.status}")
    if not report.exactness and report.export is None:
        for name in FILES:
            case = _case(suite, name, (), 0.0, "")
            SubElement(case, "skipped", message="files were not compared")


def _case(suite: Element, name: str, faults: Sequence[str], took: float, said: str) -> Element:
    """Add a test case, which fails if there are faults; returns it."""
    case = SubElement(suite, "testcase", classname="gpt2onnx.check", name=clean(name), time=seconds(took))
    if faults:
        others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        failure = SubElement(case, "failure", type="mismatch", message=clean(faults[0] + others))
        failure.text = clean("\n".join([*faults, said]).strip())
    elif said:
        SubElement(case, "system-out").text = clean(said)
    return case


def figures(leg: LegReport) -> str:
    """Return what a leg's verdict is based on, in lines."""
    lines = [
        f"{leg.status}; {leg.kind}; {leg.positions} positions of {', '.join(leg.cases)}",
        f"RMS error {leg.rms:.3g}, max {leg.maximum:.3g} of the logits' scale, the latter in {leg.worst_case}",
        f"{leg.rms_floors:.3g} and {leg.maximum_floors:.3g} times the noise floor",
        f"other top-1 at {leg.flips}, near ties at {leg.near_ties}; {100 * leg.top_k:.4g} % of the top 5 shared",
        f"KL mean {leg.kl_mean:.3g}, max {leg.kl_maximum:.3g}; perplexity ratio {leg.perplexity_ratio:.9g}",
    ]
    if leg.budget:
        lines.append(f"budget of {leg.budget}: {'kept' if leg.within_budget else 'EXCEEDED'}")
    return "\n".join(lines)


def facts(report: Report) -> dict[str, str]:
    """Return what the figures were made with, and what the verdict is based on."""
    known = {"source": report.source, "out": report.out, "level": report.level, "text": report.text}
    numbers = {"scale": report.scale, "floor_rms": report.floor_rms, "floor_maximum": report.floor_maximum}
    settings = {name: str(value) for name, value in report.settings.items() if value is not None}
    limits = {f"limit_{name}": f"{value:g}" for name, value in report.limits.items()}
    return known | {name: f"{value:.6g}" for name, value in numbers.items()} | settings | limits


def _sentences(report: Report) -> list[str]:
    """Return the verdict, the causes that were found, and what qualifies the verdict."""
    findings = report.diagnosis.findings if report.diagnosis is not None else ()
    return [
        f"{report.headline}: {report.verdict}",
        *(f"{finding.sentence}; {finding.evidence}" for finding in findings),
        *(f"note: {note}" for note in (*report.other_faults, *report.notes)),
    ]


def seconds(value: float) -> str:
    """Return a ``time`` attribute, which has to be a number."""
    return f"{value if math.isfinite(value) else 0:.3f}"


def clean(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return FORBIDDEN.sub("\ufffd", text)
