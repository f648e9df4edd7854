"""Do arms that advance in turns take the same time as arms that are decoded as a whole? And how much noise does that remove?

    python -m tests.studies.interleaving --backend reference --pair smollm2 > record.jsonl

Each text is decoded both ways with the same seeds, so the token ids are the same: a pair (AR, SD), and once for each prompt the
baseline (AR twice, and the engine's own plain decode). Which way comes first alternates. A stall of the machine hits single
texts, so the ratio of the two ways is a median over texts. Standard output gets a header, then a line of JSON per text.
Standard error gets a table; `python -m tests.studies.interleaving --read record.jsonl ...` prints it again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom
from tabulate import tabulate

from backends.models import workloads
from bench.analysis.metrics import spent
from bench.measurement import interleaving, timing
from bench.measurement.cells import first_cell, request_of
from bench.measurement.timing import NATIVE
from bench.options.settings import Settings
from bench.protocols import Backend, NativeBaseline
from bench.records.decoding import DecodeRequest
from bench.records.environment import capture
from bench.records.runs import TimedArm
from bench.registry import backend_factory
from bench.reporting.numbers import interval_text
from bench.statistics import intervals

WAYS = ("whole", "interleaved")


def settings_of(args: argparse.Namespace) -> Settings:
    return Settings(
        preset="quick",
        temperatures=(args.temperature,),
        repeats=1,
        max_new_tokens=args.max_new_tokens,
        backends=(args.backend,),
        backend_options=tuple(tuple(each.split("=", 1)) for each in args.backend_option),  # type: ignore[misc]
        pair=args.pair,
        inflations=(args.inflate,),
        num_draft_tokens=(args.num_draft_tokens,),
        prompts=(args.prompts,),
        num_prompts=args.num_prompts,
    )


def measured(backend: Backend, requests: Sequence[DecodeRequest], *, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield for each text the seconds and tokens of every arm, both ways. The baseline is measured once for each prompt."""
    has_native = isinstance(backend, NativeBaseline)
    for interleave in (False, True):
        _, settled = timing.warm_up(backend, requests[0], native=has_native, interleave=interleave)
        if not settled:
            print("the warm-up never settled", file=sys.stderr)
    orders = timing.plan_baseline(len(requests), seed=0, native=has_native)
    for number, plan in enumerate(timing.plan_pairs(len(requests), repeats, seed=0)):
        ((prompt, repeat),) = plan.texts
        line, ids = {}, {}
        for way in WAYS[:: 1 if number % 2 else -1]:
            how = way == "interleaved"
            (pair,) = timing.time_pair(backend, plan, requests, instrument_every=0, interleave=how)
            arms: dict[str, TimedArm | None] = {"ar": pair.ar, "sd": pair.sd}
            done = [pair.interleaved]
            if repeat == 0:
                triple = timing.time_triple(backend, prompt, orders[prompt], requests[prompt], interleave=how)
                arms |= {"aa": triple.ar, "again": triple.ar_again, NATIVE: triple.native}
                done.append(triple.interleaved)
            if any(each != how for each in done):
                raise ValueError(f"backend {backend.name} cannot advance its arms in turns")
            line[way] = {arm: spent(timed, "decode") for arm, timed in arms.items() if timed is not None}
            line[f"{way} e2e"] = {arm: spent(timed, "end_to_end") for arm, timed in arms.items() if timed is not None}
            ids[way] = [timed.token_ids for timed in arms.values() if timed is not None]
        yield {"prompt": prompt, "repeat": repeat, "order": plan.order, "same_ids": ids["whole"] == ids["interleaved"], **line}


