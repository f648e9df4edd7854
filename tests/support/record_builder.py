"""Synthetic records with a chosen gamma and alpha, consistent in every count: tests read them as if a run had made them.

An SD text is one token from prefill and then rounds; every draft token is accepted with probability alpha by a seeded
stream, so counted alpha lies near it and the replay's acceptance probabilities are exactly it (at T = 0, 0 or 1).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.records.decoding import ForwardSeconds, ModelPair, PhaseSeconds, Replay, Round
from bench.records.runs import SCHEMA, BaselineTriple, Cell, CellRecord, RunRecord, TimedArm, TimedPair

AR_TOKEN_S = 0.035
PREFILL_S = 0.05
DRAFT_SHARE = 0.2  # of the forward seconds of a round
PAIR = ModelPair("tiny", "embedded:tiny/target", "embedded:tiny/draft", "causal", "bfloat16", "Apache-2.0")


def make_cell(**changes: Any) -> Cell:
    """The default cell with some fields changed; draft T follows T."""
    temperature = changes.get("temperature", 1.0)
    cell = Cell(
        suite="temperature_grid",
        backend="reference",
        rule="rejection",
        pair=PAIR.name,
        draft=PAIR.draft,
        dtype=PAIR.dtype,
        device="cpu",
        temperature=temperature,
        draft_temperature=temperature,
        num_draft_tokens=4,
        top_k=0,
        top_p=1.0,
        max_new_tokens=64,
        end_token="natural",
        prompt_set="instructions",
        num_prompts=12,
        repeats=1,
        prompts_hash="0123456789abcdef",
        chat_template="none",
        chat_template_hash="",
        seed=0,
    )
    return replace(cell, **changes)


def make_record(
    cell: Cell | None = None, *, gamma: float = 1.2, alpha: float = 0.6, noise: float = 0.04, **changes: Any
) -> CellRecord:
    """A measured cell.

    Args:    noise: standard deviation in the log of every arm's seconds; changes: of the record's own fields
    """
    cell = cell or make_cell()
    stream = random.Random(f"{cell.temperature} {cell.num_draft_tokens} {cell.rule} {cell.seed}")
    plans = [(prompt, repeat) for repeat in range(cell.repeats) for prompt in range(cell.num_prompts)]
    pairs = tuple(
        _make_pair(cell, prompt, repeat, gamma=gamma, alpha=alpha, noise=noise, stream=stream) for prompt, repeat in plans
    )
    record = CellRecord(cell, started="2026-11-20T10:00:00+00:00", warmup_s=(0.04, 0.036), warmup_settled=True, pairs=pairs)
    return replace(record, **changes)


def failed_record(cell: Cell | None = None, *, error: str = "RuntimeError: out of memory") -> CellRecord:
    """A cell that raised."""
    return CellRecord(cell or make_cell(), "2026-11-20T10:00:00+00:00", (), False, (), error=error)


def make_run(cells: Sequence[CellRecord] = (), **changes: Any) -> RunRecord:
    """A run of these cells on a two-core machine, with a baseline of 12 prompts."""
    run = RunRecord(
        schema=SCHEMA,
        suite="temperature_grid",
        preset="quick",
        command=("pytest", "--benchmark-only", "suites/"),
        created="2026-11-20T10:00:00+00:00",
        environment={
            "device_type": "cpu",
            "cpu_model": "Example CPU",
            "num_physical_cores": 2,
            "num_usable_cores": 2,
            "ram_gib": 16,
            "torch": "2.13.0",
            "transformers": "5.19.0",
            "harness_commit": "abcdef0123",
            "harness_dirty": False,
        },
        model_pair=PAIR,
        model_hashes={"target": "aaaaaaaa11112222", "draft": "bbbbbbbb33334444"},
        prompt_format={"chat_template": "none", "chat_template_hash": ""},
        backend_settings={
            "backend": "reference",
            "torch": "2.13.0",
            "transformers": "5.19.0",
            "attention": "sdpa",
            "threads": 2,
        },
        baseline=make_baseline(),
        cells=tuple(cells),
    )
    return replace(run, **changes)


def make_baseline(
    *, num_prompts: int = 12, strength: float = 1.0, noise: float = 0.01, native: bool = True
) -> tuple[BaselineTriple, ...]:
    """Triples; `strength` is the AR arm's tokens a second over those of the engine's own plain decode."""
    stream = random.Random("baseline")
    names = ("ar", "ar_again", "native") if native else ("ar", "ar_again")
    return tuple(
        BaselineTriple(
            prompt_index=prompt,
            order=names,
            ar=_arm(40, 39 * AR_TOKEN_S, stream, noise=noise),
            ar_again=_arm(40, 39 * AR_TOKEN_S, stream, noise=noise),
            native=_arm(40, 39 * AR_TOKEN_S * strength, stream, noise=noise) if native else None,
        )
        for prompt in range(num_prompts)
    )


def _make_pair(
    cell: Cell, prompt: int, repeat: int, *, gamma: float, alpha: float, noise: float, stream: random.Random
) -> TimedPair:
    num_draft_tokens = cell.num_draft_tokens
    accepted = [_num_accepted(num_draft_tokens, alpha, stream) for _ in range(stream.randint(12, 20))]
    rounds = tuple(Round(num_draft_tokens, count, count + 1) for count in accepted)
    num_decoded = sum(round_.emitted for round_ in rounds)
    sd = replace(_arm(1 + num_decoded, num_decoded * AR_TOKEN_S / gamma, stream, noise=noise), rounds=rounds)
    round_s = num_decoded * AR_TOKEN_S / gamma / len(rounds)
    replay = Replay(
        token_ids=sd.token_ids,
        rounds=rounds,
        acceptance_probs=tuple(_probs(round_, cell.temperature, alpha) for round_ in rounds),
        joint_length=tuple(float(round_.accepted) for round_ in rounds) if cell.rule == "block" else None,
        phase_s=PhaseSeconds(prefill=PREFILL_S, draft=0.2 * round_s, verify=0.7 * round_s, accept=0.06, other=0.02),
    )
    forwards = ForwardSeconds(
        context_length=64,
        ar_s=AR_TOKEN_S,
        draft_s=0.93 * DRAFT_SHARE * round_s / num_draft_tokens,  # 7 % of a round is overhead of the loop
        verify_s=0.93 * (1 - DRAFT_SHARE) * round_s,
    )
    return TimedPair(
        prompt_index=prompt,
        repeat=repeat,
        order=("ar_first", "sd_first")[(prompt + repeat) % 2],
        ar=_arm(50, 49 * AR_TOKEN_S, stream, noise=noise),
        sd=sd,
        forwards=(forwards,),
        replay=replay,
    )


def _num_accepted(num_draft_tokens: int, alpha: float, stream: random.Random) -> int:
    return next((place for place in range(num_draft_tokens) if stream.random() >= alpha), num_draft_tokens)


def _probs(round_: Round, temperature: float, alpha: float) -> tuple[float, ...]:
    tested = min(round_.accepted + 1, round_.drafted)
    if temperature:
        return (alpha,) * tested
    return tuple(float(place < round_.accepted) for place in range(tested))


def _arm(num_tokens: int, decode_s: float, stream: random.Random, *, noise: float) -> TimedArm:
    return TimedArm(
        seed=stream.randrange(2**31),
        seconds=PREFILL_S + decode_s * stream.lognormvariate(0, noise),
        first_token_s=PREFILL_S,
        token_ids=tuple(stream.randrange(1000) for _ in range(num_tokens)),
        finish_reason="stop",
        rounds=None,
    )
