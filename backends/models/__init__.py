"""Model pairs: where their checkpoints come from, and how they are checked and loaded."""
