"""ONNX Runtime itself: its providers, its sessions, its errors, and every private name of it that is used here.

Nothing else imports it (ruff sees to that), so that nothing is sent to anybody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import ModelFolderError, ProviderError
from converter.runtime.external import refuse_outside

# Read as ONNX Runtime is imported. Without it, 1.32 looks a host for its telemetry up, some ten seconds later.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
    from onnxruntime import InferenceSession as InferenceSession
    from onnxruntime import OrtValue as OrtValue
    from onnxruntime import SessionOptions as SessionOptions
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as error:
    raise ProviderError(
        "ONNX Runtime is not installed; install it with: pip install 'gpt2onnx[cpu]', or 'gpt2onnx[gpu]' for CUDA"
    ) from error

onnxruntime.disable_telemetry_events()  # the same for Windows, which records events itself

ORT_VERSION: str = onnxruntime.__version__
CPU_PROVIDER = "CPUExecutionProvider"
NO_OPTIMIZATION = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # for a graph that comes as bytes

LOG_ERRORS_ONLY = 3  # num_logits_to_keep, an input with a default, draws a warning at every load otherwise

# What ONNX Runtime raises for a graph it cannot open.
OPEN_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidGraph,
    ort_state.InvalidArgument,
    ort_state.InvalidProtobuf,
    ort_state.ModelRequiresCompilation,  # what 1.32 says of a data file that it may not read
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)

# The tiled attention saves the memory of a layer's scores, and was slower wherever it was measured: prefill of
# 900 tokens took 1.15 to 1.5 times as long on 2 and on 16 threads. ONNX Runtime reads this as a graph is opened.
UNTILED = "ORT_GQA_DISABLE_FLASH_ATTENTION"


_ENVIRONMENT = threading.Lock()  # held while the environment is changed: several threads may open graphs


@contextmanager
def untiled() -> Iterator[None]:
    """Let graphs that are opened meanwhile compute the scores of a layer at once, unless the environment objects.

    ONNX Runtime has no session option for it. The environment is the process's, so one graph is opened at a time.
    """
    with _ENVIRONMENT:
        if UNTILED in os.environ:
            yield
            return
        os.environ[UNTILED] = "1"
        try:
            yield
        finally:
            del os.environ[UNTILED]


def provider_name(provider: str) -> str:
    """Return ONNX Runtime's name of an execution provider: ``cuda`` → ``CUDAExecutionProvider``.

    Raises:
        ProviderError: the installed ONNX Runtime does not have it.
    """
    offered = {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}
    if provider.lower() not in offered:
        mend = "; install onnxruntime-gpu in place of onnxruntime" if provider.lower() in ("cuda", "tensorrt") else ""
        raise ProviderError(
            f"the installed ONNX Runtime has no provider {provider}; it offers {', '.join(offered)}{mend}"
        )
    return offered[provider.lower()]


@cache
def attributes_of(operator: str) -> frozenset[str]:
    """Return the attributes of an operator in the installed version; none if there is no such operator."""
    schemas = ort_state.get_all_operator_schema()
    return frozenset(name for schema in schemas if schema.name == operator for name in schema.attributes)


def session_options(threads: int | None = None, prepack: bool = True) -> SessionOptions:
    """Return the options of every session: ONNX Runtime's defaults, and a log of errors only.

    Without ``prepack`` the matrices are multiplied as they lie in the mapped file, not in copies laid out for speed.
    """
    options = SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def session_of(graph: str | bytes, options: SessionOptions, weights: Path, provider: str) -> InferenceSession:
    """Open a graph, given as a file's name or as bytes, whose weights lie in the folder ``weights``.

    Raises:
        ModelFolderError: it has weights elsewhere.
        ProviderError: the provider does not work on this machine.
    """
    refuse_outside(graph, weights)
    options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(weights))
    session = InferenceSession(graph, options, providers=[provider])
    if session.get_providers()[0] != provider:
        short = provider.removesuffix("ExecutionProvider").lower()
        raise ProviderError(
            f"ONNX Runtime has the provider {short} but cannot use it on this machine; try --provider cpu"
        )
    return session


def open_session(
    file: Path, provider: str, threads: int | None = None, prepack: bool = True, graph: bytes | None = None
) -> InferenceSession:
    """Open the graph in ``file``, or ``graph`` in its place with the weights of ``file``.

    Raises:
        ModelFolderError: it cannot be opened.
        ProviderError: the provider does not work on this machine.
    """
    options = session_options(threads, prepack)
    try:
        return session_of(graph or os.fspath(file), options, file.parent, provider)
    except OPEN_ERRORS as error:
        raise ModelFolderError(f"{file} cannot be opened by ONNX Runtime {ORT_VERSION} ({error})") from error


def device_of(name: str) -> Any:
    """Return a device for ONNX Runtime's own calls."""
    return onnxruntime.OrtDevice.make(name, 0)._get_c_device()


CPU = device_of("cpu")


def on_cpu(array: np.ndarray) -> Any:
    """Return an OrtValue that is a view of an array. The array must outlive it."""
    return ort_state.OrtValue.ortvalue_from_numpy(array, CPU)


def run_values(
    session: InferenceSession,
    feeds: dict[str, Any],
    outputs: Sequence[str],
    devices: Sequence[Any],
    given: Sequence[Any] = (),
) -> list[Any]:
    """Run a session on OrtValues (of ``ort_state``). Outputs are written into ``given``, or stay on their devices.

    This is what an IO binding does, in one call: to bind 25 values by name took 40 µs of each token.
    """
    fed, fetched = ort_state.OrtValueVector(), ort_state.OrtValueVector()
    for value in feeds.values():
        fed.push_back(value)
    for value in given:
        fetched.push_back(value)
    session.run_with_ortvaluevector(onnxruntime.RunOptions(), list(feeds), fed, outputs, fetched, devices)
    return [fetched[i] for i in range(len(outputs))]  # an iterator over the vector takes eight times as long


def empty_on(device: Any, shape: Sequence[int], element_type: Any) -> Any:
    """Make an OrtValue on a device (of ``device_of``), with nothing in it yet."""
    return ort_state.OrtValue.ortvalue_from_shape_and_type(list(shape), element_type, device)