def rows(header: dict[str, Any], lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table for one record."""
    what = header["what"]

    def columns(way: str, arm: str) -> tuple[list[float], list[float]]:
        found = [line[way][arm] for line in lines if arm in line[way]]
        return [seconds for seconds, _ in found], [tokens for _, tokens in found]

    def prompts_with(arm: str) -> list[int]:
        return [line["prompt"] for line in lines if arm in line["whole"]]

    for arm in ("ar", "sd"):
        for times in ("", " e2e"):
            each = [np.divide(*columns(f"{way}{times}", arm)) for way in WAYS]
            texts = f"{arm.upper()} seconds per token{times}, median of {len(lines)} texts"
            yield what, texts, *(f"{1000 * np.median(seconds):.2f} ms" for seconds in each), median_text(each[1] / each[0])
    for name, over, under in (("gamma", "ar", "sd"), ("AR / native", "aa", NATIVE)):
        if NATIVE in (over, under) and NATIVE not in lines[0]["whole"]:
            continue
        times = " e2e" if under == NATIVE else ""  # generate as a whole does not report its first token
        both = [
            interval_text(
                intervals.ratio_of_totals(*columns(way + times, over), *columns(way + times, under), prompts_with(over))
            )
            for way in WAYS
        ]
        yield what, name, *both, ""
    spreads, floors = [], []
    for way in WAYS:
        first, again = (np.divide(*columns(way, arm)) for arm in ("aa", "again"))
        spreads.append(float(np.log(first / again).std(ddof=1)))
        floors.append(intervals.log_ratio_floor(*columns(way, "aa"), *columns(way, "again"), prompts_with("aa")))
    yield what, "A/A standard deviation of a pair", *(f"{value:.1%}" for value in spreads), f"{spreads[1] / spreads[0]:.2f}"
    yield what, "A/A floor", *(f"{value:.1%}" for value in floors), f"{floors[1] / floors[0]:.2f}"
    same = sum(line["same_ids"] for line in lines)
    yield what, "texts with the same token ids both ways", "", "", f"{same} of {len(lines)}"


def median_text(ratios: Sequence[float]) -> str:
    """Return the median with its 95 % interval from order statistics, which assumes nothing of the distribution."""
    ordered = np.sort(ratios)
    out = int(binom.ppf(0.025, len(ordered), 0.5))  # so many texts lie beyond each end of the interval
    if not 0 < out < len(ordered) - out + 1:
        return f"{np.median(ordered):.3f}"
    return f"{np.median(ordered):.3f} [{ordered[out - 1]:.3f}, {ordered[-out]:.3f}]"


def table(records: Sequence[Path]) -> str:
    found = []
    for path in records:
        header, *lines = map(json.loads, path.read_text().splitlines())
        found += rows(header, lines)
    return tabulate(found, headers=("engine and pair", "number", *WAYS, "ratio"), tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--backend-option", action="append", default=[])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--inflate")
    parser.add_argument("--prompts", default="instructions")
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--num-draft-tokens", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--turn-ms", type=float, help="length of a turn; 0: a single step or round")
    parser.add_argument("--read", type=Path, nargs="+", help="records of earlier runs")
    args = parser.parse_args()
    if args.read:
        print(table(args.read))
        return
    settings = settings_of(args)
    found = workloads.of_settings(settings)
    if isinstance(found, str):
        sys.exit(found)
    (workload,) = found.values()
    pair = workload.model_pair
    what = f"{args.backend}, {args.pair}{f' inflated {args.inflate}' if args.inflate else ''}"
    if args.turn_ms is not None:
        interleaving.TURN_S = max(args.turn_ms / 1000, 1e-9)
        what += f", turns of {args.turn_ms:g} ms" if args.turn_ms else ", turns of one step"
    command = " ".join(("python -m tests.studies.interleaving", *sys.argv[1:]))
    print(json.dumps({"what": what, "command": command, "environment": capture("cpu")}), flush=True)
    cell = first_cell("interleaving", args.backend, settings, workload, options=settings.options_of(args.backend))
    requests = [request_of(cell, prompt_ids, workload.end_token_ids) for prompt_ids in workload.prompt_ids]
    backend = backend_factory(args.backend)(pair, device="cpu", options=dict(settings.options_of(args.backend)))
    lines = []
    with closing(backend), timing.frozen_garbage():
        for line in measured(backend, requests, repeats=args.repeats):
            lines.append(json.loads(json.dumps(line)))
            print(json.dumps(line), flush=True)
            print(f"{len(lines)}/{args.repeats * len(requests)} texts", end="\r", file=sys.stderr, flush=True)
    headers = ("engine and pair", "number", *WAYS, "ratio")
    print(tabulate(rows({"what": what}, lines), headers=headers, tablefmt="github", disable_numparse=True), file=sys.stderr)


if __name__ == "__main__":
    main()
