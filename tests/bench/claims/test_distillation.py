"""Claims on distillation: made-up matrices whose truth is known, through the record file to the verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.claims.distillation import FIND, LEAST_PROMPTS
from bench.claims.ledger import claims, judge, load
from bench.records import kd_matrix
from bench.records.kd_matrix import OTHER_K, START, TUNING, MatrixCell, MeasuredDraft

MACHINE, DOMAINS = "example-2c", ("alpaca.jsonl:1-20", "gsm8k.jsonl:1-20")
DECODE, KD = (0.0, 0.4, 0.7, 1.0, 1.5, 2.0), (0.0, 0.4, 0.7, 1.0)
NUM_PROMPTS, NUM_SEEDS, TOKENS = 20, 6, 60.0
Alpha = Callable[[str, float | None, float, float], float]  # arm, KD T, decode T, draft T
ARMS = ("offline", "soft", "soft:data", "online", "online@0.5", "online:data", "offline, in the seconds of online")


def cell(domain: str, temperature: float, alpha: float, noise: np.ndarray, **changes: Any) -> MatrixCell:
    """Return a cell in which every round of k draft tokens emits 1 + alpha k tokens."""
    alphas = np.clip(alpha + noise, 0.01, 0.99)
    tested = np.full(NUM_PROMPTS, TOKENS)
    rounds = {k: tuple((TOKENS / (1 + k * alphas)).round(3).tolist()) for k in (3, *OTHER_K)}
    return MatrixCell(
        domain=domain,
        temperature=temperature,
        tokens=(int(TOKENS),) * NUM_PROMPTS,
        overlap=tuple((alphas * TOKENS).round(3).tolist()),
        tested=tuple(tested.tolist()),
        accepted=tuple((alphas * tested).round(3).tolist()),
        emitted=(int(TOKENS),) * NUM_PROMPTS,
        rounds=rounds.pop(3),
        other_rounds=rounds,
        **changes,
    )


def draft(
    name: str, arm: str, kd_t: float | None, seed: int | None, alpha: Alpha, rng: np.random.Generator, **changes: Any
) -> MeasuredDraft:
    recipe, _, share = arm.partition("@")
    of_seed = 0.0 if seed is None else 0.003 * np.random.default_rng(1000 + seed).standard_normal()
    cells = []
    for domain in DOMAINS:
        for temperature in DECODE:
            of_texts = 0.05 * np.random.default_rng(int(10 * temperature)).standard_normal(
                NUM_PROMPTS
            )  # the same for all drafts

            options: tuple[dict[str, Any], ...] = (
                {},
                {"draft_temperature": 1.0},
                {"draft_temperature": 0.6, "tuned": True},
            )
            for changed in options:
                noise = of_texts + of_seed + 0.004 * rng.standard_normal(NUM_PROMPTS)
                value = alpha(recipe, kd_t, temperature, changed.get("draft_temperature", temperature))
                cells.append(cell(domain, temperature, value, noise, **changed))
    on_policy = float(share or recipe.startswith("online"))
    line = MeasuredDraft(name, recipe, kd_t, on_policy, seed, {}, {}, tuple(cells), LEAST_PROMPTS, 1e-3)
    return line if not changes else MeasuredDraft(**{each: getattr(line, each) for each in line.__slots__} | changes)  # type: ignore[arg-type]


def write(results: Path, alpha: Alpha, *, start: str = "reference", name: str = "1", **changes: Any) -> None:
    rng = np.random.default_rng(1)
    path = results / MACHINE / "kd_matrix" / "records" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    job = {"start": start, "prompts": ["alpaca.jsonl:21-900"], "recipe": {}, "seed": 0}
    plan = {"domains": list(DOMAINS), "decode_temperatures": list(DECODE), "job": job}
    kd_matrix.start(
        path, {"plan": plan, "command": ["specheat", "kd-matrix"], "start_card": {"recipe": start}, "model_pair": "tiny"}
    )
    with kd_matrix.adding(path) as add:
        add(draft(START, START, None, None, alpha, rng))
        add(draft("tuning-hard-rate0.1", TUNING, 0.7, 1000, alpha, rng))
        for seed in range(NUM_SEEDS):
            for arm in ARMS:
                for kd_t in (*KD, *((2.0,) if arm == "offline" else ())):
                    add(draft(f"{arm}-t{kd_t}-seed{seed}", arm, kd_t, seed, alpha, rng, **changes))
            for arm in ("mixture", "composed"):
                add(draft(f"{arm}-seed{seed}", arm, None, seed, alpha, rng, **changes))


def verdicts(results: Path) -> dict[str, str]:
    (records,) = load(results, MACHINE).values()
    of_drafts = [claim for claim in claims() if claim.name in FIND]
    return {row.claim.name: row.verdict for row in judge(of_drafts, [claim.find(records) for claim in of_drafts])}


def as_the_paper_says(arm: str, kd_t: float | None, decode_t: float, draft_t: float) -> float:
    """Everything that the paper or a contested claim says holds, by far more than the margins."""
    alpha = 0.5 - 0.2 * min(decode_t, 1.0) - 0.1 * abs(draft_t - decode_t)
    if arm == START:
        return alpha
    alpha += 0.08 + 0.03 * min(decode_t, 1.0)
    if arm == "composed":
        return alpha + 0.2
    if arm == "mixture":
        return alpha
    kd_t = kd_t or 0.0
    alpha -= 0.12 * abs(kd_t - decode_t)
    if arm.startswith("online"):
        alpha += 0.06 + 0.05 * (decode_t >= 0.8) - 0.1 * (decode_t == 0)
    if arm.startswith("soft"):
        alpha += 0.03
    return alpha + 0.02 * arm.endswith(":data")


def without_effects(arm: str, kd_t: float | None, decode_t: float, draft_t: float) -> float:
    return 0.5 - 0.2 * min(decode_t, 1.0)


def test_what_is_true_by_far_is_supported(tmp_path: Path) -> None:
    write(tmp_path, as_the_paper_says)
    found = {name: verdict for name, verdict in verdicts(tmp_path).items() if not name.startswith("aligned-")}
    assert found.pop("composed-gains-in-time") == "NOT MEASURED"
    assert found.pop("half-own-text-better") == "SUPPORTED"
    # With draft T 0.6 instead of the decode T, and KD T 1, the tuned draft is far below the matched ones here.
    assert found.pop("draft-t-as-good") == "REFUTED"
    assert set(found.values()) == {"SUPPORTED"}, found


def test_where_nothing_differs_claims_with_a_margin_are_equivalent(tmp_path: Path) -> None:
    write(tmp_path, without_effects)
    with_margin = {claim.name for claim in claims() if claim.name in FIND and claim.margin is not None}
    for name, verdict in verdicts(tmp_path).items():
        if name.startswith("aligned-") or name == "composed-gains-in-time":
            assert verdict == "NOT MEASURED"
        elif name in with_margin:
            assert verdict == "EQUIVALENT", name
        else:
            assert verdict == ("REFUTED" if name.startswith("composed-gains") else "SUPPORTED"), name


def test_the_start_decides_which_claims_a_matrix_is_about(tmp_path: Path) -> None:
    write(tmp_path, as_the_paper_says, start="base")
    found = verdicts(tmp_path)
    assert {name for name, verdict in found.items() if verdict != "NOT MEASURED"} == {
        name for name in found if "aligned-" in name
    }
    assert found["aligned-online-better"] == "SUPPORTED"


@pytest.mark.parametrize("changes", [{"distinct_prompts": LEAST_PROMPTS - 1}, {"distinct_prompts": None}])
def test_drafts_of_few_prompts_decide_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, as_the_paper_says, **changes)
    assert set(verdicts(tmp_path).values()) == {"NOT MEASURED"}


def test_seeds_of_two_records_are_joined_and_a_seed_that_lacks_cells_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, as_the_paper_says)
    whole = tmp_path / MACHINE / "kd_matrix" / "records" / "1.jsonl"
    head, *lines = whole.read_text().splitlines(keepends=True)
    of_seed = len(lines[2:]) // NUM_SEEDS
    whole.write_text("".join((head, *lines[: 2 + 3 * of_seed])))
    (whole.parent / "2.jsonl").write_text("".join((head, *lines[:2], *lines[2 + 3 * of_seed : -1])))
    (records,) = load(tmp_path, MACHINE).values()
    helps, mixture = FIND["kd-helps-offline"](records), FIND["composed-gains-k3"](records)
    assert helps is not None
    assert mixture is not None
    assert (helps.detail[:7], mixture.detail[:7]) == ("6 seeds", "5 seeds")
    assert len(helps.files) == 2
