"""`specheat sweep`: suites distributed over GPUs and machines with Ray."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench.options.arguments import declare
from bench.options.settings import RUNS
from bench.options.values import count_of, count_or_0

USAGE = "specheat sweep --ray local|ADDRESS [options] SUITE ... [-- suite options]"


class Sweep:
    help = "distribute the cells of suites over GPUs and machines with Ray; the same command continues an interrupted run"

    def configure(self, parser: ArgumentParser) -> None:
        parser.usage = USAGE
        parser.epilog = (
            "Each shard owns its device. Workers that share this machine's CPU give valid texts and alpha, but no times: "
            "their records note it."
        )
        parser.set_defaults(pytest_words=[])
        option = parser.add_argument
        option("suites", nargs="*", metavar="SUITE", help="suites, as pytest takes them")
        option("--ray", required=True, metavar="local|ADDRESS", help="a Ray cluster, or one that is started here")
        option("--workers", default="1", metavar="N", help="parts into which a suite's cells are split (default: 1)")
        option("--gpus", default="0", metavar="N", help="GPUs that a shard owns; 0: a CPU (default: 0)")
        declare(parser, "--shared-machine")
        option("--results", type=Path, default=RUNS, metavar="DIR", help=f"where records go (default: {RUNS})")

    def run(self, args: Namespace) -> int:
        from bench.orchestration import sweep
        from bench.progress import Meter
        from bench.records.machine_lock import measuring

        workers, gpus = count_of("--workers", args.workers), count_or_0("--gpus", args.gpus)
        names = [word.partition("=")[0] for word in args.pytest_words]
        if not args.suites:
            raise ValueError(f"expected suites, and suite options after --; usage: {USAGE}")
        if gpus and "--device" not in names:
            raise ValueError("expected --device cuda after -- for shards that own GPUs, got none")
        if own := [name for name in names if name in ("--results", "--resume", "--plan")]:
            raise ValueError(f"expected {own[0]} before the -- or not at all: a sweep stores and resumes its shards")
        plan = sweep.plan(args.suites, args.pytest_words, workers=workers, results=args.results)
        meter = Meter(", ".join(args.suites), len(plan.shards), unit="shards")
        try:
            with measuring(shared=args.shared_machine):
                done = sweep.measure(plan, args.ray, workers=workers, gpus=gpus, on_shard=meter.step)
        except KeyboardInterrupt:
            meter.note(f"interrupted: {plan.folder} keeps finished shards; the same command goes on")
            raise
        finally:
            meter.close()
        for path in sweep.put_together(plan, done):
            print(path)
        return int(any(each.status not in (0, sweep.NO_TESTS) for each in done))  # 1: a test failed
