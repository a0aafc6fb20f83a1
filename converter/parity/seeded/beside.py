"""Define defects that no logits show: files beside the graph, and rounded numbers that a budget allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx

from converter.files import read_json, write_json
from converter.parity.seeded.mutation import Copy, Mutation
from converter.runtime.opening import model_file
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config

Values = dict[str, Any]


def key(file: str, *path: str, value: Any) -> Mutation:
    """Return a defect that sets a key of a JSON file."""
    *parts, last = path

    def change(values: Values) -> None:
        for part in parts:
            values = values[part]
        values[last] = value

    where = f"{file}: {'.'.join(path)}"
    return _json(where, file, change, f"{where} ")


def _json(name: str, file: str, change: Callable[[Values], object], said: str) -> Mutation:
    """Return a defect that changes a JSON file. It changes nothing if the folder has no such file."""

    def apply(copy: Copy) -> None:
        if (copy.out / file).is_file():
            values = read_json(copy.out / file)
            change(values)
            write_json(copy.out / file, values)

    return Mutation(name, (), apply, said=said)


def added(file: str, content: str) -> Mutation:
    """Return a defect that adds a file that clients would read."""
    return Mutation(
        f"{file} added", (), lambda copy: _written(copy, file, content), said=f"{file}: is no file of the conversion"
    )


def removed(file: str) -> Mutation:
    """Return a defect that removes a file."""
    return Mutation(
        f"{file} removed", (), lambda copy: (copy.out / file).unlink(missing_ok=True), said=f"{file}: is missing"
    )


def _written(copy: Copy, file: str, content: str) -> None:
    (copy.out / file).write_text(content, encoding="utf-8")


def _appended(copy: Copy) -> None:
    with model_file(copy.out).with_name("model.onnx_data").open("ab") as opened:
        opened.write(b"\0")


def _card(copy: Copy) -> None:
    card = copy.out / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("GPT-2", "GPT-3", 1), encoding="utf-8")


def _header(copy: Copy) -> None:
    """Swap the names of two weights of one shape in the data file's header, which transformers reads."""
    file = model_file(copy.out).with_name("model.onnx_data")
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    first, second = "h.0.ln_1.weight", "h.0.ln_2.weight"
    header[first], header[second] = header[second], header[first]
    file.write_bytes(content[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(end - 8) + content[end:])


BESIDE: tuple[Mutation, ...] = (
    key("genai_config.json", "model", "eos_token_id", value=5),
    key("genai_config.json", "model", "pad_token_id", value=7),
    key("genai_config.json", "model", "context_length", value=8),
    key("genai_config.json", "model", "decoder", "head_size", value=3),
    key("genai_config.json", "model", "decoder", "filename", value="onnx/model_fp16.onnx"),
    key("genai_config.json", "search", "past_present_share_buffer", value=True),
    key("genai_config.json", "search", "max_length", value=5),
    key("config.json", "bos_token_id", value=9),
    key("config.json", "eos_token_id", value=9),
    key("config.json", "transformers.js_config", "dtype", value="q4"),
    key("config.json", "transformers.js_config", "use_external_data_format", value=False),
    key("config.json", "use_cache", value="no"),
    key("generation_config.json", "eos_token_id", value=9),
    key("generation_config.json", "temperature", value=0.1),
    key("gpt2onnx.json", "parameters", value=7),
    key("gpt2onnx.json", "format", value=9),
    key("gpt2onnx.json", "files", value=["README.md"]),
    key("gpt2onnx.json", "source", "fingerprint", value="0"),
    key("gpt2onnx.json", "precisions", "fp32", "bytes", value=1),
    key("tokenizer_config.json", "padding_side", value="right"),
    key("tokenizer_config.json", "model_max_length", value=5),
    key("tokenizer_config.json", "chat_template", value="{{ messages }}"),
    _json("tokenizer.json: no decoder", "tokenizer.json", lambda v: v.pop("decoder"), "tokenizer.json: lacks decoder"),
    _json("tokenizer.json: a merge less", "tokenizer.json", lambda v: v["model"]["merges"].pop(),
          "tokenizer.json: model.merges has "),
    _json("tokenizer.json: a token is not special", "tokenizer.json",
          lambda v: v["added_tokens"][0].update(special=False), "tokenizer.json: added_tokens[0].special False"),
    added("chat_template.jinja", "{{ messages }}"),
    added("added_tokens.json", "{}"),
    removed("genai_config.json"),
    removed("README.md"),
    Mutation("README.md edited", (), _card, said="README.md: line "),
    Mutation("bytes after the weights", (), _appended, said="onnx/model.onnx_data: has "),
    Mutation("weights under each other's names", (), _header, said="onnx/model.onnx_data: header: "),
)  # fmt: skip


def of_blocks(config: GPT2Config) -> Iterator[Mutation]:
    """Yield defects of a quantized weight that keep every budget: one number by one step, one scale by 1 %."""
    name = f"h.{config.n_layer // 2}.mlp.c_fc"
    for row in PRECISIONS.values():
        if row.scheme is not None:
            which: Any = {"precision": row.name, "said": f"{row.model.removeprefix('onnx/')}: {name}.weight "}
            yield Mutation(f"one number one step off, {row.name}", (), _edit(f"{name}.weight", _step), **which)
            yield Mutation(f"one scale 1 % off, {row.name}", (), _edit(f"{name}.scales", _stretch), **which)


def _step(numbers: np.ndarray) -> None:
    numbers.flat[0] ^= 1


def _stretch(scales: np.ndarray) -> None:
    scales.flat[0] *= np.float32(1.01)


def _edit(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Copy], None]:
    """Return a function that changes an initializer of a quantized graph in its data file."""

    def apply(copy: Copy) -> None:
        file = model_file(copy.out)
        tensor = next(t for t in onnx.load(file, load_external_data=False).graph.initializer if t.name == name)
        where = {entry.key: entry.value for entry in tensor.external_data}
        dtype = "u1" if tensor.data_type == onnx.TensorProto.UINT8 else "<f4"
        place = file.parent / where["location"]
        mapped = np.memmap(place, dtype, "r+", offset=int(where["offset"]), shape=tuple(tensor.dims))
        change(mapped)
        mapped.flush()

    return apply
