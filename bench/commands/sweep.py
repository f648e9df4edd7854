"""`specheat sweep`: suites shared out over GPUs and machines with Ray."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace
from pathlib import Path

from bench.options.settings import RUNS
from bench.options.values import count_of, count_or_0

USAGE = "specheat sweep --ray local|ADDRESS [options] SUITE ... [-- suite options]"


class Sweep:
    help = (
        "share the cells of suites out over GPUs and machines with Ray; the same command goes on where it was stopped"
    )

    def configure(self, parser: ArgumentParser) -> None:
        parser.usage = USAGE
        parser.epilog = (
            "Each shard owns its device. Workers that share this machine's CPU give right texts and alpha, and no times: "
            "their records say so."
        )
        option = parser.add_argument
        option("--ray", required=True, metavar="local|ADDRESS", help="a Ray cluster, or one that is started here")
        option("--workers", default="1", metavar="N", help="parts that a suite's cells are split in (default: 1)")
        option("--gpus", default="0", metavar="N", help="GPUs that a shard owns; 0: a CPU (default: 0)")
        option("--results", type=Path, default=RUNS, metavar="DIR", help=f"where records go (default: {RUNS})")
        parser.add_argument("words", nargs=REMAINDER, metavar="SUITE", help="suites as pytest takes them")

    def run(self, args: Namespace) -> int:
        from bench.orchestration import sweep
        from bench.progress import Meter

        border = args.words.index("--") if "--" in args.words else len(args.words)
        suites, options = args.words[:border], args.words[border + 1 :]
        _check(args, suites, options)
        plan = sweep.plan(suites, options, workers=args.workers, results=args.results)
        reporter = Meter(", ".join(suites), len(plan.shards), unit="shards")

        try:
            done = sweep.measure(plan, args.ray, workers=args.workers, gpus=args.gpus, on_shard=reporter.step)
        except KeyboardInterrupt:
            reporter.note(f"interrupted: {plan.folder} keeps finished shards; the same command goes on")
            raise
        finally:
            reporter.close()
        for path in sweep.put_together(plan, done):
            print(path)
        return int(any(each.status not in (0, sweep.NO_TESTS) for each in done))


def _check(args: Namespace, suites: list[str], options: list[str]) -> None:
    """Raises: ValueError: in one line, what is wrong."""
    args.workers, args.gpus = count_of("--workers", args.workers), count_or_0("--gpus", args.gpus)
    if not suites or any(word.startswith("-") for word in suites):
        raise ValueError(f"expected suites, and suite options behind --; usage: {USAGE}")
    if args.gpus and not any(word.partition("=")[0] == "--device" for word in options):
        raise ValueError("expected --device cuda behind -- for shards that own GPUs, got none")
    for word in options:
        if word.partition("=")[0] in ("--results", "--resume", "--plan"):
            raise ValueError(
                f"expected {word} in front of the suites or not at all: a sweep keeps and resumes its shards"
            )
