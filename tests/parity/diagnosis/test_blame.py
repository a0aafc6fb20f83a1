"""Who is to blame, and in which case that is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from converter.parity.baseline import measure_source
from converter.parity.diagnosis.diagnose import FLOAT64_LIMIT, Diagnosis, diagnose
from converter.parity.diagnosis.operations import Operations
from converter.parity.diagnosis.taps import Localisation, graph_taps
from converter.parity.examine import examine
from converter.parity.folder_legs import Examination
from converter.parity.legs import truth
from converter.parity.legs.cases import Case, Level
from converter.parity.legs.steps import Steps
from converter.parity.verdict.limits import Limits
from tests.parity.diagnosis.bench import Bench, Copy, MakeBench, the_finding
from tests.parity.diagnosis.defects import DEFECTS


def test_where_hugging_face_computes_something_else_it_is_hugging_face_that_is_named(
    bench: MakeBench, copy: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = bench()
    loader = transformers.GPT2LMHeadModel.from_pretrained

    def otherwise(*args: Any, **options: Any) -> Any:
        model, found = loader(*args, **options)
        model.transformer.h[1].ln_2.eps = 1e-3
        return model, found

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", otherwise)
    checkpoint = made.baseline.checkpoint
    baseline = measure_source(checkpoint, made.baseline.ledger, None, Limits(), Level.QUICK, Steps())
    report = examine(baseline, copy(made).path, Examination(files=False), Steps())
    faults = {leg.name: leg.fault for leg in report.legs if leg.fault}
    assert "Hugging Face float64 eager" in faults
    assert "ONNX graph in float64" not in faults
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("epsilon", ("h.1.ln_2",))
    assert "Hugging Face" in report.verdict


def test_where_the_reference_is_wrong_the_graph_is_not_blamed(
    bench: MakeBench, copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()

    class Wrong(truth.GPT2):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.h[1].ln_2.eps = 1e-3

    monkeypatch.setitem(truth.CLASSES, "lm", Wrong)
    checkpoint = made.baseline.checkpoint
    baseline = measure_source(checkpoint, made.baseline.ledger, None, Limits(), Level.QUICK, Steps())
    report = examine(baseline, copy(made).path, Examination(files=False), Steps())
    assert not report.passed
    assert "gpt2onnx's own reference does not" in report.verdict
    assert "is NOT" not in report.verdict


# --- which case tells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("positions +1", "prefill"),
        ("positions start again", "decode"),
        ("cache not counted", "decode"),
        ("padding seen", "left-padded batch"),
        ("positions count the padding", "left-padded batch"),
    ],
)
def test_the_simplest_case_that_shows_the_defect_is_looked_at(
    bench: MakeBench, copy: Copy, name: str, case: str
) -> None:
    made = bench()
    folder = copy(made)
    DEFECTS[name][0](folder)
    report = made.report(folder)
    assert report.diagnosis is not None
    assert report.localisation is not None
    assert report.diagnosis.case == report.localisation.case == case


def diagnosed(made: Bench, folder: Path, case: Case) -> Diagnosis:
    taps = graph_taps(folder / "onnx" / "model.onnx", made.baseline.ledger.config, case, float64=True)
    given = Operations(made.baseline.ledger, case, taps)
    return diagnose(given, FLOAT64_LIMIT, Localisation(case.name, "", (), ()))


@pytest.mark.parametrize("opset", [17, 23])
def test_of_a_sound_graph_nothing_is_said_whatever_is_fed(bench: MakeBench, opset: int) -> None:
    made = bench(opset)
    for case in made.baseline.cases:
        found = diagnosed(made, made.sound, case)
        assert found.findings == ()
        assert found.examined == 3 + 13 * 3 + 2


def test_of_a_long_case_that_is_cut_nothing_is_said_either(bench: MakeBench) -> None:
    made = bench(n_positions=200)
    (case,) = (case for case in made.baseline.cases if case.long)
    assert [finding.sentence for finding in diagnosed(made, made.sound, case).findings] == []


@pytest.mark.parametrize("delta", [1e-4, 0.001, 5.0])
def test_a_defect_that_only_long_texts_meet_is_called_by_its_name(bench: MakeBench, copy: Copy, delta: float) -> None:
    made = bench(n_positions=200)
    folder = copy(made)

    def change(weight: np.ndarray) -> np.ndarray:
        weight[150, 4] += np.float32(delta)
        return weight

    folder.weight("wpe.weight", change)
    report = made.report(folder)
    finding = the_finding(report)
    assert report.diagnosis is not None
    assert report.diagnosis.case == "full length"
    assert finding.cause == "element"
    assert finding.sentence.startswith("wpe.weight[150, 4] is ")


def test_a_match_is_not_diagnosed_but_its_operations_can_be_looked_at(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    report = examine(made.baseline, copy(made).path, Examination(files=False, layers=True), Steps(), made.cache)
    assert report.passed
    assert report.diagnosis is None
    assert report.localisation is not None
    assert report.localisation.first == ""
    assert len(report.localisation.taps) == 3 + 13 * 3 + 2
