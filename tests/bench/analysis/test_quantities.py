"""Gamma without the luck of acceptance: the same mean, less noise, and honest intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.analysis import metrics
from bench.analysis.quantities import gamma_without_luck
from bench.records.decoding import PhaseSeconds, Replay, Round
from bench.records.runs import CellRecord, TimedPair
from tests.support.record_builder import make_cell, make_record

AR_S, ROUND_S, TOKENS, K = 1.0, 1.6, 48, 2
CELL = make_cell(num_prompts=24, num_draft_tokens=K)
ALPHA_SPREAD = 0.08


def decoded(alpha: float, rng: np.random.Generator) -> tuple[tuple[Round, ...], int]:
    """Return rounds that emit at least TOKENS tokens, and how many they emit."""
    rounds, emitted = [], 0
    while emitted < TOKENS:
        accepted = int(np.argmax([*(rng.random(K) >= alpha), True]))
        rounds.append(Round(K, accepted, accepted + 1))
        emitted += accepted + 1
    return tuple(rounds), emitted


def simulated(rng: np.random.Generator, *, share_replayed: float = 1.0) -> CellRecord:
    """Return a cell whose prompts differ in alpha, and whose rounds all take the same time."""
    template = make_record(CELL)
    pairs: list[TimedPair] = []
    for pair in template.pairs:
        alpha = 0.6 + ALPHA_SPREAD * rng.standard_normal()
        rounds, emitted = decoded(alpha, rng)
        probs = tuple((alpha,) * min(each.accepted + 1, K) for each in rounds)
        ids = tuple(range(1 + emitted))
        sd = replace(pair.sd, seconds=0.5 + ROUND_S * len(rounds), first_token_s=0.5, token_ids=ids, rounds=rounds)
        ar = replace(pair.ar, seconds=0.5 + AR_S * TOKENS, first_token_s=0.5, token_ids=tuple(range(1 + TOKENS)))
        replay = Replay(ids, rounds, probs, None, PhaseSeconds(0, 0, 0, 0, 0)) if rng.random() < share_replayed else None
        pairs.append(replace(pair, ar=ar, sd=sd, replay=replay))
    return replace(template, pairs=tuple(pairs))


@pytest.mark.parametrize(("share_replayed", "narrower"), [(1.0, 0.85), (0.5, 0.97)])
def test_the_mean_stays_and_the_noise_shrinks(share_replayed: float, narrower: float) -> None:
    rng = np.random.default_rng(5)
    raw, adjusted = [], []
    for _ in range(300):
        record = simulated(rng, share_replayed=share_replayed)
        one, other = metrics.gamma(record), gamma_without_luck(record)
        assert one is not None
        assert other is not None
        raw.append(math.log(one.estimate))
        adjusted.append(math.log(other.estimate))
    difference = np.array(adjusted) - np.array(raw)
    # The surplus has mean 0, so the two differ by chance only: within 4 standard errors, which fails 1 time in 16,000.
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference))
    assert np.std(adjusted) < narrower * np.std(raw)


def test_its_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    found = [gamma_without_luck(simulated(rng)) for _ in range(600)]
    truth = np.mean([math.log(each.estimate) for each in found if each is not None])
    covered = np.mean([math.log(each.low) <= truth <= math.log(each.high) for each in found if each is not None])
    assert 0.92 <= covered <= 0.98  # 95 % less and plus three standard errors of 0.9 %


def test_without_a_replay_there_is_nothing_to_take_out() -> None:
    record = make_record()
    assert gamma_without_luck(replace(record, pairs=tuple(replace(pair, replay=None) for pair in record.pairs))) is None
