"""`specheat kd-matrix`: train the drafts of a KD matrix, measure each at every decode temperature, print the table."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options.settings import RUNS
from bench.options.values import count_of, number_of, temperatures_of
from distill.commands.distill import interruptible, job_of, job_options, texts_folder

if TYPE_CHECKING:
    from bench.records.decoding import ModelPair
    from distill.runs.matrix import MatrixPlan

ARMS = "offline,online,mixture,composed"
DOMAIN = "instructions:held_out"


class KdMatrix:
    help = "train drafts at several KD temperatures and measure each at several decode temperatures; continues like distill"

    def configure(self, parser: ArgumentParser) -> None:
        option = parser.add_argument
        grid = "0,0.5,1 or first:last:step (default: {})"
        domain_help = f"held-out prompts, repeat for several; claims are about the first (default: {DOMAIN})"
        option("--arms", default=ARMS, metavar="LIST", help=f"recipes, see docs/distillation.md (default: {ARMS})")
        for name, default in (("--kd-temperatures", "0:1:0.2"), ("--decode-temperatures", "0:1:0.1")):
            option(name, default=default, metavar="GRID", help=grid.format(default))
        option("--seeds", default="3", metavar="N", help="drafts of each kind (default: 3)")
        option("--domain", action="append", metavar="SET", help=domain_help)
        tuning_help = "held-out prompts on which learning rate and draft T are chosen, one set for each --domain"
        option("--tuning", action="append", metavar="SET", help=tuning_help)
        option("--learning-rates", metavar="LIST", help="rates from which the best is chosen for each loss; needs --tuning")
        option("--results", type=Path, default=RUNS, metavar="DIR", help=f"where the record goes (default: {RUNS})")
        job_options(parser)
        parser.set_defaults(train="adapters")

    def run(self, args: Namespace) -> int:
        return interruptible(_run, args)


def _run(args: Namespace) -> int:
    plan, pair = _plan(args)
    from backends.models import pairs
    from backends.models.checkpoints import model_hashes
    from bench.records import kd_matrix
    from bench.reporting.formats import terminal_page
    from bench.reporting.suites.kd_matrix import tables
    from distill.runs import matrix

    def note(line: str) -> None:
        print(f"specheat: {line}", file=sys.stderr, flush=True)

    header = matrix.record_header(
        device=args.device, pair=pair.name, model_hashes=model_hashes(pair), start_card=pairs.draft_card(pair)
    )
    found = matrix.run(plan, args.out, texts_folder(args), device=args.device, header=header, note=note)
    print(f"{terminal_page(tables(found))}\nrecord: {kd_matrix.store(args.out, args.results)}")
    return 0


def _plan(args: Namespace) -> tuple[MatrixPlan, ModelPair]:
    kd_temperatures = temperatures_of("--kd-temperatures", args.kd_temperatures)
    decode_temperatures = temperatures_of("--decode-temperatures", args.decode_temperatures)
    seeds = tuple(range(count_of("--seeds", args.seeds)))
    from distill.runs.job import check_held_out
    from distill.runs.matrix import MatrixPlan
    from distill.training import recipes

    any_recipe = recipes.recipe("offline", 0.0)  # each draft has its own
    job, pair = job_of(args, any_recipe, text_tokens=count_of("--tokens", args.tokens), seed=0)
    if job.layers:
        raise ValueError("expected a trained draft to start from, got layers of the target; train a base draft first")
    domains, tuning = tuple(dict.fromkeys(args.domain or [DOMAIN])), tuple(args.tuning or ())
    check_held_out(replace(job, held_out=(*domains, *tuning)))
    rates = tuple(number_of("--learning-rates", rate) for rate in (args.learning_rates or "").split(",") if rate)
    arms = tuple(args.arms.split(","))
    return MatrixPlan(arms, kd_temperatures, decode_temperatures, seeds, domains, job, tuning, rates), pair
