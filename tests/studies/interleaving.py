"""Do arms that advance in turns take the same time as arms that are decoded as a whole? And how much noise does that remove?

    python -m tests.studies.interleaving --backend reference --pair smollm2 > record.jsonl

Each prompt is decoded both ways with the same seeds, so the token ids are the same: a pair (AR, SD) and the baseline (AR twice,
and the engine's own plain decode). Which way comes first alternates. Standard output gets a header, then a line of JSON per
prompt. Standard error gets a table; `python -m tests.studies.interleaving --read record.jsonl ...` prints it again.
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
from tabulate import tabulate

from backends.models import workloads
from bench.analysis.metrics import spent
from bench.measurement import timing
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


def measured(backend: Backend, requests: Sequence[DecodeRequest]) -> Iterator[dict[str, Any]]:
    """Yield for each prompt the seconds and tokens of every arm, both ways."""
    has_native = isinstance(backend, NativeBaseline)
    for interleave in (False, True):
        _, settled = timing.warm_up(backend, requests[0], native=has_native, interleave=interleave)
        if not settled:
            print("the warm-up never settled", file=sys.stderr)
    orders = timing.plan_baseline(len(requests), seed=0, native=has_native)
    for number, plan in enumerate(timing.plan_pairs(len(requests), 1, seed=0)):
        (prompt, _), line, ids = plan.texts[0], {}, {}
        for way in WAYS[:: 1 if number % 2 else -1]:
            how = way == "interleaved"
            (pair,) = timing.time_pair(backend, plan, requests, instrument_every=0, interleave=how)
            triple = timing.time_triple(backend, prompt, orders[prompt], requests[prompt], interleave=how)
            if (pair.interleaved, triple.interleaved) != (how, how):
                raise ValueError(f"backend {backend.name} cannot advance its arms in turns")
            arms: dict[str, TimedArm | None] = {"ar": pair.ar, "sd": pair.sd, "aa": triple.ar, "again": triple.ar_again}
            arms[NATIVE] = triple.native
            line[way] = {arm: spent(timed, "decode") for arm, timed in arms.items() if timed is not None}
            line[f"{way} e2e"] = {arm: spent(timed, "end_to_end") for arm, timed in arms.items() if timed is not None}
            ids[way] = [timed.token_ids for timed in arms.values() if timed is not None]
        yield {"prompt": prompt, "order": plan.order, "same_ids": ids["whole"] == ids["interleaved"], **line}


def rows(header: dict[str, Any], lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table for one record."""
    prompts = list(range(len(lines)))
    what = header["what"]

    def columns(way: str, arm: str) -> tuple[list[float], list[float]]:
        return [line[way][arm][0] for line in lines], [line[way][arm][1] for line in lines]

    for arm in ("ar", "sd"):
        for times in ("", " e2e"):
            ratio = intervals.ratio_of_totals(*columns(f"interleaved{times}", arm), *columns(f"whole{times}", arm), prompts)
            yield what, f"{arm.upper()} seconds per token{times}: interleaved / whole", "", "", interval_text(ratio)
    for name, over, under in (("gamma", "ar", "sd"), ("AR / native", "aa", NATIVE)):
        if NATIVE in (over, under) and NATIVE not in lines[0]["whole"]:
            continue
        times = " e2e" if under == NATIVE else ""  # generate as a whole does not report its first token
        both = [
            interval_text(intervals.ratio_of_totals(*columns(way + times, over), *columns(way + times, under), prompts))
            for way in WAYS
        ]
        yield what, name, *both, ""
    spreads, floors = [], []
    for way in WAYS:
        first, again = (np.divide(*columns(way, arm)) for arm in ("aa", "again"))
        spreads.append(float(np.log(first / again).std(ddof=1)))
        floors.append(intervals.log_ratio_floor(*columns(way, "aa"), *columns(way, "again"), prompts))
    yield what, "A/A standard deviation of a pair", *(f"{value:.1%}" for value in spreads), f"{spreads[1] / spreads[0]:.2f}"
    yield what, "A/A floor", *(f"{value:.1%}" for value in floors), f"{floors[1] / floors[0]:.2f}"
    same = sum(line["same_ids"] for line in lines)
    yield what, "prompts with the same token ids both ways", "", "", f"{same} of {len(lines)}"


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
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--num-draft-tokens", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.7)
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
    command = " ".join(("python -m tests.studies.interleaving", *sys.argv[1:]))
    print(json.dumps({"what": what, "command": command, "environment": capture("cpu")}), flush=True)
    cell = first_cell("interleaving", args.backend, settings, workload, options=settings.options_of(args.backend))
    requests = [request_of(cell, prompt_ids, workload.end_token_ids) for prompt_ids in workload.prompt_ids]
    backend = backend_factory(args.backend)(pair, device="cpu", options=dict(settings.options_of(args.backend)))
    lines = []
    with closing(backend), timing.frozen_garbage():
        for line in measured(backend, requests):
            lines.append(json.loads(json.dumps(line)))
            print(json.dumps(line), flush=True)
            print(f"{len(lines)}/{len(requests)} prompts", end="\r", file=sys.stderr, flush=True)
    headers = ("engine and pair", "number", *WAYS, "ratio")
    print(tabulate(rows({"what": what}, lines), headers=headers, tablefmt="github", disable_numparse=True), file=sys.stderr)


if __name__ == "__main__":
    main()
