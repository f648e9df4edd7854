"""Specheat's harness: measures gamma and alpha of speculative decoding. Imports neither torch nor an engine."""
