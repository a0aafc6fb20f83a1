"""What an ONNX file takes is told by names, types and shapes; what cannot be told is said."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from converter.errors import ModelFolderError
from converter.runtime.exports.interface import Interface, read_interface
from reference.config import GPT2Config

CONFIG = GPT2Config(vocab_size=61, n_positions=24, n_embd=12, n_layer=2, n_head=3)
INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
IDS, MASK, TOTAL = ["b", "s"], ["b", "t"], ["b", 3, "p", 4]

Values = dict[str, tuple[int, list]]


def write(file: Path, inputs: Values, outputs: Values) -> Path:
    """A graph with these inputs and outputs, which computes nothing."""

    def values(given: Values) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in given.items()]

    nodes = [helper.make_node("Unknown", list(inputs), list(outputs))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values(inputs), values(outputs))), file)
    return file


def cache(pattern: str, shape: list | None = None, layers: int = 2) -> Values:
    """The values of a cache; the pattern has the layer and the part, or the layer alone."""
    names = [pattern.format(i=i, part=part) for i in range(layers) for part in ("key", "value")]
    return dict.fromkeys(names, (FLOAT, shape or TOTAL))


LOGITS: Values = {"logits": (FLOAT, ["b", "s", 61])}
PLAIN: Values = {"input_ids": (INT, IDS), "attention_mask": (INT, MASK), "position_ids": (INT, IDS)}

# inputs, outputs → whose file it is, the inputs that are not the cache, the number of the cache's values.
KNOWN: dict[str, tuple[Values, Values, str, int]] = {
    "Optimum with cache": (
        PLAIN | cache("past_key_values.{i}.{part}"),
        LOGITS | cache("present.{i}.{part}"),
        "Optimum, with cache",
        4,
    ),
    "Optimum merged": (
        PLAIN | cache("past_key_values.{i}.{part}") | {"use_cache_branch": (BOOL, [1])},
        LOGITS | cache("present.{i}.{part}"),
        "Optimum, merged",
        4,
    ),
    "no cache": (PLAIN, LOGITS, "without cache", 0),
    "ids alone, of any name": ({"x": (INT, IDS)}, {"y": (FLOAT, ["b", "s", 61])}, "without cache", 0),
    "names of nothing that is printed": (
        PLAIN | cache("a\n{i}{part}"),
        LOGITS | cache("b\n{i}{part}"),
        "with cache",
        4,
    ),
    "the old exporter's names": ({"input.1": (INT, IDS)}, {"1234": (FLOAT, ["b", "s", 61])}, "without cache", 0),
    "transformers' decode": (
        {"input_ids": (INT, ["b", 1]), "position_ids": (INT, ["b", 1])}
        | cache("input.past_key_values.layers.{i}.{part}s"),
        {"logits": (FLOAT, ["b", 1, 61])} | cache("output.past_key_values.layers.{i}.{part}s"),
        "transformers' OnnxExporter, decode",
        4,
    ),
    "convert_to_onnx": (
        PLAIN | cache("past_{i}", [2, "b", 3, "p", 4]),
        LOGITS | cache("present_{i}", [2, "b", 3, "t", 4]),
        "onnxruntime's convert_to_onnx",
        2,
    ),
    "a cache of other names": (
        {"input_ids": (INT, IDS)} | cache("mem_{i}_{part}"),
        LOGITS | cache("new_mem_{i}_{part}"),
        "with cache",
        4,
    ),
}


@pytest.mark.parametrize(("inputs", "outputs", "exporter", "cached"), KNOWN.values(), ids=KNOWN)
def test_the_file_of_a_known_exporter_is_known(
    tmp_path: Path, inputs: Values, outputs: Values, exporter: str, cached: int
) -> None:
    found = read_interface(write(tmp_path / "model.onnx", inputs, outputs), CONFIG)
    assert (found.exporter, len(found.pasts), len(found.presents)) == (exporter, cached, cached)
    assert found.ids.name == next(iter(inputs))
    assert found.logits.name == next(iter(outputs))
    for role, value in (("attention_mask", found.mask), ("position_ids", found.positions)):
        assert (value.name if value else None) == (role if role in inputs else None)


def read(tmp_path: Path, inputs: Values, outputs: Values = LOGITS, **given: str) -> Interface:
    return read_interface(write(tmp_path / "model.onnx", inputs, outputs), CONFIG, given)


def test_what_no_name_tells_the_user_says(tmp_path: Path) -> None:
    inputs: Values = {"x": (INT, IDS), "m": (INT, MASK), "p": (INT, IDS)}
    with pytest.raises(
        ModelFolderError, match=r"the input x cannot be told; it takes x \(int64 \[b, s\]\), m .* --inputs"
    ):
        read(tmp_path, inputs)
    found = read(tmp_path, inputs, x="input_ids", m="attention_mask", p="position_ids")
    assert (found.ids.name, found.mask and found.mask.name, found.positions and found.positions.name) == ("x", "m", "p")


def test_a_role_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="there is no role tokens; the roles are input_ids, "):
        read(tmp_path, PLAIN, input_ids="tokens")


@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [
        (PLAIN | {"cumulative_length": (INT, [])}, LOGITS, "the input cumulative_length cannot be told"),
        (
            PLAIN | {"another_mask": (INT, MASK)},
            LOGITS,
            "attention_mask and another_mask both look like attention_mask",
        ),
        ({"attention_mask": (INT, MASK)}, LOGITS, "it has no input_ids"),
        (PLAIN, {"last_hidden_state": (FLOAT, ["b", "s", 12])}, "none of its outputs is logits over 61 tokens"),
        (PLAIN, {"a": (FLOAT, ["b", "s", 61]), "b": (FLOAT, ["b", "s", 61])}, "its logits cannot be told"),
        (PLAIN | cache("past_key_values.{i}.{part}"), LOGITS, "its cache has 4 inputs and 0 outputs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_interface_is_refused_and_says_what_was_found(
    tmp_path: Path, inputs: Values, outputs: Values, why: str
) -> None:
    with pytest.raises(ModelFolderError, match="has an unknown interface, as ") as refused:
        read(tmp_path, inputs, outputs)
    said = str(refused.value)
    assert why in said
    assert "it takes " in said
    assert "--inputs " in said
    assert "\n" not in said


def test_a_digit_that_is_no_number_names_a_dimension(tmp_path: Path) -> None:
    file = write(tmp_path / "model.onnx", {"input_ids": (INT, ["²", "s"])}, LOGITS)
    assert read_interface(file, CONFIG).rows is None


def test_dimensions_that_are_fixed_are_known_even_as_text(tmp_path: Path) -> None:
    found = read(tmp_path, {"input_ids": (INT, ["2", 5])}, {"logits": (FLOAT, [2, 5, 61])})
    assert (found.rows, found.tokens, found.last_only) == (2, 5, False)
    assert read(tmp_path, PLAIN, {"logits": (FLOAT, ["b", 1, 61])}).last_only
    assert read(tmp_path, PLAIN, {"logits": (FLOAT, ["b", 61])}).last_only


def test_the_axis_of_slots_is_found_where_heads_come_after_it(tmp_path: Path) -> None:
    shape = ["b", "p", 3, 4]
    given = PLAIN | cache("past_key_values.{i}.{part}", shape)
    assert read(tmp_path, given, LOGITS | cache("present.{i}.{part}", shape)).slots == 1
    assert read(tmp_path, PLAIN | cache("p.{i}.{part}"), LOGITS | cache("q.{i}.{part}")).slots == 2
