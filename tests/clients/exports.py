"""Exports of GPT-2 as people make them: a row for each interface of each exporter, and one for each mistake.

Each is made by the real library, from a small checkpoint with random weights. What is wrong in a wrong one was wrong
before the library saw it: the config, a weight, or a forward pass that ignores an input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

# Heads are 8 wide, as GroupQueryAttention wants a multiple of 8; 40 positions, as Optimum tries out 32; n_inner is the
# larger one, as mobius refuses others.
SHAPE = {"vocab_size": 61, "n_embd": 24, "n_inner": 44, "n_positions": 40, "n_layer": 3, "n_head": 3}
OWN = ""  # the environment of the tests, which has what torch and transformers need to export

OPTIMUM_PAST = "past_key_values.{layer}.{part}"
TRANSFORMERS_PAST = "input.past_key_values.layers.{layer}.{part}s"
JOINED_PAST = "past_{layer}"  # keys and values in one tensor


@dataclass(frozen=True)
class Interface:
    """One way in which an exporter writes graphs, and how they are fed.

    Attributes:
        exporter: the worker in ``exporters/``, without its prefix.
        environment: where it runs.
        options: what the worker is told.
        graph: the file of the first call.
        decode: the file of later calls, if it is another one.
        ids, mask, positions, past: the names of inputs; "" where there is none. ``{layer}`` and ``{part}`` ("key",
            "value") are filled in. Outputs are the logits, then keys and values in the order of ``past``.
        branch: the input that says whether there is a past.
        step: the most tokens that a later call may bring.
        masks: whether padding at the left is told from tokens.
        tolerance: how far its logits may be from Hugging Face's, by its precision.
    """

    exporter: str
    environment: str
    options: dict[str, Any] = field(default_factory=dict)
    graph: str = "model.onnx"
    decode: str = ""
    ids: str = "input_ids"
    mask: str = "attention_mask"
    positions: str = "position_ids"
    past: str = ""
    branch: str = ""
    step: int = 2
    masks: bool = True
    tolerance: float = 2e-5


FLOAT16, EIGHT_BITS, FOUR_BITS = 0.05, 0.5, 1.0  # of logits up to 10


def optimum(environment: str = "optimum", task: str = "text-generation-with-past", **row: Any) -> Interface:
    """A row of Optimum; ``options`` are those of its ``main_export``."""
    options = {"task": task, **row.pop("options", {})}
    past = OPTIMUM_PAST if task.endswith("past") else ""
    return Interface("optimum", environment, options, **{"past": past} | row)


def rounded(precision: str, tolerance: float) -> Interface:
    """A row of what transformers.js's script makes of Optimum's graph."""
    options = {"hub": True, "precisions": [precision], "no_post_process": True}  # so the head has a weight to round
    return optimum("optimum-1.24", options=options, graph=f"onnx/model_{precision}.onnx", tolerance=tolerance)


def merged(environment: str, file: str = "decoder_model_merged.onnx", **row: Any) -> Interface:
    """A row of Optimum when it merged the decoders without and with a past, which count positions themselves."""
    options = {"legacy": True, **row.pop("options", {})}
    return optimum(environment, options=options, graph=file, positions="", branch="use_cache_branch", **row)


def separate(environment: str, **row: Any) -> Interface:
    """Likewise before the two were merged."""
    options = {"legacy": True, "no_post_process": True}
    files = {"graph": "decoder_model.onnx", "decode": "decoder_with_past_model.onnx"}
    return optimum(environment, options=options, positions="", **files, **row)


def generation(**row: Any) -> Interface:
    """A row of transformers' exporter: one graph for the prompt, one for the tokens after it."""
    files = {"graph": "prefill.onnx", "decode": "decode.onnx"}
    return Interface("transformers", OWN, **{"past": TRANSFORMERS_PAST, "step": 1} | files | row)


def torch(*arguments: str, **row: Any) -> Interface:
    """A row of ``torch.onnx.export`` with these arguments of transformers' model as inputs."""
    names = {name: given if given in arguments else "" for name, given in ARGUMENTS.items()}
    options = {"arguments": list(arguments), **row.pop("options", {})}
    return Interface("torch", OWN, options, **names | row)


ARGUMENTS = {"ids": "input_ids", "mask": "attention_mask", "positions": "position_ids"}
IDS, MASK, POSITIONS = ARGUMENTS.values()
RENAMED = {"ids": "x", "mask": "m", "positions": "p"}
TORCHSCRIPT = {"dynamo": False, "opset_version": 17}
CACHED = {"cached": True}
ROWS, TOKENS = 2, 8  # of what is fed, and so of a graph of one shape


