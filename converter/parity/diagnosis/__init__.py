"""Explain a mismatch: find the operation that diverges, and the cause."""
