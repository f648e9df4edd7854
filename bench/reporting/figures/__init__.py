"""Figures of suites, all drawn in one frame and style."""
