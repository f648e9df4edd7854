"""Intervals, effects, multiple-testing correction and theory, as functions of plain numbers."""
