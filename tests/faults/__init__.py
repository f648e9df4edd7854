"""Broken speculative decoders, each a small change to the reference, and the checks that must see through them."""
