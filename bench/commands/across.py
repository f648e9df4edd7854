"""`specheat across`: the same suites on several revisions of the backends, in turns, and what differs."""

from __future__ import annotations

import signal
from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options.values import above_0, count_of, count_or_0, number_of
from bench.reporting.comparison import terminal_text

if TYPE_CHECKING:
    from bench.orchestration.revisions import Run


USAGE = "specheat across [options] REVISION REVISION ... [-- SUITE ... suite options]"
REVISIONS = "commits, branches, tags; . or WORKTREE for your files as they are"
REGRESSION = 1


class Across:
    help = "run the same suites on several revisions of the backends, in turns, and compare them"

    def configure(self, parser: ArgumentParser) -> None:
        parser.usage = USAGE
        parser.epilog = "Suites and their options are those of pytest --benchmark-only; without any, all suites run."
        _add_options(parser)
        # argparse would drop the --, and with it the border between revisions and suites.
        parser.add_argument("words", nargs=REMAINDER, metavar="REVISION", help=REVISIONS)

    def run(self, args: Namespace) -> int:
        from bench.orchestration import revisions
        from bench.progress import Meter

        args, asked = _parted(args)
        margin = above_0("--margin", args.margin)
        seed, launches = count_or_0("--seed", args.seed), count_of("--launches", args.launches)
        if early := [word for word in asked if word.partition("=")[0] in ("--precision", "--time-budget")]:
            raise ValueError(
                f"expected no {early[0]}: all sides measure the same pairs; use --launches and --num-prompts"
            )
        resume = args.resume or "--resume" in asked
        reporter = Meter(unit="pairs")
        run = revisions.prepare(
            revisions.sources(args.revisions, args.packages),
            [word for word in asked if word != "--resume"],
            seed=seed,
            launches=launches,
            slice_s=_slice_s(args.slice_ms, asked),
            out=args.out or revisions.default_out(args.revisions, args.packages),
            resume=resume,
            note=reporter.note,
        )
        # Asked to end, it ends like after Ctrl-C: no worktree and no stopped process stays.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            revisions.measure(run, resume=resume, reporter=reporter)
        except KeyboardInterrupt:
            reporter.note(f"interrupted: {run.folder} keeps what was measured; the same command with --resume goes on")
            raise
        finally:
            reporter.close()
        reporter.note(f"records in {run.folder}")
        revisions.check_one_harness(run)
        return _compare(run, margin=margin, strict=args.strict, markdown=args.markdown)


def _slice_s(asked_ms: str | None, suite_options: list[str]) -> float:
    """What a stopped process asked of an accelerator goes on there, so that slices would overlap."""
    from bench.orchestration.parties import SLICE_S

    if asked_ms is not None:
        return number_of("--slice", asked_ms) / 1000
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default="cpu")
    return SLICE_S if parser.parse_known_args(suite_options)[0].device == "cpu" else 0.0


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--with",
        dest="packages",
        action="append",
        default=[],
        metavar="PACKAGE==VERSION",
        help="a version of a package that backends stand on, installed beside yours; repeat to compare versions",
    )
    parser.add_argument(
        "--margin", default="0.02", metavar="SHARE", help="ratios this near to 1 are SAME (default: 0.02)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 3 where something is INCONCLUSIVE")
    parser.add_argument("--markdown", action="store_true", help="print markdown to paste in a pull request")
    parser.add_argument(
        "--launches",
        default="5",
        metavar="N",
        help="processes of each side one after the other, which differ in speed by themselves (default: 5)",
    )
    parser.add_argument(
        "--slice",
        dest="slice_ms",
        metavar="MS",
        help="let the sides work by turns of so many milliseconds within a timed call; 0: a call each (default: 50; "
        "0 where --device is not cpu)",
    )
    parser.add_argument("--seed", default="0", metavar="N", help="seed of who goes first (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the records (default: .across/REVISIONS)")
    parser.add_argument("--resume", action="store_true", help="go on with the newest interrupted run of this command")


def _parted(args: Namespace) -> tuple[Namespace, list[str]]:
    """The arguments with those that stand behind the first revision, and what stands behind the --."""
    border = args.words.index("--") if "--" in args.words else len(args.words)
    parser = ArgumentParser(prog="specheat across", usage=USAGE)
    _add_options(parser)
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help=REVISIONS)
    return parser.parse_intermixed_args(args.words[:border], args), args.words[border + 1 :]


def _compare(run: Run, *, margin: float, strict: bool, markdown: bool) -> int:
    """Print how every side differs from the first; the worst exit status of all."""
    from bench.analysis import comparison
    from bench.orchestration import revisions
    from bench.reporting.comparison import markdown as as_markdown

    text = as_markdown if markdown else terminal_text
    first, *others = revisions.measured_sides(run)
    statuses = []
    for other in others:
        found = comparison.compare(first, other, margin=margin, interleaved=True)
        print(f"\n{text(found)}")
        statuses.append(comparison.exit_status(found, strict=strict))
    return REGRESSION if REGRESSION in statuses else max(statuses)
