"""The console script `specheat`. COMMANDS lists its subcommands; only the requested one is imported."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Protocol

from bench.errors import BAD_INPUT, INTERRUPTED, BackendUnavailable, IncomparableResults
from bench.registry import load_object

COMMANDS = {
    "across": "bench.commands.across:Across",
    "certify": "backends.commands.certify:Certify",
    "claims": "bench.commands.claims:Claims",
    "compare": "bench.commands.compare:Compare",
    "distill": "distill.commands.distill:Distill",
    "doctor": "backends.commands.doctor:Doctor",
    "frame": "bench.commands.frame:Frame",
    "history": "bench.commands.history:History",
    "kd-matrix": "distill.commands.kd_matrix:KdMatrix",
    "merge": "bench.commands.merge:Merge",
    "pairs": "backends.commands.pairs:Pairs",
    "publish": "bench.commands.publish:Publish",
    "pyperf": "bench.commands.pyperf:Pyperf",
    "report": "bench.commands.report:Report",
    "sweep": "bench.commands.sweep:Sweep",
    "tables": "bench.commands.tables:Tables",
}
# Commands that time nothing. While a thread of OpenMP waits for another, it spins on its core by default. Beside a busy program
# it often spins in vain, because the other one has no core. These commands let it sleep. It then wakes late, which would slow
# down timed forwards.
UNTIMED = ("certify",)


class Command(Protocol):
    """A subcommand of `specheat`: a class without arguments that COMMANDS names."""

    help: str

    def configure(self, parser: ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: Namespace) -> int:
        """Do the work, and return the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Expected failures end in one line on stderr, not in a traceback."""
    if argv is None and sys.argv[1:2] and sys.argv[1] in UNTIMED:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    try:
        command, args = parsed(sys.argv[1:] if argv is None else argv)
        return command.run(args)
    except (ValueError, BackendUnavailable, IncomparableResults, OSError) as error:
        print(f"specheat: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("specheat: interrupted", file=sys.stderr)
        return INTERRUPTED


def parsed(argv: Sequence[str]) -> tuple[Command, Namespace]:
    """Return the command that the arguments name, and its parsed arguments.

    What follows a `--` is for pytest. Commands that start pytest set a default for `pytest_words`, which receives it.
    """
    if not argv or argv[0] not in COMMANDS:
        parser = ArgumentParser(prog="specheat", description="Measures how decoding temperature changes speculative decoding.")
        subparsers = parser.add_subparsers(required=True, metavar="command")
        for name in COMMANDS:
            subparsers.add_parser(name, help=load(name).help)
        parser.parse_args(argv)  # prints the help or an error, and exits
    command = load(argv[0])
    parser = ArgumentParser(prog=f"specheat {argv[0]}", description=command.help)
    command.configure(parser)
    border = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_intermixed_args(argv[1:border])  # options may stand between positional arguments
    if border < len(argv):
        if "pytest_words" not in args:
            parser.error("unrecognized arguments: --")
        args.pytest_words = list(argv[border + 1 :])
    return command, args


def load(name: str) -> Command:
    """Import and make a command."""
    return load_object(name, COMMANDS[name])()
