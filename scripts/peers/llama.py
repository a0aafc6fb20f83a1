"""Ask llama.cpp for the logits of a small checkpoint, which tell how much its precisions lose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from processes import measure

from peers.candidates import WORKERS
from peers.environments import ENVIRONMENTS, install
from peers.running import log_file, python_of, surroundings


def llama_logits(work: Path, checkpoint: Path, source: Path, variant: str, ids: np.ndarray) -> np.ndarray:
    """Return llama.cpp's logits ``[rows, tokens, vocab_size]`` of a small checkpoint for ``ids`` ``[rows, tokens]``."""
    install(work / "environments" / "llama", ENVIRONMENTS["llama"])
    shutil.copytree(checkpoint, source, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["n_ctx"] = config["n_positions"]  # llama.cpp's converter reads it there
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ids_file, logits_file = source.with_name("ids.npy"), source.with_name(f"{variant}.npy")
    np.save(ids_file, ids)
    environment = work / "environments" / "llama"
    script = environment / "source/vendor/llama.cpp/convert_hf_to_gguf.py"
    command = [
        python_of(work, "llama"),
        WORKERS / "quality_llama.py",
        script,
        source,
        source.with_name("gguf"),
        variant,
    ]
    log = log_file(work, f"quality {variant}")
    measure([*map(str, command), str(ids_file), str(logits_file)], log=log, env=surroundings("llama"))
    return np.load(logits_file)
