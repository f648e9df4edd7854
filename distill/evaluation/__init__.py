"""Measure the acceptance of a draft from probabilities alone, without a decoder."""
