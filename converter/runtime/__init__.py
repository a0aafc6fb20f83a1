"""Runs a model folder in ONNX Runtime."""

from converter.errors import ProviderError

try:
    import onnxruntime  # noqa: F401 - everything here runs in it
except ImportError as error:
    raise ProviderError(
        "ONNX Runtime is not installed; install it with: pip install 'gpt2onnx[cpu]', or 'gpt2onnx[gpu]' for CUDA"
    ) from error
