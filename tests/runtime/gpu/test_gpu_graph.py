"""What a GPU runs is the shipped graph, with less to launch, and with nothing for the processor to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from converter.folder.convert import convert
from converter.runtime.gpu.graph import rewritten
from converter.runtime.opening import load

Save = Callable[..., Path]
ON_THE_PROCESSOR = {"Shape", "Size", "Range", "If", "Loop"}


def operators(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def test_each_layer_adds_and_normalises_at_once(folder: Path) -> None:
    made = rewritten(folder / "onnx/model_fp16.onnx")
    assert made is not None
    graph = onnx.load_from_string(made).graph
    found, layers = operators(graph), 3
    assert (found["GroupQueryAttention"], found["SkipLayerNormalization"]) == (layers, 2 * layers)
    assert (found["LayerNormalization"], found["Attention"]) == (1, 0)  # ln_f sees fewer positions than are added up
    assert not ON_THE_PROCESSOR & found.keys()
    assert {value.name for value in graph.input if "past" not in value.name} == {
        "input_ids", "position_ids", "kept", "seqlens_k", "total_sequence_length"
    }  # fmt: skip


def test_no_weight_is_left_out_or_used_otherwise(folder: Path) -> None:
    file = folder / "onnx/model_fp16.onnx"
    made = rewritten(file)
    assert made is not None
    before, after = onnx.load(file, load_external_data=False).graph, onnx.load_from_string(made).graph

    def used(graph: onnx.GraphProto) -> Counter[str]:
        weights = {weight.name for weight in graph.initializer if "." in weight.name}
        return Counter(name for node in graph.node for name in node.input if name in weights)

    assert used(before) == used(after)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"n_embd": 24}, {"precision": "fp32"}),  # whose attention has no operator for buffers on a GPU
        ({"n_embd": 24}, {"precision": "int8"}),
        ({"n_embd": 12}, {"precision": "fp16"}),  # heads of 4
        ({"n_embd": 24}, {"precision": "fp16", "opset": 21}),
    ],
)
def test_other_graphs_are_refused_in_a_sentence(
    save: Save, tmp_path: Path, captures: None, config: dict[str, int], options: dict[str, object]
) -> None:
    from converter.errors import ConfigError

    convert(save(**config), tmp_path / "out", **options)
    with pytest.raises(ConfigError, match=r"cannot run as CUDA graphs .*; omit --cuda-graphs"):
        load(tmp_path / "out", cuda_graphs=True)


def test_an_untied_head_and_layers_scaled_one_by_one_are_kept(save: Save, tmp_path: Path, captures: None) -> None:
    source = save(n_embd=24, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3)
    convert(source, tmp_path / "out", precision="fp16")
    ids = np.random.default_rng(0).integers(61, size=(2, 9))
    ours, shipped = load(tmp_path / "out", cuda_graphs=True), load(tmp_path / "out")
    np.testing.assert_allclose(ours.logits(ids), shipped.logits(ids), atol=0.01)
