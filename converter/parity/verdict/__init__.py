"""Decide whether logits match: distances from the truth, and the limits for them."""
