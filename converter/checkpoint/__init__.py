"""Read checkpoints: a folder, a file or a Hub id becomes a mapping of tensor name → lazy tensor.

There is one file for each format.
"""
