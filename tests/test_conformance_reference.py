"""The reference backend conforms, in float32 and, where dtype matters, in bf16."""

from __future__ import annotations

from backends import reference
from backends.conformance import BackendConformance
from bench.protocols import Backend
from bench.records import ModelPair


class TestReferenceFloat32(BackendConformance):
    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return reference.load(pair, device="cpu", options={})


class TestReferenceB(TestReferenceFloat32):
    dtype = "bfloat16"
