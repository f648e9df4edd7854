"""Make the embedded pair mini-t5: `python -m distill.commands.mini_t5 --out FOLDER --work FOLDER`.

The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.runs.mini_t5 import Sizes, make


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m distill.commands.mini_t5", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folders target and draft go")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where text and checkpoints are kept")
    args = parser.parse_args()
    make(args.out, args.work, Sizes())
    print(f"specheat: target and draft are in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
