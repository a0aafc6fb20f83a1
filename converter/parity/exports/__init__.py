"""Check ONNX exports of other programs against a source, by what their files compute and hold."""
