"""The checks that find broken decoders, on samples that grow until a check raises an alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import torch

from backends.conformance.judge import (
    NUM_DRAFT_TOKENS,
    PROMPTS,
    FreshForwards,
    block_efficiency,
    chance_p,
    pooled,
    pooled_transforms,
    rare_p,
    tested_places,
    unbalanced,
    uniform_p,
)
from backends.conformance.kit import ALLOWED_P, changes_random_state
from backends.conformance.tiny_pairs import Relation, tiny_models
from backends.engines.reference import ReferenceBackend
from bench.records.decoding import DecodeRequest, Generation

LOOKS = (120, 250, 500, 1000, 2000, 4000)  # tokens after which a check looks at everything so far
DEFAULT = DecodeRequest(PROMPTS[0], 60, NUM_DRAFT_TOKENS, temperature=0.8)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request to a decoder, and its output."""

    decoder: ReferenceBackend
    request: DecodeRequest
    generation: Generation


@dataclass(frozen=True, slots=True)
class Alarm:
    """The evidence of a check, and how many tokens it had seen by then."""

    evidence: str
    num_tokens: int


Changes = dict[str, Any]  # of the default request
Check = Callable[[Sequence[Sample], FreshForwards], str | None]  # evidence in words; None: no alarm


def by_certificate(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    certificate = fresh.certificate([(sample.request, sample.generation) for sample in samples])
    return "; ".join(certificate.words) if certificate.verdict == "LOSSY" else None


def by_alpha(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Compare counted acceptance with that of uncached forwards along the output."""
    passed, probs = pooled(fresh.acceptance(sample.request, sample.generation) for sample in samples)
    if chance_p((passed, probs)) > ALLOWED_P:
        return None
    return f"alpha {np.mean(passed):.3f}, expected {np.mean(probs):.3f}"


def by_white_box(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Test accepted, recovered and bonus tokens, each under its law, in the order of ids."""
    transforms = pooled_transforms(fresh.transforms(sample.request, sample.generation) for sample in samples)
    wrong = [kind for kind, values in transforms.items() if uniform_p(values) < ALLOWED_P]
    return f"{' and '.join(wrong)} tokens do not follow their law" if wrong else None


def by_closed_form(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Check that alpha is 1 if the draft equals its target, under the rejection rule."""
    alpha = np.mean([passed for sample in samples for passed in tested_places(sample.generation)[1]])
    return f"alpha {alpha:.3f} with draft == target" if alpha < 1 - 1e-4 else None


def by_block_efficiency(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Check that a draft equal to its target emits k + 1 tokens per round, except in the last round of an output."""
    efficiency = block_efficiency([r for sample in samples for r in (sample.generation.rounds or ())[:-1]])
    return f"block efficiency {efficiency:.2f} with draft == target" if efficiency < NUM_DRAFT_TOKENS + 1 - 1e-4 else None


@torch.inference_mode()
def by_draft_logits(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Compare the draft's logits after the last output with an uncached forward."""
    decoder, request, generation = samples[-1].decoder, samples[-1].request, samples[-1].generation
    text = torch.tensor([(*request.prompt_ids, *generation.token_ids)])
    seen = decoder.draft.feed(text[:, decoder.draft.length :], num_logits=1)
    error = float((seen - fresh.draft(text, logits_to_keep=1).logits[0]).abs().max())
    return f"draft logits off by {error:.1f}" if error > 1e-3 else None


def by_books(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    return next((said for sample in samples for said in unbalanced(sample.request, sample.generation)), None)


def by_replay(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Check that a replay gives the same output, and one acceptance probability per tested draft token: the true one."""
    seen: list[float] = []
    expected: list[float] = []
    for sample in samples:
        replay = sample.decoder.replay(sample.request)
        if replay.token_ids != sample.generation.token_ids:
            return "the replay gave other ids"
        seen += [prob for probs in replay.acceptance_probs for prob in probs]
        expected += fresh.acceptance(sample.request, sample.generation)[1]
    if len(seen) != len(expected):
        return f"{len(seen)} acceptance probabilities for {len(expected)} tested tokens"
    if abs(np.mean(seen) - np.mean(expected)) < 1e-4:
        return None
    return f"the replay expects alpha {np.mean(seen):.3f}, uncached forwards {np.mean(expected):.3f}"


def by_seed(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    again = samples[-1].decoder.generate(samples[-1].request)
    return "same seed, other text" if again.token_ids != samples[-1].generation.token_ids else None


def by_random_state(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    changed = changes_random_state(samples[-1].decoder, samples[-1].request)
    return "global random state changed" if changed else None


def by_end_tokens(samples: Sequence[Sample], fresh: FreshForwards) -> str | None:
    """Check that end tokens are as frequent as the target's probabilities give."""
    ended, probs = pooled(fresh.ends(sample.request, sample.generation) for sample in samples)
    if rare_p((ended, probs)) > ALLOWED_P:
        return None
    return f"{sum(ended)} end tokens, expected {sum(probs):.0f}"


CHECKS: dict[str, Check] = {
    "certificate": by_certificate,
    "end tokens": by_end_tokens,
    "white box": by_white_box,
    "alpha, uncached forwards": by_alpha,
    "alpha, draft == target": by_closed_form,
    "block efficiency, draft == target": by_block_efficiency,
    "draft logits, uncached forward": by_draft_logits,
    "books": by_books,
    "replay": by_replay,
    "same seed": by_seed,
    "random state": by_random_state,
}


@cache
def models(relation: Relation) -> FreshForwards:
    return FreshForwards(*tiny_models(relation))


def decoded(
    decoder: type[ReferenceBackend], relation: Relation, changes: Sequence[Changes], *, seed: int = 0
) -> Iterator[Sample]:
    """Yield outputs without end: every prompt in turn with each of the changes, each output with another seed."""
    fresh = models(relation)
    backend = decoder(fresh.target, fresh.draft)
    for i in count(seed):
        prompt = PROMPTS[i // len(changes) % len(PROMPTS)]
        request = replace(DEFAULT, **{"prompt_ids": prompt, "seed": i, **changes[i % len(changes)]})
        yield Sample(backend, request, backend.generate(request))


def grown(stream: Iterator[Sample], looks: Sequence[int]) -> Iterator[tuple[list[Sample], int]]:
    """Yield the sample at every look, and how many tokens it holds."""
    samples: list[Sample] = []
    num_tokens = 0
    for look in looks:
        while num_tokens < look:
            samples.append(next(stream))
            num_tokens += len(samples[-1].generation.token_ids)
        yield samples, num_tokens


def first_alarm(stream: Iterator[Sample], check: str, relation: Relation, looks: Sequence[int] = LOOKS) -> Alarm | None:
    """Let the sample grow until the check raises an alarm; return None if it never does."""
    for samples, num_tokens in grown(stream, looks):
        if evidence := CHECKS[check](samples, models(relation)):
            return Alarm(evidence, num_tokens)
    return None
