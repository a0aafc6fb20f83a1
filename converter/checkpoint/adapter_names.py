"""The names of a PEFT adapter's modules and tensors; ``canonical`` of a module's name gives it without wrappers."""

from __future__ import annotations

import re

from reference.head import HEADS

ADAPTER_PREFIX = "base_model.model."  # what PEFT puts before every name

# The modules that an adapter can update. A weight of Conv1D is [in, out], of an embedding [rows, n_embd], of Linear
# [out, in]. In the first two, a row of the weight belongs to a column of lora_A.
CONV1D = re.compile(r"h\.(?:0|[1-9][0-9]*)\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)")
EMBEDDINGS = ("wte", "wpe")
LINEAR = ("lm_head", *(head.known_by.removesuffix(".weight") for head in HEADS.values() if head.known_by))
TIED = ("wte", "lm_head")  # one matrix in most models, for which PEFT has rules of its own
BY_TOKENS = (*EMBEDDINGS, "lm_head")  # of which single rows can be trained

# End of a tensor's name, after the name of its module → kind of tensor.
PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "B bias",
    "lora_embedding_A": "embedding A",
    "lora_embedding_B": "embedding B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
# What was in the base, and a second copy of what replaces it: PEFT writes both if it saves embeddings that were trained
# as a whole. It reads the first back into the base, and not the second.
ORIGINAL = {"original_module.weight": "weight", "original_module.bias": "bias"}
COPIES = ("modules_to_save.weight", "modules_to_save.bias")
TOKENS = "token_adapter.trainable_tokens_delta"  # the new rows of single tokens, and no differences
BASES = ("token_adapter.base_layer.weight", "base_layer.weight")  # what a resized base held below an update
REPLACED = dict.fromkeys(BASES, "weight") | {"base_layer.bias": "bias", "weight": "weight", "bias": "bias"}
PLAIN = ("weight", "bias")
