"""Sample text from a model, store it, and read it back as batches."""
