"""Lists the defects: how each is done, what it is called and where it is found."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from onnx import helper

from tests.parity.diagnosis.bench import HEAD, SHAPE, Spoil
from tests.parity.diagnosis.edits import (
    PER_DIMENSION,
    PER_HEAD,
    activate,
    attend_with,
    blocks,
    columns,
    first_is_hidden,
    head_from,
    layer_from,
    mask_with_query,
    no_causal_mask,
    no_padding_mask,
    on_graph,
    on_weight,
    only_input,
    positions_from,
    projection,
    query_counts_from_0,
    set_attribute,
    shifted,
    split_into,
    to_bfloat16,
    to_float8,
    to_half,
    transpose,
    without_bias,
)

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
