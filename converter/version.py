"""The name and the version, in a place that costs nothing to import."""

PRODUCER = "gpt2onnx"  # as graphs name it
VERSION = "0.1.0"
