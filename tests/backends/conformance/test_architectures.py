"""The kit on architectures other than Llama: the reference on all of them, transformers' own speculation on a T5.

Rules work on probabilities, whichever model gave them. So decoders run with one rule, and the encoder-decoder runs with all.
"""

from __future__ import annotations

from backends.conformance.kit import BackendConformance
from backends.engines import assisted, reference
from bench.protocols import Backend, Capabilities
from bench.records.decoding import ModelPair


class OnReference(BackendConformance):
    backend = reference.ReferenceBackend
    capabilities = Capabilities(rules=frozenset({"rejection"}))

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return reference.load(pair, device="cpu", options={})


class TestGpt2(OnReference):
    """Absolute positions."""

    architecture = "gpt2"


class TestGemma2(OnReference):
    """Soft-capped logits and a sliding window."""

    architecture = "gemma2"


class TestQwen3(OnReference):
    architecture = "qwen3"


class TestMixtral(OnReference):
    """A mixture of experts."""

    architecture = "mixtral"


class TestT5(OnReference):
    """An encoder-decoder."""

    architecture = "t5"
    capabilities = reference.ReferenceBackend.capabilities


class TestT5Bfloat16(OnReference):
    architecture = "t5"
    dtype = "bfloat16"


class TestAssistedT5(BackendConformance):
    backend = assisted.Assisted
    architecture = "t5"

    @classmethod
    def load(cls, pair: ModelPair) -> Backend:
        return assisted.load(pair, device="cpu", options={})
