"""The console script `specheat`. COMMANDS lists its subcommands; only the requested one is imported."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from bench.errors import BAD_INPUT, INTERRUPTED, BackendUnavailable, IncomparableResults
from bench.registry import load_object

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


class Command(Protocol):
    """A subcommand of `specheat`: a class without arguments that COMMANDS names."""

    help: str

    def configure(self, parser: ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, args: Namespace) -> int:
        """Do it; returns the exit status."""
        ...


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
    "pairs": "backends.commands.pairs:Pairs",
    "pyperf": "bench.commands.pyperf:Pyperf",
    "report": "bench.commands.report:Report",
    "sweep": "bench.commands.sweep:Sweep",
    "tables": "bench.commands.tables:Tables",
}


def commands() -> dict[str, Callable[[], Command]]:
    """Return, by name, a function that imports and makes each command."""
    return {name: functools.partial(_command, name, location) for name, location in COMMANDS.items()}


def _command(name: str, location: str) -> Command:
    made: Command = load_object(name, location)()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Expected failures end in one line on stderr, not in a traceback."""
    try:
        argv = sys.argv[1:] if argv is None else argv
        parser, made = command_line(argv)
        args = parser.parse_args(argv)
        return made[args.command].run(args)
    except (ValueError, BackendUnavailable, IncomparableResults, OSError) as error:
        print(f"specheat: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("specheat: interrupted", file=sys.stderr)
        return INTERRUPTED


def command_line(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    """With all commands, or the one that the arguments name: no other is imported then."""
    parser = argparse.ArgumentParser(
        prog="specheat", description="Measures how decoding temperature changes speculative decoding."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    known = commands()
    asked = [argv[0]] if argv and argv[0] in known else sorted(known)
    made = {name: known[name]() for name in asked}
    for name, command in made.items():
        command.configure(subparsers.add_parser(name, help=command.help, description=command.help))
    return parser, made
