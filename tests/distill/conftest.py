"""Fixtures of all tests of distillation."""

from tests.support.tiny_distillation import one_thread

__all__ = ["one_thread"]
