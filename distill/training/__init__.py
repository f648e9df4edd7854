"""Train a draft: recipes, labels, losses and a loop that can be resumed."""
