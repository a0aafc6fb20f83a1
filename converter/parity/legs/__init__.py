"""What is run: the cases, and everything that computes logits of them."""
