"""The check: whether a model folder computes what its source computes, and if not, why."""
