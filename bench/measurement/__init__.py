"""Timing the cells of one suite in one process."""
