"""What several tests share: paths, fakes, builders and tiny models."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # of the repository
