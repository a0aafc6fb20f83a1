"""Serves a model folder to many at once."""
