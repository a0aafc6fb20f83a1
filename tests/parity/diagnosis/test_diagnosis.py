"""Every defect is called by its name, and what has no name is not given one.

Defects are edits of a graph or of its weights, made here and by other means than ``converter.parity.mutations``.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import GraphProto, NodeProto, helper, numpy_helper

from converter import convert
from converter.checkpoint.open import open_checkpoint
from converter.errors import CheckError
from converter.parity.baseline import Baseline, measure_source
from converter.parity.diagnosis.diagnose import FLOAT64_LIMIT, Diagnosis, Finding, diagnose
from converter.parity.diagnosis.operations import Operations
from converter.parity.diagnosis.taps import Localisation, graph_taps
from converter.parity.examine import Examination, TapCache, examine
from converter.parity.legs import truth
from converter.parity.legs.cases import Case, Level
from converter.parity.report.report import Report
from converter.parity.verdict.limits import Limits
from converter.weights.ledger import account
from reference.activations import FUNCTIONS

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
        return examine(self.baseline, folder.path, Examination(files=False), lambda step: None, self.cache)


MakeBench = Callable[..., Bench]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> MakeBench:
    """``bench(opset, **config)``: of a random model with no parameter trivially 0 or 1; made once."""
    known: dict[str, Bench] = {}

    def make(opset: int = 23, change: Callable[[Any], None] = lambda model: None, **config: Any) -> Bench:
        key = repr((opset, getattr(change, "__name__", ""), config))
        if key not in known:
            place = tmp_path_factory.mktemp("bench")
            torch.manual_seed(5)
            shape = SHAPE | {"bos_token_id": 0, "eos_token_id": 0} | config
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                change(model)
            model.save_pretrained(place / "source")
            convert(place / "source", place / "sound", opset=opset)
            checkpoint = open_checkpoint(place / "source")
            baseline = measure_source(checkpoint, account(checkpoint), None, Limits(), Level.QUICK, lambda step: None)
            known[key] = Bench(baseline, TapCache(baseline), place / "sound")
        return known[key]

    return make


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Bench], Folder]:
    """A copy of the sound conversion."""

    def make(bench: Bench) -> Folder:
        shutil.copytree(bench.sound, tmp_path / "out", symlinks=True)
        return Folder(tmp_path / "out")

    return make


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


# --- edits ------------------------------------------------------------------------------------------------------------


def node_of(graph: GraphProto, output: str) -> NodeProto:
    return next(node for node in graph.node if output in node.output)


def nodes_of(graph: GraphProto, *op_types: str) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type in op_types]


def put_before(graph: GraphProto, node: NodeProto, *new: NodeProto, **constants: Any) -> None:
    at = list(graph.node).index(node)
    for number, other in enumerate(new):
        graph.node.insert(at + number, other)
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def on_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda folder: folder.weight(name, change)


def on_graph(edit: Callable[[GraphProto], None]) -> Spoil:
    return lambda folder: folder.graph(edit)


def all_of(*spoils: Spoil) -> Spoil:
    def spoil(folder: Folder) -> None:
        for one in spoils:
            one(folder)

    return spoil


def transpose(weight: np.ndarray) -> np.ndarray:
    return weight.T.reshape(weight.shape)


def columns(order: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weight: weight[..., order]


def projection(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return all_of(on_weight(f"{name}.weight", change), on_weight(f"{name}.bias", change))


def blocks(order: tuple[int, int, int]) -> list[int]:
    """The columns of c_attn with q, k and v in another order."""
    return [part * WIDTH + column for part in order for column in range(WIDTH)]


PER_HEAD = [part * WIDTH + head * HEAD + d for head in range(3) for part in range(3) for d in range(HEAD)]
PER_DIMENSION = [part * WIDTH + head * HEAD + d for head in range(3) for d in range(HEAD) for part in range(3)]


def split_into(*parts: str, layer: int = 1) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node_of(graph, f"h.{layer}.attn.q").output[:] = [f"h.{layer}.attn.{part}" for part in parts]

    return on_graph(edit)


def attend_with(*parts: str, layer: int = 1) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node_of(graph, f"h.{layer}.attn.sdpa").input[:3] = [f"h.{layer}.attn.{part}" for part in parts]

    return on_graph(edit)


def layer_from(layer: int, other: int) -> Spoil:
    """All weights of a layer are another one's."""

    def edit(graph: GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [
                name.replace(f"h.{layer}.", f"h.{other}.") if name.endswith((".weight", ".bias")) else name
                for name in node.input
            ]

    return on_graph(edit)


def set_attribute(op_type: str, attribute: str, value: Callable[[int, float], float], *outputs: str) -> Spoil:
    """Another value, by layer and by what it was, in the nodes of these outputs or all of a kind."""

    def edit(graph: GraphProto) -> None:
        for number, node in enumerate(nodes_of(graph, op_type)):
            if not outputs or node.output[0] in outputs:
                held = next(a for a in node.attribute if a.name == attribute)
                held.f = value(number, held.f)

    return on_graph(edit)


def activate(op_type: str, *layers: int, **attributes: Any) -> Spoil:
    def edit(graph: GraphProto) -> None:
        for layer in layers:
            node = node_of(graph, f"h.{layer}.mlp.act")
            new = helper.make_node(op_type, [f"h.{layer}.mlp.c_fc"], [f"h.{layer}.mlp.act"], **attributes)
            node.CopyFrom(new)

    return on_graph(edit)


def only_input(output: str, kept: int) -> Spoil:
    """A sum of two that hands one of them on."""

    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        node.op_type = "Identity"
        node.input[:] = [node.input[kept]]

    return on_graph(edit)


def without_bias(output: str) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        if node.op_type == "LayerNormalization":
            del node.input[2:]
            return
        node.op_type = "Identity"
        node.input[:] = [name for name in node.input if not name.endswith(".bias")]

    return on_graph(edit)


def shifted(output: str, by: int, last: int) -> Spoil:
    """An embedding's ids are off, but for those that would be outside."""

    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        put_before(
            graph, node,
            helper.make_node("Add", [node.input[1], "by"], ["moved"]),
            helper.make_node("Min", ["moved", "highest"], ["below"]),
            helper.make_node("Max", ["below", "zero"], ["ids"]),
            by=by, highest=last, zero=0,
        )  # fmt: skip
        node_of(graph, output).input[1] = "ids"

    return on_graph(edit)


def positions_from(*new: NodeProto, **constants: Any) -> Spoil:
    def edit(graph: GraphProto) -> None:
        put_before(graph, node_of(graph, "wpe"), *new, **constants)
        node_of(graph, "wpe").input[1] = "ids"

    return on_graph(edit)


def queries(graph: GraphProto) -> NodeProto:
    return nodes_of(graph, "LessOrEqual")[0]


def mask_with_query(op_type: str, by: int) -> Spoil:
    def edit(graph: GraphProto) -> None:
        node = queries(graph)
        put_before(graph, node, helper.make_node(op_type, [node.input[1], "by"], ["query"]), by=by)
        queries(graph).input[1] = "query"

    return on_graph(edit)


def no_causal_mask(graph: GraphProto) -> None:
    queries(graph).input[1] = queries(graph).input[0]


def no_padding_mask(graph: GraphProto) -> None:
    node = nodes_of(graph, "And")[0]
    kept = queries(graph).output[0]
    node.input[:] = [kept, kept]


def first_is_hidden(graph: GraphProto) -> None:
    node = nodes_of(graph, "And")[0]
    put_before(
        graph, node,
        helper.make_node("Greater", [queries(graph).input[0], "zero"], ["later"]),
        helper.make_node("And", [node.input[1], "later"], ["token"]),
        zero=0,
    )  # fmt: skip
    nodes_of(graph, "And")[1].input[1] = "token"


def query_counts_from_0(equal_too: bool) -> Spoil:
    """Rows are numbered within what is fed now, as if nothing lay in the cache."""

    def edit(graph: GraphProto) -> None:
        node = queries(graph)
        new = next(n for n in graph.node if n.op_type == "Sub").input[1]
        put_before(
            graph, node,
            helper.make_node("Range", ["zero", new, "one"], ["rows"]),
            helper.make_node("Unsqueeze", ["rows", "axis"], ["query"]),
            zero=0, one=1, axis=[1],
        )  # fmt: skip
        queries(graph).input[1] = "query"
        if equal_too:
            nodes_of(graph, "Equal")[0].input[1] = "query"

    return on_graph(edit)


def head_from(name: str) -> Spoil:
    def edit(graph: GraphProto) -> None:
        nodes_of(graph, "Gemm")[0].input[1] = name

    return on_graph(edit)


def to_half(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float16).astype(np.float32)


def to_bfloat16(weight: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even, on the bits."""
    bits = weight.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def to_float8(weight: np.ndarray) -> np.ndarray:
    """e4m3: four bits of significand, subnormal below 2^-6."""
    unit = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(weight))), -6) - 3)
    return (np.round(weight / unit) * unit).astype(np.float32)


# --- every defect by its name -----------------------------------------------------------------------------------------

LAYER = "h.{}.ln_1 h.{}.attn.c_attn h.{}.attn.c_proj h.{}.ln_2 h.{}.mlp.c_fc h.{}.mlp.c_proj"
SDPA = "h.0.attn.sdpa h.1.attn.sdpa h.2.attn.sdpa"
INVERSE = {"scale_attn_by_inverse_layer_idx": True}

# name → how it is done, the cause, what its sentence says, the operations it is found in, the source's config
DEFECTS: dict[str, tuple[Spoil, str, str, str, dict[str, Any]]] = {
    "square weight transposed": (
        on_weight("h.1.attn.c_proj.weight", transpose), "transposed", r"^h\.1\.attn\.c_proj\.weight is transposed",
        "h.1.attn.c_proj", {}),
    "weight transposed": (
        on_weight("h.0.mlp.c_fc.weight", transpose), "transposed", r"^h\.0\.mlp\.c_fc\.weight", "h.0.mlp.c_fc", {}),
    "c_attn transposed": (
        on_weight("h.2.attn.c_attn.weight", transpose), "transposed", "c_attn", "h.2.attn.c_attn", {}),
    "own head transposed": (
        on_weight("lm_head.weight", transpose), "transposed", r"^lm_head\.weight", "logits",
        {"tie_word_embeddings": False}),
    **{
        f"{told} in the weights": (
            projection("h.1.attn.c_attn", columns(blocks(order))), "order", f"computes with {told} in their places",
            "h.1.attn.c_attn", {})
        for order, told in {(1, 0, 2): "k, q, v", (0, 2, 1): "q, v, k", (2, 1, 0): "v, k, q", (1, 2, 0): "k, v, q",
                            (2, 0, 1): "v, q, k"}.items()
    },
    "q and v swapped at the split": (
        split_into("v", "k", "q"), "order", "computes with v, k, q", "h.1.attn.q h.1.attn.v", {}),
    "rotated at the split": (
        split_into("v", "q", "k"), "order", "computes with k, v, q", "h.1.attn.q h.1.attn.k h.1.attn.v", {}),
    "q and k swapped at the attention": (
        attend_with("k", "q", "v"), "order", "computes with k, q, v", "h.1.attn.sdpa", {}),
    "rotated at the attention": (
        attend_with("v", "q", "k", layer=0), "order", "computes with v, q, k", "h.0.attn.sdpa", {}),
    "q, k, v side by side for each head": (
        projection("h.1.attn.c_attn", columns(PER_HEAD)), "interleaved", "for each head", "h.1.attn.c_attn", {}),
    "q, k, v side by side for each dimension": (
        projection("h.1.attn.c_attn", columns(PER_DIMENSION)), "interleaved", "for each dimension",
        "h.1.attn.c_attn", {}),
    "side by side for each head, taken apart wrongly": (
        projection("h.1.attn.c_attn", columns([int(i) for i in np.argsort(PER_HEAD)])), "interleaved",
        "for each head", "h.1.attn.c_attn", {}),
    "a layer with another one's weights": (
        layer_from(0, 2), "layers", "layer 0 computes with the weights of layer 2", LAYER.replace("{}", "0"), {}),
    "epsilon in one place": (
        set_attribute("LayerNormalization", "epsilon", lambda i, e: 1e-6, "h.1.ln_1"), "epsilon",
        r"^the epsilon in h\.1\.ln_1 is 1e-06; the source has 1e-05$", "h.1.ln_1", {}),
    "epsilon at the end": (
        set_attribute("LayerNormalization", "epsilon", lambda i, e: 2.5e-3, "ln_f"), "epsilon",
        r"in ln_f is 0\.0025;", "ln_f", {}),
    "no epsilon at all": (
        set_attribute("LayerNormalization", "epsilon", lambda i, e: 0.0, "h.0.ln_2"), "epsilon",
        r"is (0|-?\d(\.\d+)?e-\d\d);", "h.0.ln_2", {}),
    "large epsilon everywhere": (
        set_attribute("LayerNormalization", "epsilon", lambda i, e: 0.5), "epsilon", r"and 6 more is 0\.5;",
        "h.0.ln_1 h.0.ln_2 h.1.ln_1 h.1.ln_2 h.2.ln_1 h.2.ln_2 ln_f", {}),
    "erf for tanh in one layer": (
        activate("Gelu", 2), "activation", r"in h\.2\.mlp\.act is gelu; the source has gelu_new", "h.2.mlp.act", {}),
    "relu in all layers": (
        activate("Relu", 0, 1, 2), "activation", "2 more is relu; the source has gelu_new",
        "h.0.mlp.act h.1.mlp.act h.2.mlp.act", {}),
    "tanh for erf": (
        activate("Gelu", 1, approximate="tanh"), "activation", "is gelu_new; the source has gelu$", "h.1.mlp.act",
        {"activation_function": "gelu"}),
    "no activation": (activate("Identity", 0), "activation", "is linear; the source", "h.0.mlp.act", {}),
    "sigmoid": (activate("Sigmoid", 0), "activation", "is sigmoid; the source", "h.0.mlp.act", {}),
    "leaky for a learned slope": (
        activate("LeakyRelu", 1, alpha=0.01), "activation", "is leaky_relu; the source has prelu", "h.1.mlp.act",
        {"activation_function": "prelu"}),
    "scale missing": (
        set_attribute("Attention", "scale", lambda i, s: 1.0), "scale", "is missing in .* and 2 more", SDPA, {}),
    "scale missing in one layer": (
        set_attribute("Attention", "scale", lambda i, s: 1.0, "h.2.attn.sdpa"), "scale", r"is missing in h\.2\.",
        "h.2.attn.sdpa", {}),
    "scale twice": (
        set_attribute("Attention", "scale", lambda i, s: 1 / HEAD), "scale", "is applied twice in", SDPA, {}),
    "scale where the source has none": (
        set_attribute("Attention", "scale", lambda i, s: HEAD**-0.5), "scale",
        "is there, though the source sets scale_attn_weights to false", SDPA, {"scale_attn_weights": False}),
    "divided by the layer's number": (
        set_attribute("Attention", "scale", lambda i, s: s / (i + 1)), "inverse_layer",
        "is divided by the layer's number in .*; the source's config does not$", "h.1.attn.sdpa h.2.attn.sdpa", {}),
    "not divided by the layer's number": (
        set_attribute("Attention", "scale", lambda i, s: s * (i + 1)), "inverse_layer",
        "is not divided by the layer's number in .*; the source's config asks for it$",
        "h.1.attn.sdpa h.2.attn.sdpa", INVERSE),
    "a position sees the next one": (mask_with_query("Add", 1), "mask", "sees the next one", SDPA, {}),
    "a position does not see the one before": (
        mask_with_query("Sub", 2), "mask", "does not see the one before it", SDPA, {}),
    "no causal mask": (on_graph(no_causal_mask), "mask", "there is no causal mask in", SDPA, {}),
    "padding seen": (on_graph(no_padding_mask), "mask", "padding is not masked in", SDPA, {}),
    "first position hidden": (on_graph(first_is_hidden), "mask", "the first position cannot be seen in", SDPA, {}),
    "cache not counted": (query_counts_from_0(False), "mask", "does not count the tokens in the cache", SDPA, {}),
    **{
        f"positions {by:+d}": (
            shifted("wpe", by, SHAPE["n_positions"] - 1), "position", f"^wpe is read {told}$", "wpe", {})
        for by, told in {1: "1 row too far", -1: "1 row too early", 2: "2 rows too far", -2: "2 rows too early"}.items()
    },
    "tokens +1": (
        shifted("wte", 1, SHAPE["vocab_size"] - 1), "position", "^wte is read 1 row too far$", "wte", {}),
    "positions count the padding": (
        positions_from(
            helper.make_node("Shape", ["attention_mask"], ["total"], start=1),
            helper.make_node("Shape", ["input_ids"], ["new"], start=1),
            helper.make_node("Squeeze", ["total"], ["end"]),
            helper.make_node("Sub", ["total", "new"], ["past"]),
            helper.make_node("Squeeze", ["past"], ["begin"]),
            helper.make_node("Range", ["begin", "end", "one"], ["row"]),
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Expand", ["row", "shape"], ["ids"]), one=1),
        "position", "positions are counted over the padding too", "wpe", {}),
    "positions start again": (
        positions_from(
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Shape", ["input_ids"], ["new"], start=1),
            helper.make_node("Squeeze", ["new"], ["end"]),
            helper.make_node("Range", ["zero", "end", "one"], ["row"]),
            helper.make_node("Expand", ["row", "shape"], ["ids"]), zero=0, one=1),
        "position", "positions start again at 0 in every chunk", "wpe", {}),
    "positions all 0": (
        positions_from(helper.make_node("Mul", ["position_ids", "zero"], ["ids"]), zero=0),
        "position", "every token is at position 0", "wpe", {}),
    "head tied though the source's is not": (
        head_from("wte.weight"), "head", r"tied to wte\.weight; the source's is lm_head\.weight", "logits",
        {"tie_word_embeddings": False}),
    "head off by a row": (
        on_weight("lm_head.weight", lambda w: np.roll(w, 1, axis=0)), "head", r"lm_head\.weight shifted by 1 row",
        "logits", {"tie_word_embeddings": False}),
    **{
        f"{output} without {left}": (
            only_input(output, kept), "left_out", rf"^{re.escape(left)} is not added in {re.escape(output)}$",
            output, {})
        for output, kept, left in (
            ("drop", 0, "wpe"), ("drop", 1, "wte"),
            ("h.0.attn_residual", 0, "h.0.attn.c_proj"), ("h.0.attn_residual", 1, "drop"),
            ("h.1.attn_residual", 1, "h.0.mlp_residual"),
            ("h.2.mlp_residual", 0, "h.2.mlp.c_proj"), ("h.2.mlp_residual", 1, "h.2.attn_residual"),
        )
    },
    **{
        f"no bias in {output}": (
            without_bias(output), "bias", rf"^{re.escape(output)}\.bias is left out$", output, {})
        for output in ("h.1.ln_1", "h.1.attn.c_attn", "h.0.attn.c_proj", "h.2.ln_2", "h.0.mlp.c_fc", "h.2.mlp.c_proj",
                       "ln_f")
    },
    "float16": (
        on_weight("h.1.mlp.c_proj.weight", to_half), "rounded", r"^h\.1\.mlp\.c_proj\.weight was rounded to float16$",
        "h.1.mlp.c_proj", {}),
    "bfloat16": (
        on_weight("h.1.attn.c_attn.weight", to_bfloat16), "rounded", "c_attn.weight was rounded to bfloat16$",
        "h.1.attn.c_attn", {}),
    "float8": (
        on_weight("h.0.mlp.c_fc.weight", to_float8), "rounded", "c_fc.weight was rounded to float8$",
        "h.0.mlp.c_fc", {}),
    "weight and bias rounded": (
        projection("h.1.mlp.c_fc", to_half), "rounded", "c_fc.weight and its bias were rounded to float16$",
        "h.1.mlp.c_fc", {}),
    "bias rounded": (
        on_weight("h.1.mlp.c_fc.bias", to_bfloat16), "rounded", r"^h\.1\.mlp\.c_fc\.bias was rounded to bfloat16$",
        "h.1.mlp.c_fc", {}),
    "normalisation rounded": (
        projection("h.1.ln_2", to_bfloat16), "rounded", r"^h\.1\.ln_2\.weight and its bias were", "h.1.ln_2", {}),
    "tied embedding rounded": (
        on_weight("wte.weight", to_half), "rounded", r"^wte\.weight was rounded to float16$", "wte logits", {}),
    "positions rounded": (
        on_weight("wpe.weight", to_bfloat16), "rounded", r"^wpe\.weight was rounded to bfloat16$", "wpe", {}),
    "projection scaled": (
        on_weight("h.1.mlp.c_fc.weight", lambda w: w * np.float32(1.001)), "scaled",
        r"^h\.1\.mlp\.c_fc\.weight is 1\.00[01]\d* times the source's$", "h.1.mlp.c_fc", {}),
    "embedding scaled": (
        on_weight("wpe.weight", lambda w: w * np.float32(-2)), "scaled", r"^wpe\.weight is -2 times", "wpe", {}),
    "head scaled": (
        on_weight("lm_head.weight", lambda w: w / 2), "scaled", r"^lm_head\.weight is 0\.5 times", "logits",
        {"tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_called_by_its_name_and_found_where_it_is(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, cause, sentence, operations, config = DEFECTS[name]
    made = bench(**config)
    folder = copy(made)
    spoil(folder)
    report = made.report(folder)
    finding = the_finding(report)
    assert finding.cause == cause, finding.sentence
    assert re.search(sentence, finding.sentence)
    assert list(finding.operations) == operations.split()
    assert finding.left < 0.01 * finding.error
    assert finding.sentence in report.verdict
    assert report.localisation is not None
    assert report.localisation.first == finding.operations[0]


@pytest.mark.parametrize("name", [
    "square weight transposed", "rotated at the split", "epsilon in one place", "relu in all layers",
    "a position sees the next one", "cache not counted", "positions start again", "no bias in h.1.attn.c_attn",
    "a layer with another one's weights", "h.0.attn_residual without drop",
])  # fmt: skip
def test_a_graph_of_an_old_opset_is_understood_too(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, cause, sentence, operations, config = DEFECTS[name]
    made = bench(17, **config)
    folder = copy(made)
    spoil(folder)
    finding = the_finding(made.report(folder))
    assert finding.cause == cause
    assert re.search(sentence, finding.sentence)
    assert list(finding.operations) == operations.split()


def test_in_an_old_opset_a_scale_is_a_multiplication(bench: MakeBench, copy: Copy) -> None:
    made = bench(17)
    folder = copy(made)

    def edit(graph: GraphProto) -> None:
        scores = next(n for n in nodes_of(graph, "Mul") if n.output[0].startswith("h.2.attn.sdpa"))
        scores.op_type = "Identity"
        del scores.input[1:]

    folder.graph(edit)
    finding = the_finding(made.report(folder))
    assert finding.sentence == "the attention scale 1/√head_dim is missing in h.2.attn.sdpa"


@pytest.mark.parametrize("name", [
    "no bias in ln_f", "epsilon at the end", "no activation", "positions -1", "a position sees the next one",
    "drop without wpe", "tied embedding rounded", "scale missing",
])  # fmt: skip
def test_a_model_of_one_layer_is_understood_too(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, cause, _, operations, config = DEFECTS[name]
    made = bench(n_layer=1, n_head=5, **config)
    folder = copy(made)
    spoil(folder)
    finding = the_finding(made.report(folder))
    assert finding.cause == cause
    assert set(finding.operations) == {tap for tap in operations.split() if not re.match(r"h\.[12]", tap)}


def test_a_cause_that_could_be_another_in_one_layer_is_the_one_that_explains_all(bench: MakeBench, copy: Copy) -> None:
    """With heads of 4, 1/√4 is what the second layer's number gives too."""
    made = bench(n_embd=12)
    for value, cause in ((lambda i, s: s / (i + 1), "inverse_layer"), (lambda i, s: s / 2, "scale")):
        folder = copy(made)
        set_attribute("Attention", "scale", value)(folder)
        assert the_finding(made.report(folder)).cause == cause
        shutil.rmtree(folder.path)


# --- one number -------------------------------------------------------------------------------------------------------

PARAMETERS = (
    "wte.weight", "wpe.weight", "h.1.ln_1.weight", "h.1.ln_1.bias", "h.1.attn.c_attn.weight", "h.1.attn.c_attn.bias",
    "h.1.attn.c_proj.weight", "h.1.attn.c_proj.bias", "h.1.ln_2.weight", "h.1.ln_2.bias", "h.1.mlp.c_fc.weight",
    "h.1.mlp.c_fc.bias", "h.1.mlp.c_proj.weight", "h.1.mlp.c_proj.bias", "ln_f.weight", "ln_f.bias",
)  # fmt: skip


@pytest.mark.parametrize(("name", "delta"), [*zip(PARAMETERS, cycle((3e-4, -0.03, 20.0)), strict=False)])
def test_one_changed_number_is_found_with_its_place_and_both_values(
    bench: MakeBench, copy: Copy, name: str, delta: float
) -> None:
    made = bench()
    folder = copy(made)
    rng = np.random.default_rng([*name.encode(), int(abs(delta) * 1e4)])
    at: list[int] = []
    values: list[float] = []

    def change(weight: np.ndarray) -> np.ndarray:
        at[:] = [int(rng.integers(size)) for size in weight.shape]
        if "c_attn" in name:  # the keys' biases have no say: softmax drops what all keys share
            at[-1] %= WIDTH
        before = float(weight[tuple(at)])
        weight[tuple(at)] += np.float32(delta)
        values[:] = before, float(weight[tuple(at)])
        return weight

    folder.weight(name, change)
    finding = the_finding(made.report(folder))
    assert finding.cause == "element"
    assert finding.sentence.startswith(f"{name}{at} is ")
    found = re.search(r" is (\S+); the source has ([^\s,]+)(, [+-][\d.e+]+ ?%)?$", finding.sentence)
    assert found, finding.sentence
    assert float(found[1]) == pytest.approx(values[1], rel=1e-4)
    assert float(found[2]) == pytest.approx(values[0], rel=1e-5)


def test_a_number_that_was_0_has_no_percentage(bench: MakeBench, copy: Copy) -> None:
    def with_a_zero(model: Any) -> None:
        model.transformer.h[0].mlp.c_fc.bias[4] = 0.0

    made = bench(change=with_a_zero)
    folder = copy(made)
    folder.weight("h.0.mlp.c_fc.bias", lambda bias: np.where(np.arange(20) == 4, np.float32(0.5), bias))
    assert the_finding(made.report(folder)).sentence == "h.0.mlp.c_fc.bias[4] is 0.5; the source has 0"


def test_a_changed_slope_of_a_learned_activation_is_found(bench: MakeBench, copy: Copy) -> None:
    made = bench(activation_function="prelu")
    folder = copy(made)
    folder.weight("h.1.mlp.act.weight", lambda slope: slope + np.float32(0.01))
    finding = the_finding(made.report(folder))
    assert finding.operations == ("h.1.mlp.act",)
    assert finding.cause == "element"


def test_a_number_of_the_embedding_that_no_text_feeds_shows_in_the_head_alone(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    fed = {int(token) for case in made.baseline.cases for token in case.input_ids.flat}
    unfed = min(set(range(61)) - fed)
    folder = copy(made)

    def change(weight: np.ndarray) -> np.ndarray:
        weight[unfed, 3] += np.float32(0.01)
        return weight

    folder.weight("wte.weight", change)
    finding = the_finding(made.report(folder))
    assert finding.operations == ("logits",)
    assert finding.sentence.startswith(f"wte.weight[{unfed}, 3] is ")


# --- activations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [*FUNCTIONS, "prelu"])
def test_every_activation_that_stands_for_another_is_named(bench: MakeBench, wanted: str) -> None:
    made = bench(**({"activation_function": "prelu"} if wanted == "prelu" else {}))
    (case, *_) = made.baseline.cases
    ledger = replace(made.baseline.ledger, config=replace(made.baseline.ledger.config, activation_function=wanted))
    x = torch.randn(1, 24, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    slope = made.baseline.ledger.weights.get("h.0.mlp.act.weight")
    assert x.abs().max() > 10  # so that those that are cut off differ
    expected = FUNCTIONS[wanted](x) if slope is None else torch.where(x < 0, x * float(slope.memmap()[0]), x)
    size = expected.square().mean().sqrt()
    told_apart = 0
    for name, function in FUNCTIONS.items():
        found = function(x)
        given = Operations(ledger, case, {"h.0.mlp.c_fc": x.numpy(), "h.0.mlp.act": found.numpy()})
        assert given.names() == ["h.0.mlp.act"]
        diagnosis = diagnose(given, FLOAT64_LIMIT, Localisation("prefill", "", (), ()))
        if (found - expected).abs().max() <= FLOAT64_LIMIT * size:
            assert diagnosis.findings == (), name
            continue
        told_apart += 1
        (finding,) = diagnosis.findings
        assert finding.cause == "activation", name
        named = re.fullmatch(rf"the activation in h\.0\.mlp\.act is (\w+); the source has {wanted}", finding.sentence)
        assert named
        torch.testing.assert_close(FUNCTIONS[named[1]](x), found, rtol=1e-8, atol=1e-8)
    assert told_apart >= len(FUNCTIONS) - 7


# --- several at once --------------------------------------------------------------------------------------------------


def test_several_defects_are_found_in_the_order_in_which_data_meets_them(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    parts = ("positions +1", "epsilon in one place", "no bias in h.2.mlp.c_proj", "erf for tanh in one layer",
             "weight transposed")  # fmt: skip
    for part in parts:
        DEFECTS[part][0](folder)
    report = made.report(folder)
    found = findings(report)
    assert [finding.cause for finding in found] == ["position", "transposed", "epsilon", "activation", "bias"]
    assert [finding.operations for finding in found] == [
        ("wpe",), ("h.0.mlp.c_fc",), ("h.1.ln_1",), ("h.2.mlp.act",), ("h.2.mlp.c_proj",)
    ]  # fmt: skip
    assert report.verdict.endswith("wpe is read 1 row too far (and 4 more)")


def test_two_epsilons_are_two_findings(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    set_attribute("LayerNormalization", "epsilon", lambda i, e: 1e-3, "h.0.ln_1", "h.2.ln_1")(folder)
    set_attribute("LayerNormalization", "epsilon", lambda i, e: 1e-4, "h.1.ln_1")(folder)
    found = findings(made.report(folder))
    assert [finding.operations for finding in found] == [("h.0.ln_1", "h.2.ln_1"), ("h.1.ln_1",)]
    assert "is 0.001;" in found[0].sentence
    assert "is 0.0001;" in found[1].sentence


def test_a_defect_in_every_projection_is_named_for_each(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    names = [f"h.{i}.{part}.weight" for i in range(3) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc")]
    for name in names:
        folder.weight(name, to_bfloat16)
    assert [f.sentence for f in findings(made.report(folder))] == [f"{name} was rounded to bfloat16" for name in names]


# --- what has no name -------------------------------------------------------------------------------------------------


def noise(weight: np.ndarray) -> np.ndarray:
    return weight + np.random.default_rng(0).normal(size=weight.shape).astype(np.float32) * np.float32(0.01)


def two_numbers(weight: np.ndarray) -> np.ndarray:
    weight[[2, 9], 4] += np.float32([0.3, -0.2])
    return weight


def through(output: str, *made: tuple[str, list[str]], **constants: Any) -> Spoil:
    """What an operation puts out goes through others first; ``x`` is what it put out."""

    def edit(graph: GraphProto) -> None:
        node = node_of(graph, output)
        at = list(graph.node).index(node)
        node.output[list(node.output).index(output)] = "x"
        for number, (op_type, inputs) in enumerate(made):
            last = number == len(made) - 1
            new = helper.make_node(op_type, inputs, [output if last else f"x{number + 1}"])
            graph.node.insert(at + 1 + number, new)
        for name, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))

    return on_graph(edit)


UNNAMED: dict[str, tuple[Spoil, str]] = {
    "transposed without its bias": (
        all_of(on_weight("h.1.mlp.c_fc.weight", transpose), without_bias("h.1.mlp.c_fc")), "h.1.mlp.c_fc"),
    "noise on a weight": (on_weight("h.1.attn.c_proj.weight", noise), "h.1.attn.c_proj"),
    "noise on a bias": (on_weight("h.1.attn.c_proj.bias", noise), "h.1.attn.c_proj"),
    "noise on a gain": (on_weight("h.1.ln_2.weight", noise), "h.1.ln_2"),
    "noise on the positions": (on_weight("wpe.weight", noise), "wpe"),
    "two numbers of a column": (on_weight("h.0.mlp.c_fc.weight", two_numbers), "h.0.mlp.c_fc"),
    "two rows swapped": (on_weight("h.0.mlp.c_fc.weight", lambda w: w[[1, 0, *range(2, 15)]]), "h.0.mlp.c_fc"),
    "a gain scaled": (on_weight("h.2.ln_1.weight", lambda w: w * np.float32(1.01)), "h.2.ln_1"),
    "a bias doubled": (on_weight("h.2.mlp.c_proj.bias", lambda b: b * 2), "h.2.mlp.c_proj"),
    "another activation altogether": (activate("Abs", 1), "h.1.mlp.act"),
    "a leaky slope of its own": (activate("LeakyRelu", 1, alpha=0.3), "h.1.mlp.act"),
    "a scale of its own": (
        set_attribute("Attention", "scale", lambda i, s: s * 0.9, "h.1.attn.sdpa"), "h.1.attn.sdpa"),
    "a residual halved": (through("h.1.attn_residual", ("Mul", ["x", "half"]), half=0.5), "h.1.attn_residual"),
    "queries normalised": (through("h.1.attn.q", ("Tanh", ["x"])), "h.1.attn.q"),
    "logits capped": (
        through("logits", ("Div", ["x", "cap"]), ("Tanh", ["x1"]), ("Mul", ["x2", "cap"]), cap=30.0), "logits"),
    "embedding scaled by its width": (
        through("drop", ("Mul", ["x", "root"]), root=15**0.5), "drop"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNNAMED)
def test_a_defect_without_a_name_is_said_to_be_unexplained_where_it_is(bench: MakeBench, copy: Copy, name: str) -> None:
    spoil, tap = UNNAMED[name]
    made = bench()
    folder = copy(made)
    spoil(folder)
    report = made.report(folder)
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("unexplained", (tap,)), finding.sentence
    assert finding.sentence.startswith(f"{tap} (")
    assert "does not put out what its input and weights give" in finding.sentence
    assert re.match(r"off by \S+ of its size at most$", finding.evidence)
    assert report.localisation is not None
    assert report.localisation.first == tap
    json.dumps(report.to_dict())


def test_an_operator_that_float64_lacks_is_said_to_lack_float64(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    activate("Elu", 1)(folder)
    with pytest.raises(CheckError, match="Elu") as error:
        made.report(folder)
    assert "float64" in str(error.value).replace(str(folder.path), "")


def test_an_unexplained_defect_does_not_hide_one_that_has_a_name(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    UNNAMED["a gain scaled"][0](folder)
    DEFECTS["no bias in h.0.mlp.c_fc"][0](folder)
    assert [finding.cause for finding in findings(made.report(folder))] == ["bias", "unexplained"]


def test_a_mask_that_forgets_the_cache_altogether_is_called_by_its_name(bench: MakeBench, copy: Copy) -> None:
    """As an exporter would do it: a row is numbered within what is fed, and does not even see its own column."""
    made = bench()
    folder = copy(made)
    query_counts_from_0(True)(folder)
    finding = the_finding(made.report(folder))
    assert finding.cause == "mask"
    assert "does not count the tokens in the cache" in finding.sentence


# --- what is no number ------------------------------------------------------------------------------------------------


def spoilt_number(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(weight: np.ndarray) -> np.ndarray:
        weight.flat[7] = value
        return weight

    return change


@pytest.mark.parametrize(
    ("name", "tap", "value"),
    [
        ("h.1.mlp.c_fc.weight", "h.1.mlp.c_fc", np.nan),
        ("h.1.mlp.c_fc.weight", "h.1.mlp.c_fc", np.inf),
        ("h.1.mlp.c_fc.bias", "h.1.mlp.c_fc", -np.inf),
        ("h.2.ln_1.weight", "h.2.ln_1", np.nan),
        ("h.0.attn.c_proj.bias", "h.0.attn.c_proj", np.inf),
        ("wpe.weight", "wpe", np.nan),
    ],
)
def test_the_operation_that_brings_nan_is_blamed_and_none_after_it(
    bench: MakeBench, copy: Copy, name: str, tap: str, value: float
) -> None:
    made = bench()
    folder = copy(made)
    folder.weight(name, spoilt_number(value))
    report = made.report(folder)
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("overflow", (tap,))
    assert re.match(
        rf"{re.escape(tap)} is (NaN|infinite) in column 7; its largest value should be \d", finding.sentence
    )
    assert report.localisation is not None
    assert report.localisation.first == tap
    json.dumps(report.to_dict())


def test_nan_in_a_row_that_only_the_head_reads_is_found_there(bench: MakeBench, copy: Copy) -> None:
    made = bench(tie_word_embeddings=False)
    folder = copy(made)
    folder.weight("lm_head.weight", spoilt_number(np.nan))
    finding = the_finding(made.report(folder))
    assert (finding.cause, finding.operations) == ("overflow", ("logits",))
    assert "in column 0" in finding.sentence


def test_what_came_before_a_nan_is_still_explained(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    DEFECTS["positions -1"][0](folder)
    folder.weight("h.1.mlp.c_fc.weight", spoilt_number(np.nan))
    assert [finding.cause for finding in findings(made.report(folder))] == ["position", "overflow"]


# --- float32 alone ----------------------------------------------------------------------------------------------------


def test_digits_that_only_float32_loses_are_not_given_a_meaning(bench: MakeBench, copy: Copy) -> None:
    made = bench()
    folder = copy(made)
    far = 3e5
    through("h.1.ln_2", ("Add", ["x", "far"]), ("Sub", ["x1", "far"]), far=far)(folder)
    report = made.report(folder)
    faults = {leg.name: leg.fault for leg in report.legs if leg.fault}
    assert list(faults) == ["ONNX Runtime float32"]
    finding = the_finding(report)
    assert (finding.cause, finding.operations) == ("unexplained", ("h.1.ln_2",))


def test_a_value_that_float16_cannot_hold_is_said_to_be_the_reason(bench: MakeBench, copy: Copy) -> None:
    def large(model: Any) -> None:
        model.transformer.h[1].mlp.c_fc.bias[3] = 1e5

    made = bench(change=large, activation_function="relu")
    folder = copy(made)

    def narrow(graph: GraphProto) -> None:
        node = node_of(graph, "h.1.mlp.c_fc")
        at = list(graph.node).index(node)
        node.output[0] = "x"
        graph.node.insert(at + 1, helper.make_node("Cast", ["x"], ["half"], to=onnx.TensorProto.FLOAT16))
        graph.node.insert(at + 2, helper.make_node("Cast", ["half"], ["h.1.mlp.c_fc"], to=onnx.TensorProto.FLOAT))

    folder.graph(narrow)
    report = made.report(folder)
    finding = the_finding(report)
    assert finding.cause == "overflow"
    assert finding.operations == ("h.1.mlp.c_fc",)
    assert re.search(r"infinite in column 3; .* 1e\+05, more than the 65504 that float16 holds", finding.sentence)
    assert report.diagnosis is not None
    assert report.diagnosis.maxima["h.1"] > 65504 > report.diagnosis.maxima["h.0"]


# --- the source's side ------------------------------------------------------------------------------------------------


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
    baseline = measure_source(checkpoint, made.baseline.ledger, None, Limits(), Level.QUICK, lambda step: None)
    report = examine(baseline, copy(made).path, Examination(files=False), lambda step: None)
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
    baseline = measure_source(checkpoint, made.baseline.ledger, None, Limits(), Level.QUICK, lambda step: None)
    report = examine(baseline, copy(made).path, Examination(files=False), lambda step: None)
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
    (case,) = (case for case in made.baseline.cases if case.keep)
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
    report = examine(
        made.baseline, copy(made).path, Examination(files=False, layers=True), lambda step: None, made.cache
    )
    assert report.passed
    assert report.diagnosis is None
    assert report.localisation is not None
    assert report.localisation.first == ""
    assert len(report.localisation.taps) == 3 + 13 * 3 + 2
