"""Define the cases, and compute their logits in every way."""
