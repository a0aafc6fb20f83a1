"""The JUnit report: what a CI system reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter import check, convert
from converter.errors import OutputError
from converter.parity.report import junit
from converter.parity.report.report import Report

Save = Callable[..., Path]


@pytest.fixture
def match(save: Save, tmp_path: Path) -> Report:
    source = save()
    convert(source, tmp_path / "out")
    return check(source, tmp_path / "out", certify=False)


def written(report: Report, tmp_path: Path) -> Element:
    junit.write(report, tmp_path / "report.xml")
    return ElementTree.parse(tmp_path / "report.xml").getroot()


def cases(root: Element) -> dict[str | None, Element]:
    return {case.get("name"): case for case in root.iter("testcase")}


def test_every_leg_is_a_test_case_and_so_is_what_the_files_say(match: Report, tmp_path: Path) -> None:
    root = written(match, tmp_path)
    assert root.tag == "testsuites"
    legs = [leg.name for leg in match.legs]
    assert list(cases(root)) == [
        "initializers, bit for bit",
        "config and tokenizer",
        "files as convert writes them",
        *legs,
    ]
    for element in (root, root[0]):
        assert element.get("tests") == str(len(legs) + 3)
        assert (element.get("failures"), element.get("errors"), element.get("skipped")) == ("0", "0", "0")
    assert float(root[0].get("time", "")) == pytest.approx(match.seconds, abs=1e-3)
    for leg in match.legs:
        assert float(cases(root)[leg.name].get("time", "")) == pytest.approx(leg.seconds, abs=1e-3)


def test_versions_and_limits_are_properties(match: Report, tmp_path: Path) -> None:
    found = {item.get("name"): item.get("value") for item in written(match, tmp_path).iter("property")}
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["provider"] == "CPUExecutionProvider"
    assert found["limit_rms"] == "4"
    assert found["source"] == match.source


def test_a_mismatch_fails_the_cases_that_saw_it_and_says_why(save: Save, tmp_path: Path) -> None:
    source = save()
    convert(source, tmp_path / "out")
    weights = load_file(source / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"] *= 1.5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    report = check(source, tmp_path / "out")
    root = written(report, tmp_path)
    failed = {name: case.find("failure") for name, case in cases(root).items() if case.find("failure") is not None}
    assert list(failed) == [
        "initializers, bit for bit",
        "files as convert writes them",  # of which one has the fingerprint of the weights
        *(leg.name for leg in report.legs if leg.fault),
    ]
    assert root.get("failures") == str(len(failed)) == "4"
    failure = failed["ONNX graph in float64"]
    assert failure is not None
    fault = next(leg.fault for leg in report.legs if leg.name == "ONNX graph in float64")
    assert failure.get("message") == fault
    assert (failure.text or "").startswith(fault)
    assert "RMS error" in (failure.text or "")
    assert report.verdict in (root.findtext("testsuite/system-out") or "")
    assert report.diagnosis is not None
    assert all(
        finding.sentence in (root.findtext("testsuite/system-out") or "") for finding in report.diagnosis.findings
    )


def test_every_fault_of_the_files_is_told(match: Report, tmp_path: Path) -> None:
    spoiled = replace(
        match, exactness_faults=("wte.weight is off", "wpe.weight is off"), beside_faults=("config lies",)
    )
    found = cases(written(spoiled, tmp_path))
    failure = found["initializers, bit for bit"].find("failure")
    assert failure is not None
    assert failure.get("message") == "wte.weight is off (and 1 more)"
    assert "wpe.weight is off" in (failure.text or "")
    assert found["config and tokenizer"].find("failure") is not None


def test_files_that_were_not_compared_are_skipped(match: Report, tmp_path: Path) -> None:
    root = written(replace(match, exactness=False, initializers=0), tmp_path)
    assert [name for name, case in cases(root).items() if case.find("skipped") is not None] == [
        "initializers, bit for bit",
        "config and tokenizer",
        "files as convert writes them",
    ]
    assert root.get("skipped") == "3"


def test_numbers_and_names_that_xml_cannot_hold_do_no_harm(match: Report, tmp_path: Path) -> None:
    wild = {"seconds": math.nan, "rms": math.inf, "kl_mean": math.nan, "perplexity_ratio": -math.inf}
    legs = tuple(
        replace(leg, fault="\x00]]> <&> \x1b[31m \udce9", name=leg.name + "\x07", **wild) for leg in match.legs
    )
    root = written(replace(match, legs=legs, source="a\x0b&<b>", seconds=math.inf), tmp_path)
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.get("message") == "\ufffd]]> <&> \ufffd[31m \ufffd"
    assert {case.get("time") for case in root.iter("testcase")} == {"0.000"}
    assert root.get("time") == "0.000"


def test_a_report_that_cannot_be_written_is_an_error_of_one_sentence(match: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"report\.xml cannot be written: No such file or directory"):
        junit.write(match, tmp_path / "absent" / "report.xml")
