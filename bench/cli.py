"""The console script `specheat`: one subcommand per installed entry point of the group `specheat.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.protocols import BackendUnavailable, IncomparableResults
from bench.registry import Command, commands

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Expected failures end in one line on stderr, not in a traceback."""
    try:
        parser, made = _parser()
        args = parser.parse_args(argv)
        return made[args.command].run(args)
    except (ValueError, BackendUnavailable, IncomparableResults, OSError) as error:
        print(f"specheat: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("specheat: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    parser = argparse.ArgumentParser(
        prog="specheat", description="Measures how decoding temperature changes speculative decoding."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    made = {name: make() for name, make in sorted(commands().items())}
    for name, command in made.items():
        command.configure(subparsers.add_parser(name, help=command.help, description=command.help))
    return parser, made
