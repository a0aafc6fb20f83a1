"""Check whether a model folder computes what its source computes; if it does not, find the cause."""
