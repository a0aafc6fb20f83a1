"""Say what the figures of a check were made with."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch
import transformers

from converter.runtime.ort import CPU_PROVIDER, ORT_VERSION, InferenceSession
from converter.version import VERSION


def settings_of(provider: str = CPU_PROVIDER) -> dict[str, Any]:
    """Return versions, machine, and ONNX Runtime's provider."""
    return {
        "gpt2onnx": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnxruntime": ORT_VERSION,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "provider": provider,
    }


def describe(session: InferenceSession) -> dict[str, Any]:
    """Return versions, machine, and the settings of ONNX Runtime."""
    provider = session.get_providers()[0]
    options = session.get_session_options()
    provider_options = session.get_provider_options().get(provider, {})
    return settings_of(provider) | {
        "provider_options": provider_options,
        # TF32 multiplies with 10 bits of mantissa; only the CUDA provider has it.
        "tf32": provider_options["use_tf32"] != "0" if "use_tf32" in provider_options else None,
        "graph_optimization": options.graph_optimization_level.name,
        "execution_mode": options.execution_mode.name,
        "threads": options.intra_op_num_threads or "one a core",
    }
