"""A conversion that is spoilt on a bench, and what is found out about it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto

from converter.parity.baseline import Baseline
from converter.parity.diagnosis.diagnose import Finding
from converter.parity.examine import examine
from converter.parity.explain import TapCache
from converter.parity.folder_legs import Examination
from converter.parity.legs.steps import Steps
from converter.parity.report.report import Report

# No two dimensions alike, and no head of which 1/√head_dim is the inverse of a layer's number.
SHAPE = {"vocab_size": 61, "n_positions": 24, "n_embd": 15, "n_layer": 3, "n_head": 3, "n_inner": 20}
HEAD, WIDTH = 5, 15


# --- a conversion to spoil --------------------------------------------------------------------------------------------


@dataclass
class Folder:
    """A model folder that may be changed."""

    path: Path

    @property
    def graph_file(self) -> Path:
        return self.path / "onnx" / "model.onnx"

    def graph(self, edit: Callable[[GraphProto], None]) -> None:
        model = onnx.load(self.graph_file, load_external_data=False)
        edit(model.graph)
        onnx.save(model, self.graph_file)

    def weight(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change a tensor where the header of the safetensors file says that it is."""
        data = bytearray((self.path / "onnx" / "model.onnx_data").read_bytes())
        (size,) = struct.unpack("<Q", data[:8])
        entry = next(v for k, v in json.loads(data[8 : 8 + size]).items() if k.removeprefix("transformer.") == name)
        begin, end = (8 + size + at for at in entry["data_offsets"])
        array = np.frombuffer(bytes(data[begin:end]), "<f4").reshape(entry["shape"])
        with np.errstate(all="ignore"):
            changed = np.ascontiguousarray(change(array.copy()), "<f4")
        assert changed.shape == array.shape
        assert changed.tobytes() != array.tobytes()
        data[begin:end] = changed.tobytes()
        (self.path / "onnx" / "model.onnx_data").write_bytes(data)


@dataclass
class Bench:
    """A source, measured, and its sound conversion."""

    baseline: Baseline
    cache: TapCache
    sound: Path

    def report(self, folder: Folder) -> Report:
        """What the logits alone say."""
        return examine(self.baseline, folder.path, Examination(files=False), Steps(), self.cache)


MakeBench = Callable[..., Bench]

Copy = Callable[[Bench], Folder]
Spoil = Callable[[Folder], None]


def findings(report: Report) -> tuple[Finding, ...]:
    assert not report.passed
    assert report.diagnosis is not None
    return report.diagnosis.findings


def the_finding(report: Report) -> Finding:
    found = findings(report)
    assert len(found) == 1, [finding.sentence for finding in found]
    return found[0]
