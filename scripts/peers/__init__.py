"""Compare gpt2onnx with other converters and runtimes, on one checkpoint with random weights.

``candidates`` and ``plan`` say what is measured. ``environments`` installs the peers, ``conversion`` converts the
models, ``worker`` keeps one open in a process of its own (``workers/``), ``bench`` measures them in turn, and ``page``
writes the tables.
"""
