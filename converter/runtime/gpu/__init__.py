"""Generation on a GPU: a graph over buffers, steps that are captured, and the caches of both."""
