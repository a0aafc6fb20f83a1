"""Run ONNX exports of other programs: tell what their inputs and outputs mean, and feed them."""
