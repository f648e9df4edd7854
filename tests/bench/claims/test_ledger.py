"""The ledger: corrected tests, errors that pair prompts, simulated ledgers of known truth, and a made-up folder of results."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.stats import binom

from bench.analysis.quantities import Finding
from bench.claims import decoding, distillation
from bench.claims.claim import Claim, LedgerRow, Rule
from bench.claims.ledger import claims, judge, ledgers
from bench.commands import main
from bench.commands.main import COMMANDS
from bench.records import kd_matrix
from bench.records.decoding import Round, parse_schedule
from bench.records.runs import CellRecord
from bench.reporting.ledger import page as ledger_page
from bench.reporting.ledger import table as ledger_table
from bench.statistics import effects
from bench.statistics.effects import Effect
from tests.studies.simulated_ledgers import simulate
from tests.support.record_builder import PREFILL_S, make_cell, make_record, make_run

ROOT = Path(__file__).parents[3]
MACHINE = "example-2c"
KD_TEMPERATURES, DECODE_TEMPERATURES = (0.0, 0.6, 1.0), (0.0, 0.6, 0.8, 1.0)
EQUAL = functools.partial(pytest.approx, rel=1e-9)  # rounding only

# Thresholds that are not zero. A new one needs a reason, and new data.
THRESHOLDS = {
    **dict.fromkeys(("criterion-costs", "criterion-costs-the-same", "rounds-cost-the-same"), math.log(1.02)),
    **dict.fromkeys(("mixture-as-good", "draft-temperature-as-good"), -0.01),
    "composed-gains": math.log(1.12),
}


# Rules
def claim_of(rule: Rule, name: str) -> Claim:
    return Claim(name, "Said.", "contested", "a number", rule, "run it", lambda records: None)


def judged(rule: Rule, *effects: Effect | None) -> tuple[LedgerRow, ...]:
    found = [None if effect is None else Finding(effect, "", (), ()) for effect in effects]
    return judge([claim_of(rule, str(place)) for place in range(len(found))], found)


def verdict_of(rule: Rule, effect: Effect | None) -> str:
    (row,) = judged(rule, effect)
    return row.verdict


@pytest.mark.parametrize(("side", "above", "below"), [(">", "SUPPORTED", "REFUTED"), ("<", "REFUTED", "SUPPORTED")])
def test_the_side_of_the_threshold_decides_and_only_where_the_test_is_sure(side: Any, above: str, below: str) -> None:
    rule = Rule("points", side, 0.1)
    assert verdict_of(rule, Effect(0.13, ((0.01, math.inf),))) == above
    assert verdict_of(rule, Effect(0.07, ((0.01, math.inf),))) == below
    just, short = 1.961, 1.959  # in standard errors, of a normal
    assert verdict_of(rule, Effect(0.1 + just * 0.01, ((0.01, math.inf),))) == above
    assert verdict_of(rule, Effect(0.1 + short * 0.01, ((0.01, math.inf),))) == "INCONCLUSIVE"
    assert verdict_of(rule, Effect(0.13, ((0.01, 1.0),))) == "INCONCLUSIVE"  # t of one degree of freedom
    assert verdict_of(rule, Effect(0.9, ((math.inf, 1.0),))) == "INCONCLUSIVE"
    assert verdict_of(rule, Effect(math.nan, ((0.01, 9.0),))) == "INCONCLUSIVE"
    assert verdict_of(rule, None) == "NOT MEASURED"


def test_a_ledger_corrects_over_the_claims_that_were_tested() -> None:
    rule = Rule("points", ">", 0.0)
    sure, doubtful = Effect(2.3, ((1.0, math.inf),)), Effect(0.0, ((1.0, math.inf),))  # p = 0.021 and 1
    rows = judged(rule, sure, doubtful, Effect(2.3, ((math.inf, 1.0),)), None)
    assert [row.verdict for row in rows] == ["SUPPORTED", "INCONCLUSIVE", "INCONCLUSIVE", "NOT MEASURED"]
    assert rows[0].p is not None
    assert rows[0].p_holm == pytest.approx(2 * rows[0].p)
    assert rows[2].p is rows[3].p is None


# Simulated ledgers
@pytest.mark.parametrize(("num_prompts", "num_seeds"), [(6, 2), (16, 3)])
def test_a_ledger_in_which_nothing_is_true_seldom_says_anything(num_prompts: int, num_seeds: int) -> None:
    # Were the rate just the 5 % that is promised, one seed in a thousand would fail.
    rates = simulate(200, num_prompts=num_prompts, num_seeds=num_seeds)
    assert rates.false_verdict <= binom.ppf(0.999, 200, effects.LEVEL) / 200


def test_true_claims_are_seen_beside_others_that_are_not() -> None:
    few, many = (simulate(50, num_prompts=prompts, num_seeds=5, num_true=10, seed=5) for prompts in (8, 64))
    for rates in (few, many):
        assert rates.false_verdict <= binom.ppf(0.999, 50, effects.LEVEL) / 50  # one seed in a thousand fails
    assert many.power > 0.8  # hundreds of claims, standard error below 2 points
    assert many.kd_power > 0.8
    assert few.power < many.power


# Claims
def test_claims_have_names_of_their_own_thresholds_that_stay_and_commands_that_exist() -> None:
    found = claims()
    assert sorted(claim.name for claim in found) == sorted([*decoding.FIND, *distillation.FIND])
    assert {claim.name: claim.rule.threshold for claim in found if claim.rule.threshold} == THRESHOLDS
    for claim in found:
        for command in claim.command.split(", and "):
            program, *words = command.split()
            assert program in ("pytest", "specheat")
            assert words[0] in COMMANDS if program == "specheat" else (ROOT / words[-1]).is_file()


# A made-up folder of results
def write(results: Path, suite: str, *records: CellRecord, name: str = "1-a-reference.json", **changes: Any) -> None:
    run = make_run(records, suite=suite, command=("pytest", f"suites/test_{suite}.py"), **changes)
    path = results / MACHINE / suite / "records" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(run))


def measured(suite: str, temperature: float, *, alpha: float = 0.6, gamma: float = 1.2, **of_cell: Any) -> CellRecord:
    return make_record(make_cell(suite=suite, temperature=temperature, **of_cell), alpha=alpha, gamma=gamma)


def costing(temperature: float, *, round_s: float, accept_share: float) -> CellRecord:
    """A cell with these seconds of a round, and of acceptance by those of verification, give or take 0.3 %."""
    rng = np.random.default_rng(int(10 * temperature))
    record = make_record(make_cell(suite="cost_of_temperature", temperature=temperature), noise=0.003)
    pairs = []
    for pair in record.pairs:
        assert pair.sd.rounds is not None
        assert pair.replay is not None
        seconds = PREFILL_S + len(pair.sd.rounds) * round_s * rng.lognormal(0, 0.003)
        accept = pair.replay.phase_s.verify * accept_share * rng.lognormal(0, 0.003)
        replay = replace(pair.replay, phase_s=replace(pair.replay.phase_s, accept=accept))
        pairs.append(replace(pair, sd=replace(pair.sd, seconds=seconds), replay=replay))
    return replace(record, pairs=tuple(pairs))


def scheduled(schedule: str, first_half: float, second_half: float) -> CellRecord:
    """A text whose alpha changes at token 32, whose rounds end there."""
    cell = make_cell(suite="dynamic_temperature", schedule=parse_schedule(schedule))
    rng = np.random.default_rng(6)
    pairs = []
    for pair in make_record(cell).pairs:
        rounds: list[Round] = []
        while (place := sum(round_.emitted for round_ in rounds)) < 64:
            alpha = first_half if place < 32 else second_half
            accepted = min(int(rng.geometric(1 - alpha)) - 1, 4)
            rounds.append(Round(4, accepted, accepted + 1))
        num_tokens = sum(round_.emitted for round_ in rounds)
        pairs.append(replace(pair, sd=replace(pair.sd, token_ids=(7,) * num_tokens, rounds=tuple(rounds)), replay=None))
    return replace(make_record(cell), pairs=tuple(pairs))


def kd_cell(alpha: float, domain: str, temperature: float, rng: np.random.Generator) -> kd_matrix.MatrixCell:
    of_prompts = np.random.default_rng(int(1000 * temperature))
    tested, easier = of_prompts.uniform(40, 120, 16), 0.03 * of_prompts.normal(size=16)
    accepted = tested * (alpha + easier + 0.004 * rng.normal(size=16))
    counts = tuple(map(int, tested))
    return kd_matrix.MatrixCell(
        domain, temperature, counts, tuple(accepted), tuple(tested), tuple(accepted), counts, tuple(tested)
    )


def kd_alpha(arm: str, kd_temperature: float | None, decode_t: float) -> float:
    """Every draft beats the start by 5 points, the matched one by 15; online at T = 0 loses, and wins most when hot."""
    if arm == "start":
        return 0.6 - 0.2 * decode_t
    if arm == "mixture":
        return kd_alpha("offline", decode_t, decode_t) - 0.08
    if arm == "composed":
        return kd_alpha("offline", 1.0, decode_t) * 1.3
    anomaly = -0.2 if kd_temperature == decode_t == 0 else 0.0
    online = 0.06 + 0.1 * (decode_t >= 0.8) + anomaly if arm == "online" else 0.0
    return kd_alpha("start", None, decode_t) + (0.15 if kd_temperature == decode_t else 0.05) + online


def write_matrix(
    results: Path,
    *,
    suite: str = "kd_matrix",
    seeds: Sequence[int] = range(5),
    domain: str = "instructions",
    file: str = "1-a.jsonl",
    **header: Any,
) -> None:
    rng = np.random.default_rng(7)
    arms = [(arm, kd_t) for arm in ("offline", "online") for kd_t in KD_TEMPERATURES]
    kinds: list[tuple[str, float | None]] = [*arms, ("mixture", None), ("composed", None)]
    lines: list[kd_matrix.MeasuredDraft] = []
    drafts = [("start", None, None), *((*kind, seed) for seed in seeds for kind in kinds)]
    for arm, kd_t, seed in drafts:
        cells = tuple(kd_cell(kd_alpha(arm, kd_t, t), domain, t, rng) for t in DECODE_TEMPERATURES)
        lines.append(kd_matrix.MeasuredDraft(f"{arm}-{kd_t}-{seed}", arm, kd_t, float(arm == "online"), seed, {}, {}, cells))
    plan = {"job": {}, "domain": domain, "decode_temperatures": DECODE_TEMPERATURES}
    entries = [{"plan": plan, "command": "specheat kd-matrix --pair tiny", **header}, *map(asdict, lines)]
    path = results / MACHINE / suite / "records" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def write_all(results: Path) -> None:
    grid = [measured("temperature_grid", t, alpha=0.8 - 0.3 * t, gamma=1.4 - 0.4 * t) for t in (0.0, 0.5, 1.0)]
    write(results, "temperature_grid", *grid)
    beyond = {0.5: (0.8, 1.5), 1.0: (0.6, 1.4), 1.5: (0.3, 1.4), 2.0: (0.7, 1.0)}
    write(results, "out_of_range", *(measured("out_of_range", t, alpha=a, gamma=g) for t, (a, g) in beyond.items()))
    domains = {"instructions": 0.4, "word_problems": 0.7}
    of_domains = [
        measured("out_of_domain", t, alpha=alpha, prompt_set=name, prompts_hash=name)
        for name, alpha in domains.items()
        for t in (0.0, 0.5, 1.0)
    ]
    write(results, "out_of_domain", *of_domains)
    costs = {0.0: (0.08, 0.05), 0.5: (0.085, 0.1), 1.0: (0.09, 0.1)}
    cost_records = [costing(t, round_s=round_s, accept_share=share) for t, (round_s, share) in costs.items()]
    write(results, "cost_of_temperature", *cost_records)
    drafts_at = {1.0: 0.7, 0.5: 0.4, 0.75: 0.35}
    tuned = [measured("draft_temperature", 1.0, alpha=a, draft_temperature=t) for t, a in drafts_at.items()]
    write(results, "draft_temperature", *tuned)
    lengths = {(0.0, 2): 1.2, (0.0, 4): 1.7, (1.0, 2): 1.5, (1.0, 4): 1.1}
    tuned = [measured("draft_length", t, gamma=gamma, num_draft_tokens=k) for (t, k), gamma in lengths.items()]
    write(results, "draft_length", *tuned)
    rules = {("rejection", 0.5): 0.75, ("rejection", 1.0): 0.7, ("exact_match", 0.5): 0.5, ("exact_match", 1.0): 0.25}
    by_rule = [measured("acceptance_rules", t, alpha=alpha, rule=rule) for (rule, t), alpha in rules.items()]
    write(results, "acceptance_rules", *by_rule, measured("acceptance_rules", 1.0, rule="block"))
    write(
        results,
        "dynamic_temperature",
        *(scheduled("1@0,0.25@32", 0.3, 0.8), scheduled("0.25@0,1@32", 0.8, 0.3), scheduled("1@0", 0.3, 0.3)),
    )
    write_matrix(results)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_all(folder)
    return folder


def ledger(results: Path) -> Mapping[str, LedgerRow]:
    (rows,) = ledgers(results, MACHINE).values()
    return {row.claim.name: row for row in rows}


REFUTED = {
    *("u-curve-gamma", "rounds-cost-the-same", "draft-temperature", "mixture-as-good", "draft-temperature-as-good"),
}
UNMEASURED = {"longer-tokens", "length-alone"}


def test_every_claim_about_made_up_results_has_the_verdict_that_is_true(results: Path) -> None:
    (pair,) = ledgers(results, MACHINE)
    rows = ledger(results)
    assert pair == "tiny"
    expected = {name: "REFUTED" if name in REFUTED else "SUPPORTED" for name in rows}
    expected |= dict.fromkeys(UNMEASURED, "NOT MEASURED")
    assert {name: row.verdict for name, row in rows.items()} == expected


def test_a_finding_says_what_was_compared_and_where_it_lies(results: Path) -> None:
    rows = ledger(results)

    def finding(name: str) -> Finding:
        found = rows[name].finding
        assert found is not None
        return found

    assert finding("hotter-rejects").detail == "T = 1 against 0; 12 prompts"
    assert finding("u-curve-alpha").detail == "T = 2 against 1.5; 12 prompts"
    assert finding("word-problems-easier").detail == "T = 0.5, 1; 12 and 12 prompts"
    assert finding("criterion-costs-the-same").detail == "T = 1 against 0.5; 12 prompts"
    assert finding("draft-length").detail == "T = 1 against 0, k of 2 against 4; 12 prompts"
    assert finding("matched-best").detail == "5 seeds, 16 prompts of instructions"
    assert finding("matched-best").files == (f"{MACHINE}/kd_matrix/records/1-a.jsonl",)
    assert finding("hotter-rejects").commands == ("pytest suites/test_temperature_grid.py",)
    assert len(finding("draft-temperature-as-good").files) == 2
    # Truth is exact where the noise cancels: all of it is in the drafts, 0.4 points a prompt.
    assert finding("matched-best").effect.estimate == pytest.approx(0.1, abs=0.002)
    assert finding("composed-gains").effect.estimate == pytest.approx(math.log(1.3), abs=0.01)
    assert finding("online-anomaly").effect.estimate == pytest.approx(-0.14, abs=0.004)


def test_what_was_not_measured_says_what_to_run(tmp_path: Path) -> None:
    write(tmp_path, "temperature_grid", *(measured("temperature_grid", t, alpha=0.9 - 0.4 * t) for t in (0.0, 1.0)))
    rows = ledger(tmp_path)
    assert {name for name, row in rows.items() if row.finding is not None} == {"hotter-slower", "hotter-rejects"}
    shown = ledger_table("tiny", tuple(rows.values()))
    for row, entries in zip(rows.values(), shown.body, strict=True):
        verdict = entries[shown.headers.index("verdict")]
        assert verdict.text == row.verdict
        assert (verdict.note is None) == (row.finding is not None)
        if verdict.note is not None:
            assert shown.notes[verdict.note - 1] == f"run {row.claim.command}"


def test_invalid_cells_and_older_records_are_left_out(tmp_path: Path) -> None:
    by_temperature = {0.0: 0.9, 0.5: 0.6, 1.0: 0.2}
    cells = [measured("temperature_grid", t, alpha=alpha) for t, alpha in by_temperature.items()]
    broken = replace(cells[2], throttle=("thermal",))
    write(tmp_path, "temperature_grid", *cells[:2], broken)
    older = [measured("temperature_grid", t, alpha=0.3 + 0.5 * t) for t in (0.0, 0.5)]
    write(tmp_path, "temperature_grid", *older, name="0-a.json", created="2026-11-19T10:00:00+00:00")
    row = ledger(tmp_path)["hotter-rejects"]
    assert row.finding is not None
    assert row.finding.detail.startswith("T = 0.5 against 0;")
    assert row.finding.files == (f"{MACHINE}/temperature_grid/records/1-a-reference.json",)
    assert row.verdict == "SUPPORTED"


def test_a_matrix_of_one_seed_is_not_tested_and_a_seed_that_was_stopped_is_left_out(tmp_path: Path) -> None:
    write_matrix(tmp_path, seeds=(0,))
    row = ledger(tmp_path)["matched-best"]
    assert (row.verdict, row.p) == ("INCONCLUSIVE", None)
    write_matrix(tmp_path, seeds=(0, 1, 2))
    path = tmp_path / MACHINE / "kd_matrix" / "records" / "1-a.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in whole if '"offline-1.0-2"' not in line))
    row = ledger(tmp_path)["matched-best"]
    assert row.finding is not None
    assert row.finding.detail.startswith("2 seeds")


def test_of_several_matrices_the_newest_that_can_be_tested_counts(tmp_path: Path) -> None:
    for number, (domain, seeds) in enumerate((("first", range(5)), ("second", range(3)), ("third", range(1)))):
        write_matrix(tmp_path, seeds=seeds, domain=domain, file=f"{number}.jsonl")
    finding = ledger(tmp_path)["matched-best"].finding
    assert finding is not None
    assert finding.detail == "3 seeds, 16 prompts of second"
    assert [Path(file).name for file in finding.files] == ["1.jsonl"]


@pytest.mark.parametrize(
    ("header", "pair"),
    [
        ({"model_pair": "small"}, "small"),  # as suites of drafts write it
        ({"model_pair": {"name": "large"}}, "large"),  # as the suite of token lengths does
        ({"command": "specheat kd-matrix --pair=other"}, "other"),
        ({"command": "specheat kd-matrix"}, "smollm2"),
    ],
)
def test_lines_belong_to_the_pair_that_their_head_names(tmp_path: Path, header: dict[str, Any], pair: str) -> None:
    write_matrix(tmp_path, suite="paradigm", seeds=(0, 1), **header)
    assert list(ledgers(tmp_path, MACHINE)) == [pair]
    assert not ledgers(tmp_path, MACHINE, pair="none")


# The page and the command
def page_of(results: Path) -> str:
    return ledger_page(ledgers(results, MACHINE), results=results.as_posix())


def test_the_page_is_the_same_every_time(results: Path) -> None:
    page = page_of(results)
    assert page == page_of(results)
    assert page.startswith("## pair tiny\n")
    first = f"{MACHINE}/temperature_grid/records/1-a-reference.json"
    assert f"R1: [{first}]({results.as_posix()}/{first})" in page
    for claim in claims():
        assert f"{claim.name}: " in page
    assert re.search(r"ratio &gt; 1\.12 +\| +1\.299 \[1\.289, 1\.308\]", page)  # 1.3 in truth


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main.main(["claims", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_prints_the_ledger_and_the_page(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capsys, results)
    assert status == 0
    assert f"claims on {MACHINE}, pair tiny" in text
    assert max(map(len, text.splitlines())) <= 130
    status, text, _ = run(capsys, results, "--markdown", "--machine", MACHINE, "--pair", "tiny")
    assert (status, text) == (0, f"# claims on {MACHINE}\n\n{page_of(results)}\n")


def test_help_says_what_the_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["claims", "--help"])
    assert ended.value.code == 0
    assert "verdicts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda results, empty: [empty / "none"], "expected a folder of results"),
        (lambda results, empty: [empty], "expected records in"),
        (lambda results, empty: [results, "--machine", "other"], f"expected a machine of {MACHINE}, got 'other'"),
        (lambda results, empty: [results, "--pair", "other"], f"expected records of pair other on {MACHINE}"),
    ],
)
def test_bad_input_ends_in_one_line(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[object]],
    said: str,
) -> None:
    status, text, error = run(capsys, *arguments(results, tmp_path))
    assert (status, text) == (2, "")
    assert said in error
    assert error.count("\n") == 1
