"""Writes LoRA adapters as PEFT does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 3, "lora_alpha": 7, "lora_dropout": 0.1, "target_modules": ["c_attn", "mlp.c_proj"],
    "fan_in_fan_out": True, "bias": "none", "base_model_name_or_path": "some/model", "task_type": "CAUSAL_LM",
    "peft_version": "0.18.0", "init_lora_weights": True, "inference_mode": True, "megatron_core": "megatron.core",
    "use_dora": False, "layer_replication": None, "rank_pattern": {}, "loftq_config": {},
}  # fmt: skip
MODULES = [f"transformer.h.{i}.{name}" for i in range(3) for name in ("attn.c_attn", "mlp.c_proj")]
OUTER = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 72), "mlp.c_proj": (72, 32)}

Tensors = dict[str, np.ndarray]


def pairs(modules: list[str], rank: int = 3, ranks: dict[str, int] | None = None) -> Tensors:
    """A and B of these modules, random."""
    random = np.random.default_rng(len(modules))
    tensors = {}
    for module in modules:
        rows, columns = next(shape for name, shape in OUTER.items() if module.endswith(name))
        r = (ranks or {}).get(module, rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.standard_normal((r, rows), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.standard_normal((columns, r), np.float32)
    return tensors


def write(folder: Path, tensors: Tensors, without: tuple[str, ...] = (), **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    values = {key: value for key, value in (CONFIG | config).items() if key not in without}
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder
