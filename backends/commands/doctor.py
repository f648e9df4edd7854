"""`specheat doctor`: check what this machine can measure, how small a difference it resolves, and what to fix."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import asdict

from backends.doctor import checks
from backends.doctor.checks import Check
from bench.errors import INTERRUPTED
from bench.options import arguments, values


class Doctor:
    help = "check this machine, measure how small a difference it resolves, and list what to fix (exit: 1 with a problem)"

    def configure(self, parser: ArgumentParser) -> None:
        arguments.add_options(parser, only=("--pair", "--target", "--draft", "--pairs-file", "--device", "--results"))
        parser.add_argument("--seconds", default="60", metavar="S", help="length of the A/A run after warm-up (default: 60)")
        parser.add_argument("--no-noise", action="store_true", help="leave the A/A run out")
        parser.add_argument("--json", action="store_true", help="print the results as JSON")

    def run(self, args: Namespace) -> int:
        from rich.console import Console

        from backends.doctor.noise import noise_floor
        from backends.models.pairs import load_table, named

        settings, seconds = arguments.from_options(args), values.above_0("--seconds", args.seconds)
        if len(settings.drafts) != 1:
            raise ValueError(f"expected one --draft, got {len(settings.drafts)}")
        pair = named(load_table(settings.pairs_file), settings.pair, target=settings.target, draft=settings.drafts[0])
        with Console(stderr=True).status("watching other programs, then importing torch"):
            facts = checks.gather(settings.device)
        found: list[Check] = []
        report = {
            "machine": checks.cores(facts),
            "memory": checks.memory(facts, pair.name, checks.needed_bytes(settings, pair)),
            "precision": checks.precision(facts, pair.dtype),
            "GPU": checks.gpu(facts),
            "threads": checks.threads(facts, os.environ),
            "packages": checks.packages(checks.requirements()),
            "backends": checks.backends(),
            "pairs": checks.pairs(settings.pairs_file, pair),
            "results": checks.results(settings.results),
            "git": checks.commit(facts),
        }
        if not args.no_noise:
            report["noise floor"] = noise_floor(settings, found, seconds=seconds)  # runs last, when `found` holds the others
        width, interrupted = min(shutil.get_terminal_size((120, 24)).columns, 120), False
        try:
            for topic, messages in report.items():
                for state, text, remedy in messages:
                    found.append(Check(topic, state, text, "" if state == "ok" else remedy))
                    if not args.json:
                        print(as_text(found[-1], width=width), flush=True)
        except KeyboardInterrupt:
            interrupted = True
        num = Counter(each.state for each in found)
        summary = f"\nproblems to fix: {num['problem']}, notes: {num['note']}"
        print(json.dumps([asdict(each) for each in found], indent=1) if args.json else summary)
        return INTERRUPTED if interrupted else int(num["problem"] > 0)


def as_text(check: Check, *, width: int) -> str:
    """Return one line of the report, readable without colour, and its remedy below."""
    mark = "PROBLEM" if check.state == "problem" else check.state
    lines = ((f"{check.topic:12}{mark:9}", check.text), (f"{'':21}-> ", check.remedy))
    return "\n".join(
        # Commands and paths stay whole, so that they can be copied.
        textwrap.TextWrapper(width, prefix, " " * len(prefix), break_on_hyphens=False, break_long_words=False).fill(text)
        for prefix, text in lines
        if text
    )
