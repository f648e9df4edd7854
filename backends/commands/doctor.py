"""TODO: purpose."""

from __future__ import annotations

import json
import math
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backends.doctor.facts import findings
from backends.doctor.noise import noise_findings
from bench.options import settings

if TYPE_CHECKING:
    from backends.doctor.checks import Finding


class Doctor:
    help = "say what this machine can measure, how small a difference it sees, and what to fix (exit: 1 with a problem)"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("--pair", metavar="NAME", help=f"model pair by name (default: {settings.DEFAULT_PAIR})")
        parser.add_argument("--target", metavar="ID|DIR", help="target model instead of a named pair")
        parser.add_argument("--draft", metavar="ID|DIR", help="draft model; with --pair it replaces the pair's draft")
        parser.add_argument("--pairs-file", type=Path, metavar="TOML", help="more model pairs")
        parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cpu)")
        parser.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="where records go (default: results)"
        )
        parser.add_argument(
            "--seconds", default="60", metavar="S", help="length of the A/A run behind its warm-up (default: 60)"
        )
        parser.add_argument("--no-noise", action="store_true", help="leave the A/A run out")
        parser.add_argument("--json", action="store_true", help="print the findings as JSON")

    def run(self, args: Namespace) -> int:
        from backends.doctor import checks
        from backends.models import pairs
        from bench.errors import INTERRUPTED

        seconds = _seconds(args.seconds)
        asked = pairs.named(pairs.load_table(args.pairs_file), args.pair, target=args.target, draft=args.draft)
        found = tuple(findings(args, asked))
        width = min(shutil.get_terminal_size((120, 24)).columns, 120)
        if not args.json:
            print(checks.as_text(found, width=width), flush=True)
        interrupted = False
        if not args.no_noise:
            noise, interrupted = noise_findings(args, asked, found, seconds=seconds)
            if not args.json:
                print(f"\n{checks.as_text(noise, width=width)}")
            found += noise
        print(_as_json(found) if args.json else f"\n{checks.summary(found)}")
        if interrupted:
            return INTERRUPTED
        return int(any(finding.state == "problem" for finding in found))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"expected --seconds to be a number above 0, got {text!r}")
    return seconds


def _as_json(found: Sequence[Finding]) -> str:
    from dataclasses import asdict

    return json.dumps([asdict(finding) for finding in found], indent=1)
