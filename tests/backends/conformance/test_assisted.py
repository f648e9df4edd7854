"""Transformers' own speculative decoding conforms, except for the gaps that it declares."""

from __future__ import annotations

from backends.conformance.kit import BackendConformance
from backends.engines import assisted
from bench.protocols import Backend
from bench.records.decoding import ModelPair


class TestAssistedFloat32(BackendConformance):
    backend = assisted.Assisted

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return assisted.load(pair, device="cpu", options={})


class TestAssistedBfloat16(TestAssistedFloat32):
    dtype = "bfloat16"


class TestAssistedDefault(BackendConformance):
    backend = assisted.AssistedDefault

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return assisted.load_default(pair, device="cpu", options={})


class TestPromptLookup(BackendConformance):
    backend = assisted.PromptLookup

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return assisted.load_prompt_lookup(pair, device="cpu", options={})
