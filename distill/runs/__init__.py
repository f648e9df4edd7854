"""Whole runs: one distillation, a matrix of them, the comparison with TRL, the embedded encoder-decoder pair."""
