"""Find out on which provider of ONNX Runtime each node of a graph runs, from the profile of two runs."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from converter.runtime.opening import config_of, model_file
from converter.runtime.ort import CPU_PROVIDER, InferenceSession, provider_name, session_options
from reference.config import GPT2Config

PROMPT_TOKENS = 5
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def placements(folder: Path, precision: str, provider: str) -> Counter[tuple[str, str]]:
    """Return (provider, operator) → the number of nodes of the optimized graph that ran there in two runs."""
    options = session_options()
    with tempfile.TemporaryDirectory() as place:
        options.enable_profiling, options.profile_file_prefix = True, f"{place}/profile"
        session = InferenceSession(
            model_file(folder, precision), options, providers=[provider_name(provider), CPU_PROVIDER]
        )
        run(session, config_of(folder))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = {
        (event["args"]["provider"], event["args"]["op_name"], event["name"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    return Counter((provider.removesuffix("ExecutionProvider"), op) for provider, op, _ in ran)


def run(session: InferenceSession, config: GPT2Config) -> None:
    """Run a prompt, and one token after it."""
    pasts = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    cache = [np.zeros((1, config.n_head, 0, config.head_dim), DTYPES[value.type]) for value in pasts]
    begin = 0
    for new in (PROMPT_TOKENS, 1):
        positions = np.arange(begin, begin + new)[None]
        begin += new
        feeds = {
            "input_ids": np.zeros((1, new), np.int64),
            "attention_mask": np.ones((1, begin), np.int64),
            "position_ids": positions,
            "num_logits_to_keep": np.array(1),
        }
        _, *cache = session.run(None, feeds | {value.name: kept for value, kept in zip(pasts, cache, strict=True)})
