"""Token length: what is written down of a text, models against simulated truth, resume, the page, a run on a tiny pair."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from backends.certification.token_evidence import Speller, byte_alphabet, entropies
from backends.conformance.tiny_pairs import tiny_models
from backends.engines.reference import ReferenceBackend
from bench.analysis.token_length import (
    ALONE,
    COVARIATES,
    FULL,
    LENGTH,
    LENGTH_BINS,
    Positions,
    binned_shares,
    by_temperature,
    correlations,
    counts_elsewhere,
    fit_logistic,
    jackknifed,
    length_bins,
    length_effects,
    length_models,
    positions,
)
from bench.records import token_length
from bench.records.decoding import DecodeRequest, PhaseSeconds, Replay, Round
from bench.records.token_length import JudgedText, judged_positions, judged_text
from tests.support.children import run_suites
from tests.support.simulated_lengths import HEADER, simulated, simulated_text, stored
from tests.support.tiny_models import nearby, save_checkpoint, tiny_llama

ROOT = Path(__file__).parents[3]
SUITE = "suites/test_token_length.py"


def replay_of(token_ids: Sequence[int], rounds: Sequence[Round], probs: Sequence[Sequence[float]]) -> Replay:
    return Replay(tuple(token_ids), tuple(rounds), tuple(map(tuple, probs)), None, PhaseSeconds(0, 0, 0, 0, 0))


# What is written down of a text
def test_tested_positions_are_accepted_and_rejected_drafts_and_nothing_after_them() -> None:
    #  place 0: prefill | 1 2 3: both accepted, bonus | 4: rejected at once | 5 6: second rejected | 7: accepted end token
    rounds = (Round(2, 2, 3), Round(2, 0, 1), Round(2, 1, 2), Round(2, 1, 1))
    replay = replay_of(range(10, 18), rounds, [(0.9, 0.8), (0.1,), (0.7, 0.2), (0.6,)])
    assert list(judged_positions(replay)) == [
        *((1, 1, True, 0.9), (2, 2, True, 0.8)),  # the bonus token at 3 was not drafted
        (4, 1, False, 0.1),
        *((5, 1, True, 0.7), (6, 2, False, 0.2)),
        (7, 1, True, 0.6),  # draft tokens after an end token were not tested
    ]


def test_a_recovered_end_token_is_a_rejection_and_a_round_without_drafts_tests_nothing() -> None:
    rounds = (Round(0, 0, 1), Round(2, 0, 1))
    assert list(judged_positions(replay_of((5, 6, 2), rounds, [(), (0.3,)]))) == [(2, 1, False, 0.3)]


def test_a_first_round_may_carry_the_prefill() -> None:
    assert [place for place, *_ in judged_positions(replay_of((5, 6), [Round(1, 1, 2)], [(0.3,)]))] == [0]


@pytest.mark.parametrize(
    ("token_ids", "probs", "said"),
    [((5, 6), [(0.5, 0.5)], "expected 1 acceptance"), ((5, 6, 7, 8, 9), [(0.5,)], "expected rounds that emit")],
)
def test_rounds_that_do_not_fit_are_refused(
    token_ids: tuple[int, ...], probs: list[tuple[float, ...]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        list(judged_positions(replay_of(token_ids, [Round(2, 0, 1)], probs)))


def test_a_line_holds_the_emitted_token_of_each_tested_position() -> None:
    replay = replay_of((4, 5, 6, 2), [Round(2, 1, 2), Round(1, 1, 1)], [(0.9, 0.1), (1.0000001,)])
    text = judged_text(
        *(replay,),
        prompt_index=3,
        temperature=0.5,
        spellings=[b"a", b" the", "né".encode()[:-1], None],
        entropies=[0.0, 1.0, 2.0, 3.0],
    )
    assert text.token_ids == (5, 6, 2)
    assert text.accepted == (1, 0, 1)
    assert text.acceptance_probs == (0.9, 0.1, 1.0)
    assert text.num_bytes == (4, 2, 0)
    assert text.num_chars == (4, 2, 0)  # a character counts where it begins
    assert text.special == (0, 0, 1)
    assert text.entropies == (1.0, 2.0, 3.0)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    characters = {byte: character for character, byte in byte_alphabet().items()}
    euro = [characters[byte] for byte in "€".encode()]  # three bytes
    tokens = ["<end>", "a", *euro, characters[ord(" ")], "".join(euro[:2]), characters[ord(" ")] + "a"]
    model = BPE({token: i for i, token in enumerate(tokens)}, [(euro[0], euro[1]), (tokens[5], "a")])
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.add_tokens(["tool: €"])
    return fast


def test_a_token_of_a_byte_level_tokenizer_has_the_bytes_it_stands_for_also_parts_of_characters() -> None:
    tokenizer = byte_level_tokenizer()
    speller = Speller(tokenizer)
    spelled = [speller.spell(i) for i in range(len(tokenizer))]
    first, second, third = (bytes((byte,)) for byte in "€".encode())
    assert spelled == [None, b"a", first, second, third, b" ", first + second, b" a", "tool: €".encode()]
    assert speller.spell(99) is None  # beyond the tokenizer
    assert tokenizer.decode([6, 4, 7]) == "€ a"
    assert b"".join(speller.spell(i) or b"" for i in (6, 4, 7)).decode() == "€ a"


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_alphabet()) == set(ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    decode = decoders.ByteLevel().decode
    for text in ("é\n", "\t€", "\x00\x7f\xad"):
        characters = {byte: character for character, byte in byte_alphabet().items()}
        assert decode(["".join(characters[byte] for byte in text.encode())]) == text


def test_a_token_of_sentencepiece_has_a_byte_for_its_marker_and_one_for_a_byte_fallback() -> None:
    vocabulary = {"<s>": 0, "<0xE2>": 1, "▁the": 2, "né": 3}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    speller = Speller(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>"))
    assert [speller.spell(i) for i in range(4)] == [None, b"\xe2", b" the", "né".encode()]


def test_entropy_is_that_of_the_next_token_before_each_token() -> None:
    target = tiny_llama(seed=3)
    prompt_ids, token_ids = (1, 5, 6), (7, 8, 9, 10)
    found = entropies(target, prompt_ids, token_ids)
    for place, entropy in enumerate(found):
        with torch.inference_mode():
            logits = target(torch.tensor([prompt_ids + token_ids[:place]])).logits[0, -1].double()
        probs = logits.softmax(-1)
        assert entropy == pytest.approx(float(-(probs * probs.log()).sum()), abs=1e-5)  # float32 against float64
    assert len(found) == len(token_ids)


def test_the_entropy_behind_an_encoder_is_that_of_the_decoder() -> None:
    target, _ = tiny_models("same", "t5")
    prompt_ids, token_ids = (3, 5, 6), (7, 8, 9)
    found = entropies(target, prompt_ids, token_ids)
    with torch.inference_mode():
        decoder_ids = torch.tensor([(target.config.decoder_start_token_id, *token_ids[:-1])])
        logits = target(input_ids=torch.tensor([prompt_ids]), decoder_input_ids=decoder_ids).logits[0].double()
    probs = logits.softmax(-1)
    assert found == pytest.approx((-(probs * probs.log()).sum(-1)).tolist(), abs=1e-5)


def test_a_decoded_text_has_an_entry_for_every_tested_token() -> None:
    target = tiny_llama(seed=1)
    backend = ReferenceBackend(target, nearby(target, seed=2))
    request = DecodeRequest(prompt_ids=(1, 5), max_new_tokens=40, num_draft_tokens=3, seed=4, eos_token_ids=(2,))
    replay = backend.replay(request)
    text = judged_text(
        *(replay,),
        prompt_index=0,
        temperature=1.0,
        spellings=[b"w"] * len(replay.token_ids),
        entropies=entropies(target, request.prompt_ids, replay.token_ids),
    )
    assert len(text.places) == sum(map(len, replay.acceptance_probs)) > 0
    assert sum(text.accepted) == sum(round_.accepted for round_ in replay.rounds)
    assert text.token_ids == tuple(replay.token_ids[place] for place in text.places)
    assert all(0 <= entropy <= math.log(24) for entropy in text.entropies)


# Analysis
def test_a_logistic_fit_of_two_groups_is_their_log_odds_ratio() -> None:
    in_group = np.repeat([0.0, 1.0], 100)
    accepted = np.array([1.0] * 20 + [0.0] * 80 + [1.0] * 70 + [0.0] * 30)
    constant, slope = fit_logistic(np.column_stack((np.ones(200), in_group)), accepted)
    assert constant == pytest.approx(math.log(20 / 80), abs=1e-5)
    assert slope == pytest.approx(math.log(70 / 30) - math.log(20 / 80), abs=1e-5)


def test_a_logistic_fit_maximises_the_likelihood_wherever_it_starts_and_recovers_the_truth() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(5)
    design = np.column_stack((np.ones(5000), rng.standard_normal((5000, 3))))
    truth = np.array([0.5, 1.0, -0.7, 0.0])
    accepted = (rng.random(5000) < 1 / (1 + np.exp(-design @ truth))).astype(float)
    found = fit_logistic(design, accepted)
    naive = minimize(lambda b: np.logaddexp(0, design @ b).sum() - accepted @ design @ b, np.zeros(4), tol=1e-10)
    assert found == pytest.approx(naive.x, abs=1e-3)  # what minimize stops at
    assert found == pytest.approx(fit_logistic(design, accepted, start=truth), abs=1e-6)
    assert found == pytest.approx(truth, abs=0.16)  # four standard errors of at most 0.04


def test_separated_acceptance_gives_finite_steps_and_no_estimate() -> None:
    data = positions(simulated(1))
    separated = replace(data, accepted=(data.column(LENGTH) > 4).astype(float))
    assert np.isfinite(fit_logistic(separated.standardised, separated.accepted)).all()
    assert math.isnan(length_models(separated).length[ALONE].estimate)
    for accepted in (np.zeros_like(data.accepted), np.ones_like(data.accepted)):
        models = length_models(replace(data, accepted=accepted))
        assert math.isnan(models.length[ALONE].interval.half_width) or abs(models.length[ALONE].estimate) < 0.01
    constant = replace(data, standardised=np.where(np.arange(len(COVARIATES)) == 5, 0.0, data.standardised))
    full = length_models(constant).full
    assert [name for name, estimate in full.items() if math.isnan(estimate.estimate)] == [COVARIATES[5]]


def test_length_that_only_goes_with_entropy_vanishes_once_entropy_is_in() -> None:
    found = length_models(positions(simulated(2, num_prompts=24)))
    alone, full = found.length[ALONE], found.length[FULL]
    assert alone.interval.excludes_zero
    assert alone.estimate > 0.2
    assert not full.interval.excludes_zero
    assert found.length["with entropy"].estimate == pytest.approx(0.0, abs=0.2)
    assert found.change.interval.excludes_zero
    assert found.change.estimate == pytest.approx(full.estimate - alone.estimate)
    assert found.full["entropy"].estimate < -0.5
    assert found.full[LENGTH] == full


def test_length_that_matters_by_itself_stays() -> None:
    full = length_models(positions(simulated(3, num_prompts=24, of_length=0.8))).length[FULL]
    assert full.interval.excludes_zero
    assert full.estimate == pytest.approx(0.8, abs=0.25)


def test_a_jackknife_of_a_mean_is_its_standard_error_over_prompts() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    prompts = np.arange(4)
    (found,) = jackknifed(lambda kept: values[kept].mean(keepdims=True), prompts)
    assert found.estimate == 4.0
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 2)
    assert found.parts[0][1] == 3
    (alone,) = jackknifed(lambda kept: values[kept].mean(keepdims=True), np.zeros(4, int))
    assert alone.interval.half_width == math.inf


def test_intervals_of_a_coefficient_cover_over_prompts_that_differ() -> None:
    """300 runs of 12 prompts with constants of their own: 95 % less three standard errors of 1.3 % is 91 %."""
    rng = np.random.default_rng(6)
    prompts = np.repeat(np.arange(12), 40)
    truth = 0.5 * 0.97  # a constant that varies by 0.4 between prompts flattens the slope over all of them by 3 %
    covered = 0
    for _ in range(300):
        length = rng.standard_normal(480) + 0.5 * rng.standard_normal(12)[prompts]
        scores = 0.5 * length + 0.4 * rng.standard_normal(12)[prompts]
        accepted = (rng.random(480) < 1 / (1 + np.exp(-scores))).astype(float)
        design = np.column_stack((np.ones(480), length))

        def slope(kept: np.ndarray, design: np.ndarray = design, accepted: np.ndarray = accepted) -> np.ndarray:
            return fit_logistic(design[kept], accepted[kept])[1:]

        (found,) = jackknifed(slope, prompts)
        covered += found.interval.low <= truth <= found.interval.high
    assert 0.91 <= covered / 300 <= 0.99


def test_bins_sum_up_to_all_positions_and_their_shares_to_the_share_of_all() -> None:
    data = positions(simulated(4))
    bins = length_bins(data)
    shares = binned_shares(data.accepted, bins, len(LENGTH_BINS), data.prompts)
    counts = np.bincount(bins, minlength=len(LENGTH_BINS))
    assert counts.sum() == len(data.accepted) == 12 * 59  # one special token a text
    summed = sum(count * share.estimate for count, share in zip(counts, shares, strict=True) if share is not None)
    assert summed == pytest.approx(data.accepted.sum())
    lengths = data.column(LENGTH)
    assert [counts[0], counts[5], counts[6]] == [
        *((lengths == 1).sum(), ((lengths == 6) | (lengths == 7)).sum(), (lengths >= 8).sum())
    ]


def test_an_empty_bin_has_no_share() -> None:
    shares = binned_shares(np.array([1.0, 0.0]), np.array([0, 0]), 2, np.array([0, 1]))
    assert shares[0] is not None
    assert shares[1] is None


def test_a_token_is_counted_at_positions_of_other_prompts_only() -> None:
    rng = np.random.default_rng(7)
    token_ids, prompts = rng.integers(0, 9, 80), rng.integers(0, 5, 80)
    naive = [sum((token_ids == token) & (prompts != prompt)) for token, prompt in zip(token_ids, prompts, strict=True)]
    assert counts_elsewhere(token_ids, prompts).tolist() == naive


def test_correlations_are_those_of_scipy_and_absent_where_nothing_varies() -> None:
    from scipy.stats import pointbiserialr, spearmanr

    data = positions(simulated(8))
    found = correlations(data)
    for name in COVARIATES:
        assert found[name].estimate == pytest.approx(spearmanr(data.column(name), data.accepted).statistic)
    biserial = found[f"{LENGTH} (point-biserial)"]
    assert biserial.estimate == pytest.approx(pointbiserialr(data.accepted, data.column(LENGTH)).statistic)
    assert found["entropy"].interval.excludes_zero
    same = correlations(replace(data, accepted=np.ones_like(data.accepted)))
    assert all(math.isnan(estimate.estimate) for estimate in same.values())


def test_every_temperature_is_a_group_and_all_together_are_one() -> None:
    groups: dict[str, Positions] = by_temperature(positions(simulated(9)))
    assert list(groups) == ["T = 0.5", "T = 1", "all T"]
    assert len(groups["T = 0.5"].accepted) + len(groups["T = 1"].accepted) == len(groups["all T"].accepted)


def test_the_effects_of_the_ledger_are_the_coefficients_over_all_temperatures(tmp_path: Path) -> None:
    record = simulated(10, num_prompts=8)
    models = length_models(positions(record))
    for effect, name in zip(length_effects(stored(record, tmp_path)), (ALONE, FULL), strict=True):
        assert effect == models.length[name]
        assert effect.parts[0][1] == 7
    alone = length_effects(stored(simulated(10, num_prompts=1), tmp_path))[0]
    assert alone.standard_error == math.inf


# Records and page
def test_resume_decodes_only_what_is_missing(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    asked: list[tuple[float, int]] = []

    def judge(temperature: float, prompt_index: int) -> JudgedText:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append((temperature, prompt_index))
        return simulated_text(rng, prompt_index, temperature, of_length=0.0, of_entropy=1.0)

    path = token_length.start(tmp_path, HEADER)
    with pytest.raises(KeyboardInterrupt):
        token_length.measure(path, HEADER, judge, on_text=lambda done: None)
    with path.open("a") as file:
        file.write('{"prompt_index": 5, "temp')  # the text under way, had the machine stopped
    again = replace(HEADER, command=("pytest", "--resume"), created="2026-11-24T10:00:00+00:00")
    assert token_length.find_resumable(tmp_path, again) == path
    first, asked[:] = asked.copy(), []
    shown: list[int] = []

    def go_on(temperature: float, prompt_index: int) -> JudgedText:
        asked.append((temperature, prompt_index))
        return simulated_text(rng, prompt_index, temperature, of_length=0.0, of_entropy=1.0)

    token_length.measure(path, again, go_on, on_text=shown.append)
    assert len(first) == 5
    assert [*first, *asked] == [(temperature, prompt) for temperature in (0.5, 1.0) for prompt in range(6)]
    assert shown == list(range(5, 13))
    final = token_length.finish(path)
    assert final.name == "20261123T100000Z-abcdef0123-reference.jsonl"
    assert final.parent == tmp_path / "example-2c" / "token_length" / "records"
    assert len(token_length.load(final).texts) == 12
    assert token_length.find_resumable(tmp_path, again) is None
    with pytest.raises(FileExistsError):
        token_length.start(tmp_path, HEADER)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperatures": (0.5,)},
        {"model_hashes": {"target": "1", "draft": "9"}},
        {"environment": {**HEADER.environment, "harness_commit": "9"}},
        {"environment": {**HEADER.environment, "torch": "9"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_plan_model_version_or_commit_is_not_resumed(change: dict[str, object], tmp_path: Path) -> None:
    path = token_length.start(tmp_path, HEADER)
    assert token_length.find_resumable(tmp_path, replace(HEADER, **change)) is None  # type: ignore[arg-type]
    path.write_text("{}\n")
    assert token_length.find_resumable(tmp_path, HEADER) is None


def test_a_record_is_read_back_as_it_was_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    record = simulated(12)
    path = stored(record, tmp_path)
    assert token_length.load(path) == record
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[1:]]))
    with pytest.raises(ValueError, match="is not a record of token_length"):
        token_length.load(path)


def test_the_suite_leaves_a_record_and_skips_an_engine_without_the_rule(tmp_path: Path) -> None:
    target = tiny_llama(seed=1)
    pair = ("--target", save_checkpoint(target, tmp_path / "target"))
    pair += ("--draft", save_checkpoint(nearby(target, seed=2), tmp_path / "draft"))
    asked = (*pair, "--preset", "smoke", "--chat-template", "none", "--results", str(tmp_path / "results"))
    asked += ("--temperatures", "0,1", "--backend", "reference", "--backend", "prompt-lookup")
    done = run_suites(SUITE, *asked, f"--benchmark-json={tmp_path / 'benchmark.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "results").rglob("*.jsonl")
    assert str(path) in done.stdout
    record = token_length.load(path)
    assert [(text.temperature, text.prompt_index) for text in record.texts] == [
        (t, i) for t in (0.0, 1.0) for i in range(6)
    ]
    assert record.header.num_draft_tokens == 2
    assert str(tmp_path) not in json.dumps(asdict(replace(record.header, command=())))  # no folder of this machine
    data = positions(record)
    cold = data.temperatures == 0
    assert (data.acceptance_probs[cold] == data.accepted[cold]).all()  # greedy leaves nothing to chance
    assert "bytes" in done.stdout
    assert len(json.loads((tmp_path / "benchmark.json").read_text())["benchmarks"]) == 1
    assert "prompt-lookup has the rules exact_match, not rejection" in done.stdout
