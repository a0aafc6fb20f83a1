"""Prove that the check notices: seed defects, and see whether each is caught and named."""