def ort_tools(**row: Any) -> Interface:
    """A row of ONNX Runtime's own tool for GPT-2."""
    return Interface("ort_tools", "optimum-1.17", **{"past": JOINED_PAST} | row)


def mobius(*arguments: str, **row: Any) -> Interface:
    """A row of mobius, with these arguments of its command."""
    return Interface("mobius", "mobius", {"arguments": list(arguments)}, past=OPTIMUM_PAST, **row)


# The first of each exporter and version has every input; the wrong ones are made through it.
INTERFACES: dict[str, Interface] = {
    "optimum": optimum(),
    "optimum, no cache": optimum(task="text-generation"),
    "optimum, not post-processed": optimum(options={"no_post_process": True}),
    "optimum, O1": optimum(options={"optimize": "O1"}),
    "optimum, O2": optimum(options={"optimize": "O2"}),
    "optimum 1.17": optimum("optimum-1.17"),
    "optimum 1.17, merged": merged("optimum-1.17"),
    "optimum 1.17, separate": separate("optimum-1.17"),
    "optimum 1.24": optimum("optimum-1.24"),
    "optimum 1.24, merged": merged("optimum-1.24", step=1),
    "optimum 1.24, separate": separate("optimum-1.24", step=1),
    "hub": optimum("optimum-1.24", options={"hub": True}, graph="onnx/model.onnx"),
    "hub, fp16": rounded("fp16", FLOAT16),
    "hub, quantized": rounded("quantized", EIGHT_BITS),
    "hub, q4": rounded("q4", FOUR_BITS),
    "hub, merged": merged("optimum-1.17", "onnx/decoder_model_merged.onnx", options={"hub": True}),
    "hub, merged and quantized": merged(
        "optimum-1.17",
        "onnx/decoder_model_merged_quantized.onnx",
        options={"hub": True, "precisions": ["quantized"]},
        tolerance=EIGHT_BITS,
    ),
    "transformers": generation(),
    "transformers, no mask": generation(options={"padded": False}, mask=""),
    "transformers, many tokens": generation(options={"multi_token_decode": True}, step=2),
    "transformers, fused": generation(options={"ort_fusions": "cpu", "multi_token_decode": True}, step=2),
    "transformers, float16": generation(options={"dtype": "float16"}, tolerance=FLOAT16),
    "transformers, no past": Interface("transformers", OWN, {"generation": False}, positions=""),
    "torch": torch(IDS, MASK, POSITIONS, options=CACHED, past=OPTIMUM_PAST),
    "torch, ids": torch(IDS),
    "torch, ids and mask": torch(IDS, MASK),
    "torch, no cache": torch(IDS, MASK, POSITIONS),
    "torch, cache without positions": torch(IDS, MASK, options=CACHED, past=OPTIMUM_PAST),
    "torch, other names": torch(
        IDS, MASK, POSITIONS, options={"names": list(RENAMED.values()), "logits": "y"}, **RENAMED
    ),
    "torch, int32": torch(IDS, MASK, POSITIONS, options={"integers": "int32"}),
    "torch, one shape": torch(IDS, options={"fixed": [ROWS, TOKENS]}),
    "torch, Attention": torch(IDS, MASK, options={"attention": "sdpa", "opset_version": 23}),
    "torch, not optimized": torch(IDS, MASK, options={"optimize": False}),
    "torchscript": torch(IDS, MASK, POSITIONS, options=TORCHSCRIPT | CACHED, past=OPTIMUM_PAST),
    "torchscript, ids and mask": torch(IDS, MASK, options=TORCHSCRIPT),
    "torchscript, no cache": torch(IDS, MASK, POSITIONS, options=TORCHSCRIPT),
    "torchscript, other names": torch(
        IDS, MASK, POSITIONS, options=TORCHSCRIPT | {"names": list(RENAMED.values()), "logits": "y"}, **RENAMED
    ),
    "torchscript, int32": torch(IDS, MASK, POSITIONS, options=TORCHSCRIPT | {"integers": "int32"}),
    "onnxruntime": ort_tools(),
    "onnxruntime, int64": ort_tools(options={"integers": "int64"}),
    "onnxruntime, fused": ort_tools(options={"optimize": True}),
    "onnxruntime, int8": ort_tools(options={"optimize": True, "quantize": True}, tolerance=EIGHT_BITS),
    "onnxruntime, no padding": ort_tools(options={"model_class": "GPT2LMHeadModel_NoPadding"}, mask="", positions=""),
    "mobius": mobius(),
    "mobius, float16": mobius("--dtype", "f16", tolerance=FLOAT16),
    "mobius, safetensors": mobius("--external-data", "safetensors"),
    "mobius, genai": mobius("--ep", "cpu", "--runtime", "ort-genai", step=1, masks=False),
}

