"""Runs a model folder in ONNX Runtime."""
