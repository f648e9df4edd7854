"""Do gammas of several runs of one commit differ by as much as their intervals say?

    python -m tests.studies.repeated_runs alpaca.jsonl --runs 10 > record.jsonl

Every run is a new process with another seed and other prompts of the file, because an interval is about prompts and draws that
were not measured. Standard output gets a header, then a line of JSON per run and cell, with seconds and tokens of every prompt.
Standard error gets a table; `python -m tests.studies.repeated_runs --read record.jsonl` prints it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.records.command_line import own_words, shell_text
from bench.records.environment import capture
from bench.statistics.intervals import Interval, ratio_of_totals, t_half_width
from tests.studies.launches import measured

SUITE = (
    "suites/test_temperature_grid.py",
    *("--temperatures", "0,1", "--max-new-tokens", "48", "--pairs-only", "--precision", "none", "--no-page"),
)


def one_run(prompts: Sequence[str], number: int, suite: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run the suite on these prompts in a new process, and yield the columns of each of its cells."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompts.jsonl")
        file.write_text("".join(prompts))
        given = ("--prompts", str(file), "--num-prompts", str(len(prompts)), "--seed", str(number))
        yield from measured((*suite, *given))


def gamma(line: dict[str, Any]) -> Interval:
    prompts, *columns = np.array(line["columns"]).T
    return ratio_of_totals(*columns, prompts)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return for each cell the spread of gamma over runs, what intervals expect, and how often differences lie within."""
    rows = []
    for cell in dict.fromkeys(line["cell"] for line in lines):
        found = [gamma(line) for line in lines if line["cell"] == cell]
        logs = np.log([each.estimate for each in found])
        expected = math.sqrt(np.mean([sum(error**2 for error, _ in each.parts) for each in found]))
        covered = [
            abs(math.log(one.estimate / other.estimate)) <= t_half_width((*one.parts, *other.parts), 0.05)
            for one, other in itertools.combinations(found, 2)
        ]
        spread, half_width = float(logs.std(ddof=1)), np.mean([math.log(each.high / each.low) / 2 for each in found])
        gammas = f"{math.exp(logs.min()):.2f} to {math.exp(logs.max()):.2f}"
        shares = (f"{spread:.1%}", f"{expected:.1%}", f"{half_width:.1%}", f"{np.mean(covered):.0%} of {len(covered)}")
        rows.append((cell, len(found), gammas, *shares))
    headers = ("cell", "runs", "gamma", "standard deviation", "expected", "half-width", "differences within")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompts", type=Path, nargs="?", help="a prompt file with a line per prompt")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--num-prompts", type=int, default=24, help="of each run")
    parser.add_argument("--read", type=Path, help="a file of an earlier study")
    parser.add_argument("suite", nargs="*", default=SUITE, help="suite and options, after --")
    args = parser.parse_args()
    if args.read is not None:
        _, *lines = map(json.loads, args.read.read_text().splitlines())
        print(table(lines))
        return
    prompts = args.prompts.read_text().splitlines(keepends=True)
    if len(prompts) < args.runs * args.num_prompts:
        sys.exit(f"expected {args.runs * args.num_prompts} prompts in {args.prompts}, got {len(prompts)}")
    order = np.random.default_rng(0).permutation(len(prompts))
    command = shell_text(("python", "-m", "tests.studies.repeated_runs", *own_words()[1:]))
    print(json.dumps({"command": command, "environment": capture("cpu")}), flush=True)
    found = []
    for number in range(args.runs):
        own = [prompts[place] for place in order[number * args.num_prompts : (number + 1) * args.num_prompts]]
        for line in one_run(own, number, args.suite):
            found.append({"run": number, **line})
            print(json.dumps(found[-1]), flush=True)
    print(table(found), file=sys.stderr)


if __name__ == "__main__":
    main()
