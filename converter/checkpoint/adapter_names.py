"""The names of a PEFT adapter's modules and tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


# What PEFT and other wrappers put before a name, in any combination.
ADAPTER_PREFIX = "base_model.model."
PREFIXES = (ADAPTER_PREFIX, "module.", "_orig_mod.", "model.", "transformer.")

# The modules that an adapter can be of: Conv1D's weights are [in, out], an embedding's [rows, n_embd], a Linear's
# [out, in]. Of the first two, rows are columns of lora_A.
CONV1D = re.compile(r"h\.(?:0|[1-9][0-9]*)\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)")
EMBEDDINGS, LINEAR = ("wte", "wpe"), ("lm_head",)

# What a tensor of an adapter is called behind its module's name → what it is.
PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "B bias",
    "lora_embedding_A": "embedding A",
    "lora_embedding_B": "embedding B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
REPLACED = {"base_layer.weight": "weight", "base_layer.bias": "bias", "weight": "weight", "bias": "bias"}
PLAIN = ("weight", "bias")


def canonical(name: str) -> str:
    """A name without what wrappers put before it."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name[len(prefix) :]
    return name
