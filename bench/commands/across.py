"""`specheat across`: the same suites on several revisions of the backends, in turns, and how they differ."""

from __future__ import annotations

import signal
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench.options.arguments import declare
from bench.options.values import above_0, count_of, count_or_0, number_of


class Across:
    help = "run the same suites on several revisions of the backends, in turns, and compare them"

    def configure(self, parser: ArgumentParser) -> None:
        parser.usage = "specheat across [options] REVISION REVISION ... [-- SUITE ... suite options]"
        parser.epilog = "Suites and their options are those of pytest --benchmark-only; without any, all suites run."
        parser.set_defaults(pytest_words=[])
        option = parser.add_argument
        option("revisions", nargs="*", metavar="REVISION", help="commits, branches, tags; . or WORKTREE for your files")
        packages = "version of a package that backends use, installed separately; repeat to compare versions"
        option("--with", dest="packages", action="append", default=[], metavar="PACKAGE==VERSION", help=packages)
        declare(parser, "--margin", "--strict", "--markdown", "--shared-machine")
        option("--launches", default="5", metavar="N", help="processes of each side, one after the other (default: 5)")
        slices = "let the sides alternate after so many milliseconds within a timed call; 0: after each call "
        option("--slice", dest="slice_ms", metavar="MS", help=f"{slices}(default: 50; 0 where --device is not cpu)")
        option("--seed", default="0", metavar="N", help="seed of which side goes first (default: 0)")
        option("--out", type=Path, metavar="DIR", help="folder of the records (default: .across/REVISIONS)")
        option("--resume", action="store_true", help="continue the newest interrupted run of this command")

    def run(self, args: Namespace) -> int:
        from bench.analysis import comparison
        from bench.orchestration import across
        from bench.orchestration.sides import sources
        from bench.progress import Meter
        from bench.records.machine_lock import measuring
        from bench.reporting import comparison as pages

        margin = above_0("--margin", args.margin)
        words = [word for word in args.pytest_words if word != "--resume"]
        resume = args.resume or words != args.pytest_words
        if early := [word for word in words if word.partition("=")[0] in ("--precision", "--time-budget")]:
            raise ValueError(f"expected no {early[0]}: all sides measure the same pairs; use --launches and --num-prompts")
        plan = across.Plan(
            sources(args.revisions, args.packages),
            tuple(words),
            seed=count_or_0("--seed", args.seed),
            launches=count_of("--launches", args.launches),
            slice_s=_slice_s(args.slice_ms, words),
        )
        out = args.out or across.default_out(args.revisions, args.packages)
        meter = Meter(unit="pairs")
        run = across.find_resumable(plan, out) if resume else None
        if resume and run is None:
            meter.note(f"nothing to resume in {out}: starting a new run")
        with measuring(shared=args.shared_machine):
            run = run or across.start(plan, out)
            # A termination request ends like Ctrl-C, so that no worktree and no stopped process is left.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                across.measure(run, resume=resume, meter=meter)
            except KeyboardInterrupt:
                meter.note(f"interrupted: {run.folder} keeps what was measured; the same command with --resume goes on")
                raise
            finally:
                meter.close()
        meter.note(f"records in {run.folder}")
        text = pages.markdown if args.markdown else pages.terminal_text
        first, *others = run.sides()
        statuses = []
        for other in others:
            found = comparison.compare(first, other, margin=margin, interleaved=True)
            print(f"\n{text(found)}")
            statuses.append(comparison.exit_status(found, strict=args.strict))
        return 1 if 1 in statuses else max(statuses)  # 1, a regression, is worse than 3, which is inconclusive


def _slice_s(given_ms: str | None, suite_options: list[str]) -> float:
    """Return the seconds of a slice: by default whole calls on an accelerator.

    An accelerator finishes the work of a stopped process, so slices would overlap.
    """
    from bench.orchestration.parties import SLICE_S

    if given_ms is not None:
        return number_of("--slice", given_ms) / 1000
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default="cpu")
    return SLICE_S if parser.parse_known_args(suite_options)[0].device == "cpu" else 0.0
