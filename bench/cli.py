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
