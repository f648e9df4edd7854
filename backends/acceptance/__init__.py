"""From logits to probabilities, and the rules by which a target judges draft tokens."""
