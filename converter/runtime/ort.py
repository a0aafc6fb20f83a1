"""ONNX Runtime itself: its providers, its sessions, its errors, and every private name of it that is used here.

Nothing else imports it (ruff sees to that), so that nothing is sent to anybody.
"""

from __future__ import annotations

import importlib.util
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
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
# Before, it has no Attention of float64, and takes it apart wrongly where heads are not apart (microsoft/onnxruntime).
HAS_WIDE_ATTENTION = tuple(map(int, ORT_VERSION.split(".")[:2])) >= (1, 24)
CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
NO_OPTIMIZATION = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # for a graph that comes as bytes

# Options of the CUDA provider for graphs that are captured. By default SkipLayerNormalization adds up in float16.
CAPTURED = {"enable_cuda_graph": "1", "enable_skip_layer_norm_strict_mode": "1"}
NOT_CAPTURED = -1  # in place of the number of a CUDA graph

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


def device_for(provider: str) -> str:
    """Return where caches are kept, ``cpu`` or ``cuda``, with a provider of ONNX Runtime's name."""
    return "cuda" if provider == CUDA_PROVIDER else "cpu"


@cache
def _operators() -> frozenset[tuple[str, str]]:
    return frozenset((schema.domain, schema.name) for schema in ort_state.get_all_operator_schema())


def is_operator(domain: str, name: str) -> bool:
    """Tell whether the installed version has an operator of its own with this name. A file's function is not used
    then (seen in 1.32).
    """
    return (domain, name) in _operators()


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


def session_of(
    graph: str | bytes,
    options: SessionOptions,
    weights: Path,
    provider: str,
    settings: Mapping[str, str] | None = None,
) -> InferenceSession:
    """Open a graph, given as a file's name or as bytes, whose weights lie in the folder ``weights``.

    Args:
        settings: options of the provider.

    Raises:
        ModelFolderError: it has weights elsewhere.
        ProviderError: the provider does not work on this machine.
    """
    refuse_outside(graph, weights)
    if provider == CUDA_PROVIDER:
        _find_cuda()
    options.add_session_config_entry(WEIGHTS_FOLDER, os.fspath(weights))
    session = InferenceSession(graph, options, providers=[(provider, dict(settings or {}))])
    if session.get_providers()[0] != provider:
        short = provider.removesuffix("ExecutionProvider").lower()
        raise ProviderError(
            f"ONNX Runtime has the provider {short} but cannot use it on this machine; try --provider cpu"
        )
    return session


@cache
def _find_cuda() -> None:
    """Load CUDA's libraries from where pip puts them, which the system does not search. ONNX Runtime prints what is
    missing; the session says it better.
    """
    packages = importlib.util.find_spec("nvidia")  # of several folders, only some of which ONNX Runtime looks into
    places = packages.submodule_search_locations if packages is not None else None
    with redirect_stdout(io.StringIO()):
        for folder in sorted(folder for place in places or () for folder in Path(place).glob("*/lib")):
            onnxruntime.preload_dlls(directory=os.fspath(folder))
        onnxruntime.preload_dlls()


def open_session(
    file: Path,
    provider: str,
    threads: int | None = None,
    prepack: bool = True,
    graph: bytes | None = None,
    settings: Mapping[str, str] | None = None,
) -> InferenceSession:
    """Open the graph in ``file``, or ``graph`` in its place with the weights of ``file``.

    Args:
        settings: options of the provider.

    Raises:
        ModelFolderError: it cannot be opened.
        ProviderError: the provider does not work on this machine.
    """
    options = session_options(threads, prepack)
    try:
        return session_of(graph or os.fspath(file), options, file.parent, provider, settings)
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


@dataclass(frozen=True)
class Tensor:
    """Memory of a device that a session reads or writes: a whole OrtValue, or some rows of one.

    Attributes:
        value: owns the memory.
        shape: of the part.
        offset: its first byte.
    """

    value: Any
    shape: tuple[int, ...]
    dtype: Any
    offset: int = 0

    @classmethod
    def empty(cls, device: Any, shape: Sequence[int], dtype: Any) -> Tensor:
        """Return new memory on a device (of ``device_of``), with nothing in it yet."""
        return cls(empty_on(device, shape, dtype), tuple(shape), np.dtype(dtype))

    @property
    def address(self) -> int:
        """Return where it begins."""
        return int(self.value.data_ptr()) + self.offset

    def rows(self, begin: int, end: int) -> Tensor:
        """Return some rows."""
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        return Tensor(self.value, (end - begin, *self.shape[1:]), self.dtype, self.offset + begin * row)

    def write(self, array: np.ndarray) -> None:
        """Copy an array of the same shape and type into all of it."""
        self.value.update_inplace(np.ascontiguousarray(array, self.dtype).reshape(self.shape))

    def read(self) -> np.ndarray:
        """Return a copy of all of it."""
        found: np.ndarray = self.value.numpy()
        return found.copy() if self.value.device_name().lower() == "cpu" else found


class Binding:
    """What a session reads and writes, by name: memory of its device, and arrays, which must not change meanwhile.

    Args:
        session: what will run.
        device: its device, of ``device_of``.
        fed: the inputs.
        fetched: the outputs that are wanted; None for new memory of the device.
        graph_number: of the CUDA graph that the run is captured as, once; ``NOT_CAPTURED`` for none.
    """

    def __init__(
        self,
        session: InferenceSession,
        device: Any,
        fed: Mapping[str, Tensor | np.ndarray],
        fetched: Mapping[str, Tensor | None],
        graph_number: int = NOT_CAPTURED,
    ) -> None:
        self._session, self._fed, self._fetched = session._sess, fed, fetched  # they own the memory
        self._bound = session.io_binding()._iobinding
        self._options = onnxruntime.RunOptions()
        if session.get_providers()[0] == CUDA_PROVIDER:
            self._options.add_run_config_entry("gpu_graph_id", str(graph_number))
        for name, value in fed.items():
            if isinstance(value, Tensor):
                self._bound.bind_input(name, device, value.dtype.type, value.shape, value.address)
            else:
                self._bound.bind_ortvalue_input(name, on_cpu(value))
        for name, wanted in fetched.items():
            if wanted is None:
                self._bound.bind_output(name, device)
            else:
                self._bound.bind_output(name, device, wanted.dtype.type, wanted.shape, wanted.address)

    def run(self) -> None:
        """Run the session."""
        self._session.run_with_iobinding(self._bound, self._options)

    def outputs(self) -> list[Any]:
        """Return the outputs, OrtValues, in the order of ``fetched``."""
        return list(self._bound.get_outputs())
