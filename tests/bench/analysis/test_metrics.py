"""Numbers of bench.analysis.metrics on small records worked by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench.analysis import metrics
from bench.analysis.verdict import Verdict, verdict_of
from bench.records import decoding
from bench.records.decoding import ForwardSeconds, ModelPair, PhaseSeconds, Replay, Round
from bench.records.runs import (
    SCHEMA,
    BaselineTriple,
    Cell,
    CellRecord,
    Evidence,
    RunRecord,
    TextEvidence,
    TimedArm,
    TimedPair,
)

NUM_PROMPTS = 8
CELL = Cell(
    suite="temperature_grid",
    backend="fake",
    rule="rejection",
    pair="toy",
    draft="toy-draft",
    dtype="float32",
    device="cpu",
    temperature=1.0,
    draft_temperature=1.0,
    num_draft_tokens=3,
    top_k=0,
    top_p=1.0,
    max_new_tokens=64,
    end_token="natural",
    prompt_set="toy",
    num_prompts=NUM_PROMPTS,
    repeats=1,
    prompts_hash="0",
    chat_template="none",
    chat_template_hash="",
    seed=0,
)
ROUNDS = (
    Round(drafted=3, accepted=3, emitted=4),  # full acceptance and the bonus token
    Round(drafted=3, accepted=1, emitted=2),  # a rejection
    Round(drafted=3, accepted=2, emitted=2),  # closed by an accepted end token: the third draft token is not tested
)
PROBS = ((0.9, 0.8, 0.7), (0.6, 0.5), (0.8, 0.9))


def arm(seconds: float, num_tokens: int, *, first_token_s: float | None = 0.1, rounds: tuple[Round, ...] = ()) -> TimedArm:
    return TimedArm(
        seed=1,
        seconds=seconds,
        first_token_s=first_token_s,
        token_ids=tuple(range(num_tokens)),
        finish_reason="stop",
        rounds=rounds,
    )


def replay(probs: tuple[tuple[float, ...], ...] = PROBS, rounds: tuple[Round, ...] = ROUNDS) -> Replay:
    return Replay(
        token_ids=tuple(range(9)),
        rounds=rounds,
        acceptance_probs=probs,
        joint_length=None,
        phase_s=PhaseSeconds(prefill=0.1, draft=0.2, verify=0.6, accept=0.05, other=0.05),
    )


def pair(prompt_index: int, *, ar: TimedArm, sd: TimedArm) -> TimedPair:
    return TimedPair(prompt_index=prompt_index, repeat=0, order="ar_first", ar=ar, sd=sd)


def pairs_of(num_prompts: int, *, gamma: float = 2.0) -> tuple[TimedPair, ...]:
    """AR decodes 8 tokens at about 0.1 s, SD 8 tokens `gamma` times as fast; prompts differ by up to 2 %."""
    wobble = np.linspace(-0.02, 0.02, num_prompts)
    return tuple(
        replace(
            pair(i, ar=arm(0.9, 9), sd=arm(0.1 + 0.8 / gamma * (1 + float(wobble[i])), 9, rounds=ROUNDS)),
            forwards=(ForwardSeconds(16, ar_s=0.04 * (i + 1), draft_s=0.005 * (i + 1), verify_s=0.045 * (i + 1)),),
            replay=replay(),
        )
        for i in range(num_prompts)
    )


def cell_record(pairs: Sequence[TimedPair] | None = None) -> CellRecord:
    return CellRecord(
        cell=CELL,
        started="2026-01-01T00:00:00+00:00",
        warmup_s=(0.1, 0.1),
        warmup_settled=True,
        pairs=pairs_of(NUM_PROMPTS) if pairs is None else tuple(pairs),
    )


def run_record(record: CellRecord, *, native_s: float | None = 0.9, num_triples: int = NUM_PROMPTS) -> RunRecord:
    """Baseline triples whose arms differ by up to 1 %."""
    wobble = 0.01 * np.sin(np.arange(num_triples))
    return RunRecord(
        schema=SCHEMA,
        suite="temperature_grid",
        preset="smoke",
        command=(),
        created="2026-01-01T00:00:00+00:00",
        environment={},
        model_pair=ModelPair("toy", "target", "draft", "causal", "float32"),
        model_hashes={},
        prompt_format={},
        backend_settings={},
        baseline=tuple(
            BaselineTriple(
                prompt_index=i,
                order=("ar", "ar_again", "native"),
                ar=arm(0.9, 9),
                ar_again=arm(0.9 + float(wobble[i]), 9),
                native=None if native_s is None else arm(native_s, 9),
            )
            for i in range(num_triples)
        ),
        cells=(record,),
    )


def test_rounds_are_counted_with_untested_tokens_left_out() -> None:
    counts = metrics.count_rounds(ROUNDS)
    assert counts == metrics.RoundCounts(drafted=9, accepted=6, tested=7, emitted=8, rounds=3)


@pytest.mark.parametrize(
    ("round_", "rejected"),
    [
        (Round(drafted=3, accepted=0, emitted=1), True),
        (Round(drafted=3, accepted=3, emitted=4), False),  # bonus token
        (Round(drafted=3, accepted=3, emitted=3), False),  # the limit left no room for the bonus token
        (Round(drafted=3, accepted=1, emitted=1), False),  # closed by an accepted end token or the limit
        (Round(drafted=0, accepted=0, emitted=1), False),  # nothing drafted
    ],
)
def test_a_rejection_is_a_failed_draft_token_replaced_by_the_targets_own(round_: Round, rejected: bool) -> None:
    assert decoding.num_tested(round_) == round_.accepted + rejected


def test_acceptance_figures_are_ratios_of_counts_over_prompts() -> None:
    record = cell_record()
    for interval, expected in (
        (metrics.counted_alpha(record), 6 / 7),
        (metrics.expected_alpha(record), 5.2 / 7),
        (metrics.draft_utilisation(record), 6 / 9),
        (metrics.block_efficiency(record), 8 / 3),
    ):
        assert interval is not None
        assert interval.estimate == pytest.approx(expected)
        assert interval.num_clusters == NUM_PROMPTS


def test_both_estimates_of_alpha_can_be_taken_over_the_same_pairs() -> None:
    pairs = [p if p.prompt_index < 2 else replace(p, replay=None, sd=replace(p.sd, rounds=ROUNDS[:1])) for p in pairs_of(8)]
    record = cell_record(pairs)
    found = metrics.counted_alpha(record), metrics.replayed_alpha(record), metrics.expected_alpha(record)
    assert [each and each.estimate for each in found] == pytest.approx([(12 + 18) / (14 + 18), 6 / 7, 5.2 / 7])
    assert metrics.replayed_alpha(cell_record([replace(p, replay=None) for p in pairs])) is None


def test_agreement_is_the_martingale_z_of_the_replays() -> None:
    agreement = metrics.acceptance_agreement(cell_record())
    assert agreement is not None
    variance = sum(beta * (1 - beta) for probs in PROBS for beta in probs)
    assert agreement.compared == 7 * NUM_PROMPTS
    assert agreement.z == pytest.approx(NUM_PROMPTS * (6 - 5.2) / math.sqrt(NUM_PROMPTS * variance))


def test_agreement_at_temperature_0_is_exact() -> None:
    certain = ((1.0, 1.0, 1.0), (1.0, 0.0), (1.0, 1.0))
    exact = cell_record([replace(p, replay=replay(certain)) for p in pairs_of(NUM_PROMPTS)])
    assert metrics.acceptance_agreement(exact) == metrics.Agreement(z=0.0, p=1.0, compared=56)
    wrong = ((1.0, 1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    once_wrong = cell_record([*exact.pairs[1:], replace(exact.pairs[0], replay=replay(wrong))])
    assert metrics.acceptance_agreement(once_wrong) == metrics.Agreement(z=-math.inf, p=0.0, compared=56)


def test_a_jointly_judged_rule_has_no_alpha_and_is_compared_by_accepted_length() -> None:
    joint = replace(replay(((), (), ())), joint_length=(2.5, 1.5, 2.0))
    record = cell_record([replace(p, replay=joint) for p in pairs_of(NUM_PROMPTS)])
    record = replace(record, cell=replace(CELL, rule="block"))
    assert metrics.counted_alpha(record) is None
    assert metrics.expected_alpha(record) is None
    assert metrics.iid_predicted_gamma(record) is None
    assert metrics.acceptance_agreement(record) == metrics.Agreement(z=0.0, p=1.0, compared=3 * NUM_PROMPTS)
    assert verdict_of(record, run_record(record)).valid


def test_what_an_engine_does_not_report_is_none() -> None:
    silent = [replace(p, sd=replace(p.sd, rounds=None), replay=None, forwards=()) for p in pairs_of(NUM_PROMPTS)]
    record = cell_record(silent)
    for metric in (
        metrics.counted_alpha,
        metrics.expected_alpha,
        metrics.draft_utilisation,
        metrics.block_efficiency,
        metrics.acceptance_agreement,
        metrics.predicted_gamma,
        metrics.iid_predicted_gamma,
        metrics.cost_ratio,
        metrics.phase_shares,
    ):
        assert metric(record) is None
    assert verdict_of(record, run_record(record)).label == "FASTER"


def test_gamma_leaves_out_everything_up_to_the_first_token_in_both_arms() -> None:
    record = cell_record([pair(0, ar=arm(1.1, 11), sd=arm(0.9, 17)), pair(1, ar=arm(2.1, 11), sd=arm(0.9, 17))])
    gamma, e2e = metrics.gamma(record), metrics.gamma_e2e(record)
    assert metrics.times_measured(record) == "decode"
    assert gamma is not None
    assert e2e is not None
    assert gamma.estimate == pytest.approx((3.0 / 20) / (1.6 / 32))
    assert e2e.estimate == pytest.approx((3.2 / 22) / (1.8 / 34))


def test_gamma_falls_back_to_whole_calls_when_any_first_token_is_unknown() -> None:
    record = cell_record([pair(0, ar=arm(1.1, 11), sd=arm(0.9, 17, first_token_s=None)), *pairs_of(2)])
    assert metrics.times_measured(record) == "end_to_end"
    assert metrics.gamma(record) == metrics.gamma_e2e(record)


def test_an_arm_of_one_token_adds_nothing_and_the_other_arm_of_its_pair_still_counts() -> None:
    record = cell_record([pair(0, ar=arm(1.1, 11), sd=arm(0.5, 9)), pair(1, ar=arm(2.1, 11), sd=arm(0.15, 1))])
    gamma, geometric = metrics.gamma(record), metrics.gamma_geometric(record)
    assert gamma is not None
    assert geometric is not None
    assert gamma.estimate == pytest.approx((3.0 / 20) / (0.4 / 8))
    assert geometric.estimate == pytest.approx((1.0 / 10) / (0.4 / 8))  # the second pair has no ratio


def test_a_cell_of_one_token_texts_has_no_gamma() -> None:
    record = cell_record([pair(i, ar=arm(0.1, 1), sd=arm(0.1, 1)) for i in range(NUM_PROMPTS)])
    assert metrics.gamma(record) is None
    assert metrics.gamma_geometric(record) is None
    assert metrics.seconds_per_token(record, "ar") is None
    assert verdict_of(record, run_record(record)).reasons == ("no tokens were decoded in one of the arms",)


def test_seconds_per_token_are_those_gamma_is_made_of() -> None:
    record = cell_record()
    ar, sd, gamma = (
        metrics.seconds_per_token(record, "ar"),
        metrics.seconds_per_token(record, "sd"),
        metrics.gamma(record),
    )
    assert ar is not None
    assert sd is not None
    assert gamma is not None
    assert ar.estimate == pytest.approx(0.1)
    assert gamma.estimate == pytest.approx(ar.estimate / sd.estimate)


def test_predicted_gamma_is_block_efficiency_at_the_cost_of_bare_forwards() -> None:
    """The samples slow down eightfold from first to last, as on a drifting machine; their ratio stays."""
    record = cell_record()
    forward_ratio = 0.04 / (3 * 0.005 + 0.045)
    alpha = 6 / 7
    assert metrics.predicted_gamma(record) == pytest.approx(8 / 3 * forward_ratio)
    assert metrics.iid_predicted_gamma(record) == pytest.approx((1 - alpha**4) / (1 - alpha) * forward_ratio)
    assert metrics.cost_ratio(record) == pytest.approx(0.125)


def test_phase_shares_sum_to_one() -> None:
    shares = metrics.phase_shares(cell_record())
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["verify"] == pytest.approx(0.6)


def test_share_after_the_end_token_counts_what_lies_behind_the_first_one() -> None:
    record = cell_record([pair(0, ar=arm(1.0, 10), sd=arm(1.0, 4)), pair(1, ar=arm(1.0, 5), sd=arm(1.0, 4))])
    assert metrics.share_after_end_token(record, "ar", end_token_ids={7, 8}) == pytest.approx(2 / 15)
    assert metrics.share_after_end_token(record, "sd", end_token_ids={7, 8}) == 0


def test_baseline_figures_come_from_the_triples() -> None:
    run = run_record(cell_record(), native_s=0.7)
    floor, native = metrics.aa_floor(run), metrics.native_ratio(run)
    assert floor is not None
    assert 0 < floor < 0.02
    assert native is not None
    assert native.estimate == pytest.approx(0.8 / 0.6, rel=0.01)


def test_a_run_without_a_baseline_has_no_floor_and_no_verdict_on_gamma() -> None:
    record = cell_record()
    run = run_record(record, num_triples=0)
    assert metrics.aa_floor(run) is None
    assert metrics.native_ratio(run) is None
    verdict = verdict_of(record, run)
    assert (verdict.valid, verdict.label, verdict.reasons) == (True, "INCONCLUSIVE", ("no A/A floor was measured",))


def test_an_arm_that_is_the_engines_own_decode_has_no_native_ratio() -> None:
    assert metrics.native_ratio(run_record(cell_record(), native_s=None)) is None


@pytest.mark.parametrize(("gamma", "label"), [(2.0, "FASTER"), (0.5, "SLOWER"), (1.001, "SAME")])
def test_a_healthy_record_is_valid_and_says_what_its_gamma_shows(gamma: float, label: str) -> None:
    record = cell_record(pairs_of(NUM_PROMPTS, gamma=gamma))
    assert verdict_of(record, run_record(record)) == Verdict(True, label, (), "uncertified")


def test_too_few_prompts_are_inconclusive() -> None:
    record = cell_record(pairs_of(4))
    verdict = verdict_of(record, run_record(record))
    assert (verdict.valid, verdict.label) == (True, "INCONCLUSIVE")
    assert verdict.reasons[0].startswith("4 prompts, at least")


def test_a_failed_cell_is_invalid_for_that_reason_alone() -> None:
    record = replace(cell_record(()), error="out of memory", warmup_settled=False)
    assert verdict_of(record, run_record(record)).reasons == ("error: out of memory",)


def with_probs(record: CellRecord, probs: tuple[tuple[float, ...], ...]) -> CellRecord:
    return replace(record, pairs=tuple(replace(p, replay=replay(probs)) for p in record.pairs))


def with_evidence(record: CellRecord, *, num_tokens: int, power: float = 1) -> CellRecord:
    """Transforms as even as can be, raised to a power; at 1 the tokens follow the target."""
    text = TextEvidence(
        prompt_index=0,
        repeat=0,
        slots=(1,) * num_tokens,
        pit=tuple(((np.arange(num_tokens) + 0.5) / num_tokens) ** power),
        excess_surprisal=(0.0,) * num_tokens,
        surprisal_variance=(1.0,) * num_tokens,
    )
    return replace(record, evidence=Evidence("float32", 1e-5, (text,)))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda r: replace(r, warmup_settled=False), "warm-up never settled"),
        (lambda r: replace(r, throttle=("thermal",)), "throttled: thermal"),
        (
            lambda r: with_evidence(r, num_tokens=400, power=2),
            "certificate: LOSSY, the tokens do not follow the target",
        ),
        (
            lambda r: with_probs(r, ((0.3, 0.3, 0.3), (0.3, 0.3), (0.3, 0.3))),
            "counted and expected acceptance disagree",
        ),
        (lambda r: with_probs(r, ((0.9, 0.8), (0.6, 0.5), (0.8, 0.9))), "8 of 8 replays do not have one"),
        (
            lambda r: replace(r, pairs=tuple(replace(p, sd=replace(p.sd, token_ids=(1, 2))) for p in r.pairs)),
            "8 of 8 replays gave other token ids",
        ),
        (
            lambda r: replace(r, pairs=tuple(replace(p, sd=replace(p.sd, rounds=ROUNDS[:2])) for p in r.pairs)),
            "8 of 8 replays gave other rounds",
        ),
    ],
)
def test_each_fault_alone_makes_a_record_invalid(fault, reason: str) -> None:
    record = fault(cell_record())
    verdict = verdict_of(record, run_record(record))
    assert (verdict.valid, verdict.label, len(verdict.reasons)) == (False, "INVALID", 1)
    assert verdict.reasons[0].startswith(reason)


def test_a_baseline_slower_than_the_engines_own_decode_makes_every_cell_invalid() -> None:
    record = cell_record()
    verdict = verdict_of(record, run_record(record, native_s=0.8))
    assert verdict.label == "INVALID"
    assert verdict.reasons[0].startswith("baseline at least 13")


def test_a_baseline_faster_than_the_engines_own_decode_is_fine() -> None:
    record = cell_record()
    assert verdict_of(record, run_record(record, native_s=1.1)).valid


def test_an_engine_that_cannot_be_seeded_may_replay_another_text() -> None:
    other = replace(replay(PROBS[:2], ROUNDS[:2]), token_ids=(5, 6, 7))
    record = cell_record([replace(p, replay=other) for p in pairs_of(NUM_PROMPTS)])
    run = run_record(record)
    assert not verdict_of(record, run).valid
    assert verdict_of(record, replace(run, backend_settings={"seeded": False})).valid


def test_agreement_is_judged_at_a_level_shared_by_all_cells_of_the_run() -> None:
    record = with_probs(cell_record(), ((0.64, 0.64, 0.64), (0.64, 0.64), (0.64, 0.64)))
    agreement = metrics.acceptance_agreement(record)
    assert agreement is not None
    assert 0.001 / 100 < agreement.p < 0.001
    run = run_record(record)
    assert not verdict_of(record, run).valid
    assert verdict_of(record, replace(run, cells=(record,) * 100)).valid


@pytest.mark.parametrize(("num_tokens", "certificate"), [(4000, "LOSSLESS"), (400, "INCONCLUSIVE")])
def test_any_other_certificate_is_carried_and_the_label_stays(num_tokens: int, certificate: str) -> None:
    record = with_evidence(cell_record(), num_tokens=num_tokens)
    assert verdict_of(record, run_record(record)) == Verdict(True, "FASTER", (), certificate, 1, num_tokens)


def test_a_rule_that_is_lossy_by_design_stays_valid_and_is_declared_lossy() -> None:
    record = with_evidence(cell_record(), num_tokens=400, power=2)
    record = replace(record, cell=replace(record.cell, rule="typical"))
    assert verdict_of(record, run_record(record)) == Verdict(True, "FASTER", (), "LOSSY-DECLARED", 1, 400)


def test_wall_seconds_are_shared_out_by_what_they_were_spent_on() -> None:
    record = cell_record()
    arms_s = sum(pair.ar.seconds + pair.sd.seconds for pair in record.pairs)
    steps = {"baseline": 2.0, "warm-up": 1.0, "pairs": arms_s + 1.0, "certificate": 0.5}
    run = run_record(replace(record, wall_s=steps))
    shares = metrics.wall_shares(run)
    total = arms_s + 4.5
    assert shares == pytest.approx(
        {
            "pairs": arms_s / total,
            "warm-up": 1 / total,
            "baseline": 2 / total,
            "certificate": 0.5 / total,
            "instruments and the rest": 1 / total,
        }
    )
    assert sum(shares.values()) == pytest.approx(1)
    assert metrics.wall_shares(run_record(record)) == {}


def test_of_texts_decoded_at_once_the_longest_counts() -> None:
    cell = replace(CELL, concurrency=2)
    alone = cell_record().pairs[0]
    both = tuple(
        replace(alone, prompt_index=prompt, repeat=prompt, group=0, sd=replace(alone.sd, seconds=seconds))
        for prompt, seconds in ((0, 3.0), (1, 5.0))
    )
    steps = {"baseline": 0.0, "warm-up": 0.0, "pairs": alone.ar.seconds + 5.0, "certificate": 0.0}
    record = replace(cell_record(both), cell=cell, wall_s=steps)
    assert metrics.wall_shares(run_record(record))["pairs"] == pytest.approx(1)
