"""Simulate pairs of runs with a known truth: how often is a comparison wrong, and how often does it find a change?

    python -m tests.studies.simulated_comparisons        # prints the rates of docs/validation.md

Both sides decode the same prompts, which differ in length, speed and acceptance. They draw different outputs, or the same ones,
as engines do that share a seed. The machine drifts as in `tests.studies.simulated_runs`. Separate runs drift independently;
sides measured in turns share one drift. In turns, each launch of a side may also be faster or slower as a whole.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.analysis.comparison import ALPHA_MARGIN, COUNTED_ALPHA, GAMMA, SD, Comparison, Number, Side, Verdict, compare
from bench.records.decoding import Round
from bench.records.runs import CellRecord, RunRecord, TimedArm, TimedPair
from tests.studies.simulated_runs import AR_TOKEN_S, Array, machine_drift
from tests.support.record_builder import make_cell, make_run

MARGIN = 0.02
PREFILL_S = 0.05
DRIFT_POOL = 64  # machines drawn at once: the series is made step by step


@dataclass(frozen=True, slots=True)
class Design:
    """What is measured, and what HEAD changes."""

    num_cells: int = 5
    num_prompts: int = 12
    num_runs: int = 1  # of each side, which share the cells evenly
    interleaved: bool = False
    launches: int = 1  # of each side, in turns
    lottery: float = 0.0  # standard deviation between launches, in the log
    same_texts: bool = False
    drift: float = 1.0
    stalls: bool = True
    sd_slowdown: float = 0.0  # in the log, like the next
    ar_slowdown: float = 0.0
    alpha_change: float = 0.0


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What prompts have in common on both sides (P,)."""

    log_length: Array
    log_token_s: Array
    log_gamma: Array
    alpha: Array


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of one cell, and their extra cost (P,)."""

    ar_tokens: Array
    tested: Array
    accepted: Array
    log_cost: Array  # of the speculative arm


def comparisons(num: int, design: Design, *, seed: int) -> Iterator[Comparison]:
    """Yield the comparisons of simulated pairs of runs."""
    rng = np.random.default_rng(seed)
    cells = [make_cell(temperature=c / 4, num_prompts=design.num_prompts) for c in range(design.num_cells)]
    drifts = _drifts(rng, num * design.launches, design)
    for _ in range(num):
        of_launches = list(itertools.islice(drifts, design.launches))
        prompts = _draw_prompts(rng, design.num_prompts)
        # of each cell on each prompt, the same on both sides
        own = [0.05 * rng.standard_normal(design.num_prompts) for _ in cells]
        sides = [[_draw_texts(rng, prompts, each - change) for each in own] for change in (0.0, design.alpha_change)]
        if design.same_texts:
            sides[1] = sides[0]
        launches: list[list[dict[str, RunRecord]]] = [[], []]
        for drift in of_launches:
            for side, texts in enumerate(sides):
                luck = design.lottery * rng.standard_normal() if design.lottery else 0.0
                slowdowns = (luck + side * design.ar_slowdown, luck + side * design.sd_slowdown)
                records = [
                    CellRecord(cell, "", (), True, _pairs(rng, prompts, *of_cell, drift[side, place], slowdowns, design.stalls))
                    for place, (cell, *of_cell) in enumerate(zip(cells, own, texts, strict=True))
                ]
                runs = [make_run(records[place :: design.num_runs], baseline=()) for place in range(design.num_runs)]
                launches[side].append({str(place): run for place, run in enumerate(runs)})
        compared = [Side("", first, tuple(further)) for first, *further in launches]
        yield compare(*compared, margin=MARGIN, interleaved=design.interleaved)


def _drifts(rng: np.random.Generator, num: int, design: Design) -> Iterator[Array]:
    """Yield the log slow-down (side, cell, prompt, arm) of each comparison; arms of a pair are one step apart."""
    shape = (design.num_cells, design.num_prompts, 2)
    num_steps = math.prod(shape)
    for start in range(0, num, DRIFT_POOL):
        pool = min(DRIFT_POOL, num - start)
        if design.interleaved:
            series = machine_drift(rng, pool, 2 * num_steps).reshape(pool, *shape[:2], 2, 2)
            drifts = np.moveaxis(series, 3, 1)  # a pair of one side, then one of the other
            swapped = rng.random((pool, 1, *shape[:2], 1)) < 0.5
            drifts = np.where(swapped, drifts[:, ::-1], drifts)
        else:
            num_series = pool * 2 * design.num_runs
            series = machine_drift(rng, num_series, num_steps // design.num_runs)
            series = series.reshape(pool, 2, design.num_runs, -1, *shape[1:])  # the cells of a run one after the other
            drifts = np.moveaxis(series, 2, 3).reshape(pool, 2, *shape)
        swapped = rng.random((*drifts.shape[:-1], 1)) < 0.5
        yield from design.drift * np.where(swapped, drifts[..., ::-1], drifts)


def _draw_prompts(rng: np.random.Generator, num_prompts: int) -> _Prompts:
    score, alpha_score = rng.standard_normal((2, num_prompts))
    return _Prompts(
        log_length=math.log(40) + 0.4 * score,
        log_token_s=math.log(AR_TOKEN_S) + 0.1 * rng.standard_normal(num_prompts),
        log_gamma=0.2 + 0.15 * (0.9 * alpha_score + 0.44 * score),
        alpha=np.clip(0.55 + 0.12 * alpha_score, 0.2, 0.9),
    )


def _draw_texts(rng: np.random.Generator, prompts: _Prompts, alpha_shift: Array) -> _Texts:
    num_prompts = len(prompts.alpha)
    ar_tokens, tested = np.exp(prompts.log_length + 0.4 * rng.standard_normal((2, num_prompts)))
    tested = np.maximum(np.rint(tested / 1.5), 2)
    accepted = rng.binomial(tested.astype(int), np.clip(prompts.alpha + alpha_shift, 0.02, 0.98))
    log_cost = 0.5 / np.sqrt(tested + accepted) * rng.standard_normal(num_prompts)
    return _Texts(np.clip(np.rint(ar_tokens), 2, 64), tested, accepted, log_cost)


def _pairs(
    rng: np.random.Generator,
    prompts: _Prompts,
    own: Array,
    texts: _Texts,
    drift: Array,
    slowdowns: tuple[float, float],
    stalls: bool,
) -> tuple[TimedPair, ...]:
    tokens = np.stack((texts.ar_tokens, texts.tested + texts.accepted), axis=1)
    log_speed_up = np.stack((np.zeros_like(own), prompts.log_gamma + own - texts.log_cost), axis=1)
    log_token_s = prompts.log_token_s[:, None] - log_speed_up + np.array(slowdowns) + drift
    noise = np.hypot(0.02, 0.1 / np.sqrt(tokens)) * rng.standard_normal(tokens.shape)
    stall = np.where(rng.random(tokens.shape) < 0.02 * stalls, 0.3, 0.0)
    seconds = PREFILL_S + tokens * np.exp(log_token_s + noise + stall)
    counts = np.stack((texts.accepted, texts.tested), axis=1).astype(int).tolist()
    return tuple(
        TimedPair(prompt, 0, "ar_first", _arm(ar_tokens, ar_s, None), _arm(sd_tokens, sd_s, _rounds(*of_prompt)))
        for prompt, ((ar_tokens, sd_tokens), (ar_s, sd_s), of_prompt) in enumerate(
            zip(tokens.astype(int).tolist(), seconds.tolist(), counts, strict=True)
        )
    )


def _arm(num_decoded: int, seconds: float, rounds: tuple[Round, ...] | None) -> TimedArm:
    return TimedArm(0, seconds, PREFILL_S, (0,) * (1 + num_decoded), "stop", rounds)


@functools.cache
def _rounds(accepted: int, tested: int) -> tuple[Round, ...]:
    """Return rounds of one draft token each."""
    return (Round(1, 1, 2),) * accepted + (Round(1, 0, 1),) * (tested - accepted)


# Rates
def false_difference(comparison: Comparison) -> bool:
    """Return whether a comparison of two equal sides has any verdict but SAME and INCONCLUSIVE."""
    return any(outcome.verdict not in ("SAME", "INCONCLUSIVE") for cell in comparison.cells for outcome in cell.outcomes)


def same_speed(comparison: Comparison) -> bool:
    """Return whether any cell is SAME in the seconds of speculation or in gamma."""
    return _says(comparison, ("SAME",), (SD, GAMMA))


def same_alpha(comparison: Comparison) -> bool:
    return _says(comparison, ("SAME",), (COUNTED_ALPHA,))


def is_slower(comparison: Comparison) -> bool:
    """Return whether any cell is SLOWER in the seconds of speculation."""
    return _says(comparison, ("SLOWER",), (SD,))


def share_slower(comparison: Comparison) -> float:
    """Return the share of cells that are SLOWER in the seconds of speculation."""
    cells = [replace(comparison, cells=(cell,)) for cell in comparison.cells]
    return sum(map(is_slower, cells)) / len(cells)


def _says(comparison: Comparison, verdicts: Sequence[Verdict], numbers: Sequence[Number]) -> bool:
    return any(
        outcome.verdict in verdicts and outcome.number in numbers for cell in comparison.cells for outcome in cell.outcomes
    )


def rate(num: int, design: Design, of: Callable[[Comparison], float], *, seed: int = 0) -> float:
    """Return the mean of a function of comparisons."""
    return sum(map(of, comparisons(num, design, seed=seed))) / num


def _line(num: int, design: Design, of: Callable[[Comparison], float]) -> str:
    way = f"{design.launches} in turns" if design.interleaved else f"{design.num_runs} a side"
    texts = "the same" if design.same_texts else "different"
    return f"{way:10}  {texts:12}  {design.num_cells:5}  {design.num_prompts:7}  {rate(num, design, of):6.2%}"


def main(num: int) -> None:
    header = "runs        texts         cells  prompts  share"
    print(f"any false difference, {num} comparisons a line\n{header}", flush=True)
    in_turns = Design(interleaved=True)
    for design in (
        replace(in_turns, num_cells=1),
        replace(in_turns, num_prompts=6),
        in_turns,
        replace(in_turns, same_texts=True),
        Design(6),
        Design(6, num_runs=6),
        Design(6, num_runs=6, same_texts=True),
        Design(10, num_runs=2, same_texts=True),
    ):
        print(_line(num, design, false_difference), flush=True)
    print(f"\nlaunches 3 % apart: any false difference, {num} comparisons a line\n{header}", flush=True)
    for launches in (1, 3, 5, 8):
        design = replace(in_turns, same_texts=True, launches=launches, lottery=0.03)
        print(_line(num, design, false_difference), flush=True)
    num //= 4
    print(f"\nany false SAME of numbers that differ by the margin, {num} comparisons a line\n{header}", flush=True)
    slower = Design(1, interleaved=True, same_texts=True, sd_slowdown=math.log1p(MARGIN))
    for prompts in (12, 96):
        print(_line(num, replace(slower, num_prompts=prompts), same_speed), "SD or gamma", flush=True)
        less = Design(1, prompts, interleaved=True, alpha_change=ALPHA_MARGIN)
        print(_line(num, less, same_alpha), "alpha", flush=True)
    print(f"\nspeculation 5 % slower: SLOWER in any cell, share of cells, {num} comparisons a line\n{header}", flush=True)
    slower = replace(slower, num_cells=5, sd_slowdown=math.log(1.05))
    for prompts in (12, 48):
        for steady in (False, True):
            design = replace(slower, num_prompts=prompts, drift=float(not steady), stalls=not steady)
            told = [_line(num, design, of) for of in (is_slower, share_slower)]
            print(told[0], told[1].split()[-1], "steady machine" if steady else "", flush=True)
    for launches in (3, 5, 8):
        design = Design(1, interleaved=True, same_texts=True, launches=launches, lottery=0.02)
        design = replace(design, drift=0.0, stalls=False, sd_slowdown=math.log(1.05), ar_slowdown=math.log(1.05))
        print(_line(num, design, is_slower), "launches 2 % apart, steady machine", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
