"""Timed pairs for other programs: pandas and pyperf."""
