"""`specheat kd-matrix`: trains the drafts of a KD matrix, measures each at every decode temperature, prints the table."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options.settings import RUNS
from bench.options.values import count_of, temperatures_of
from bench.records import environment
from bench.records.command_line import own_words
from bench.reporting.formats import terminal_page
from bench.reporting.suites.kd_matrix import tables
from distill.commands.distill import interruptible, job_of, job_options

if TYPE_CHECKING:
    from distill.runs.matrix import MatrixPlan


DOMAIN = "instructions:held_out"
DEFAULTS = {
    "arms": "offline,online,mixture,composed",
    "kd_temperatures": "0,0.2,0.4,0.6,0.8,1",
    "decode_temperatures": "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1",
}


class KdMatrix:
    help = (
        "train drafts at several KD temperatures and measure each at several decode temperatures; goes on like distill"
    )

    def configure(self, parser: ArgumentParser) -> None:
        option = parser.add_argument
        option("--arms", default=DEFAULTS["arms"], metavar="LIST", help="recipes; online@0.5 sets lambda to 0.5")
        option(
            "--kd-temperatures",
            default=DEFAULTS["kd_temperatures"],
            metavar="GRID",
            help="of the text: 0,0.5,1 or 0:1:0.1",
        )
        option("--decode-temperatures", default=DEFAULTS["decode_temperatures"], metavar="GRID", help="to measure at")
        option("--seeds", default="3", metavar="N", help="drafts of each kind (default: 3)")
        option(
            "--domain",
            action="append",
            metavar="SET",
            help=f"held-out prompts to measure on, repeat for several; claims are about the first (default: {DOMAIN})",
        )
        option("--results", type=Path, default=RUNS, metavar="DIR", help=f"where the record goes (default: {RUNS})")
        job_options(parser)
        parser.set_defaults(train="adapters")

    def run(self, args: Namespace) -> int:
        return interruptible(_run, args)


def _run(args: Namespace) -> int:
    plan, pair = _plan(args)
    from bench.records import kd_matrix
    from distill.runs import matrix

    names = [kd_matrix.START, *(each.name for each in plan.drafts())]
    texts = args.texts or args.out.absolute().parent / "texts"
    header = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": own_words(),
        "environment": environment.capture(args.device),
        "model_pair": pair,
    }

    def announce(name: str) -> None:
        print(f"specheat: draft {names.index(name) + 1} of {len(names)}, {name}", file=sys.stderr, flush=True)

    found = matrix.run(plan, args.out, texts, device=args.device, header=header, on_draft=announce)
    print(f"{terminal_page(tables(found))}\nrecord: {kd_matrix.store(args.out, args.results)}")
    return 0


def _plan(args: Namespace) -> tuple[MatrixPlan, str]:
    arms = tuple(args.arms.split(","))
    kd_temperatures, decode_temperatures = (
        temperatures_of(option, given)
        for option, given in (
            ("--kd-temperatures", args.kd_temperatures),
            ("--decode-temperatures", args.decode_temperatures),
        )
    )
    seeds = tuple(range(count_of("--seeds", args.seeds)))
    from distill.runs.job import check_held_out
    from distill.runs.matrix import MatrixPlan
    from distill.training import recipes

    any_recipe = recipes.offline(0.0)
    job, pair = job_of(args, any_recipe, text_tokens=count_of("--tokens", args.tokens), seed=0)
    if job.layers:
        raise ValueError("expected a trained draft to start from, got layers of the target; train a base draft first")
    domains = tuple(dict.fromkeys(args.domain or [DOMAIN]))
    check_held_out(replace(job, held_out=domains))
    return MatrixPlan(arms, kd_temperatures, decode_temperatures, seeds, domains, job), pair.name