# The first of each exporter, and of each of its versions.
MAIN = {(row.exporter, row.environment): name for name, row in reversed(INTERFACES.items())}


def main_of(interface: str) -> str:
    """The first row of an interface's exporter and version."""
    row = INTERFACES[interface]
    return MAIN[row.exporter, row.environment]


BROKEN: dict[str, Interface] = {
    "optimum, float16": optimum(options={"dtype": "fp16"}),  # float32 beside float16, on which it ends with an error
}

Change = Callable[[Path], None]  # of the files of a source


@dataclass(frozen=True)
class Variant:
    """What is exported, and how it goes wrong.

    Attributes:
        config: of the source.
        change: what is done to a copy of the source, which is exported in its stead.
        ignore: the input that transformers' forward pass does not look at.
    """

    config: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None
    ignore: str = ""


def setting(**settings: Any) -> Change:
    """Export with another config."""

    def change(source: Path) -> None:
        file = source / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def transposed(name: str) -> Change:
    """Export with a square weight the wrong way round."""

    def change(source: Path) -> None:
        weights = load_file(source / "model.safetensors")
        weights[name] = weights[name].T.copy()
        save_file(weights, source / "model.safetensors", {"format": "pt"})

    return change


BY_LAYER = {"scale_attn_by_inverse_layer_idx": True}
SOUND = {
    "usual": Variant(),
    "scaled by layer": Variant(BY_LAYER),
    "square": Variant({"n_inner": SHAPE["n_embd"]}),
    "untied head": Variant({"tie_word_embeddings": False}),
    "wide": Variant({"n_inner": 120}),
    "n_inner of 4 n_embd": Variant({"n_inner": None}),
    "relu": Variant({"activation_function": "relu"}),
    "silu": Variant({"activation_function": "silu"}),
    "gelu": Variant({"activation_function": "gelu"}),
    "tanh": Variant({"activation_function": "tanh"}),
    "vocabulary of 64": Variant({"vocab_size": 64}),
    "vocabulary of 101": Variant({"vocab_size": 101}),
    "64 positions": Variant({"n_positions": 64}),
    "heads of 6": Variant({"n_head": 4}),
    "heads of 10": Variant({"n_embd": 30, "n_head": 3}),
    "1 head": Variant({"n_head": 1}),
    "1 layer": Variant({"n_layer": 1}),
    "reordered": Variant({"reorder_and_upcast_attn": True}),
    "small epsilon": Variant({"layer_norm_epsilon": 1e-12}),
    "large epsilon": Variant({"layer_norm_epsilon": 1e-2}),
    "unscaled": Variant({"scale_attn_weights": False}),
    "all flags": Variant(
        BY_LAYER | {"scale_attn_weights": False, "reorder_and_upcast_attn": True, "tie_word_embeddings": False}
    ),
}
DEFECTS = {
    "activation": Variant(change=setting(activation_function="gelu")),
    "epsilon": Variant({"layer_norm_epsilon": 1e-3}, setting(layer_norm_epsilon=1e-2)),
    "scale by layer": Variant(BY_LAYER, setting(scale_attn_by_inverse_layer_idx=False)),
    "scale": Variant({"scale_attn_weights": False}, setting(scale_attn_weights=True)),
    "transposed": Variant(change=transposed("transformer.h.1.attn.c_proj.weight")),
    "positions": Variant(ignore="position_ids"),
    "mask": Variant(ignore="attention_mask"),
}
VARIANTS = SOUND | DEFECTS


def config_of(variant: str) -> dict[str, Any]:
    """The config of a source, as far as it is not transformers' default."""
    return SHAPE | VARIANTS[variant].config


# Sound sources that come out wrong, of the exporters as they are released. The day they do not, a test fails.
WRONG_AS_RELEASED = {
    # scaled_dot_product_attention of transformers 4.48 to 4.57 does not read the flags
    ("optimum", "scaled by layer"),
    ("optimum", "unscaled"),
    ("optimum", "all flags"),
    ("optimum 1.24", "scaled by layer"),
    ("optimum 1.24", "unscaled"),
    ("optimum 1.24", "all flags"),
    ("mobius", "scaled by layer"),
    ("mobius", "unscaled"),
    ("mobius", "all flags"),
    ("mobius", "square"),  # told apart by their shapes, square weights are not
}

# Sound sources that are wrong in some cases, which are named: interface → the cases, the first wrong operation.
WRONG_AT_TIMES = {
    "optimum 1.24, merged": (["chunked prefill", "2 tokens after one", "3 tokens after one"], "h.0.attn.sdpa"),
    "optimum 1.24, separate": (["chunked prefill"], "h.0.attn.sdpa"),
    "mobius, genai": (["left-padded batch", "batch of 2"], "h.0.attn.sdpa"),
}
