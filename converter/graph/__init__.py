"""The ONNX graph of GPT-2, built without tracing: the classes of ``reference/`` that write nodes."""
