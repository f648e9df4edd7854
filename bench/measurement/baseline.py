"""TODO: purpose."""

from __future__ import annotations

from bench.records.runs import BaselineTriple

Baselines = dict[tuple[object, ...], dict[tuple[int, ...], BaselineTriple]]  # conditions -> prompt -> what was measured
HOTTEST_BASELINE = 1.0
