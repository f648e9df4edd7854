"""How much gamma of the same commit changes from launch to launch, beyond what its interval over prompts covers.

    python -m tests.studies.launches --launches 8 > launches.jsonl

Each launch is a new process that decodes the same texts (one seed), so only the machine and the process differ. Standard output
gets a header, then a line of JSON per launch and cell, with seconds and tokens of every prompt. Standard error gets a table;
`python -m tests.studies.launches --read launches.jsonl` prints it again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.analysis.quantities import LOG_GAMMA, log_quotient
from bench.records import files
from bench.records.environment import capture
from bench.statistics.effects import Number, PromptSums, contrast, left_out
from bench.statistics.intervals import Array, jackknife
from tests.support import ROOT

SUITE = (
    "suites/test_temperature_grid.py",
    *("--temperatures", "0,1", "--num-prompts", "12", "--max-new-tokens", "48", "--pairs-only"),
    *("--precision", "none", "--no-page"),
)
# What is taken from the columns of LOG_GAMMA: AR seconds and tokens, SD seconds and tokens.
NUMBERS: dict[str, tuple[slice, Number]] = {
    "gamma": (slice(0, 4), LOG_GAMMA.of),
    "AR seconds/token": (slice(0, 2), log_quotient),
    "SD seconds/token": (slice(2, 4), log_quotient),
}


def measured(suite: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run a suite in a new process, and yield the columns of each of its cells."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "--benchmark-only", "-q", *suite, "--results", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for path in sorted(Path(folder).rglob("*.json")):
            for record in files.load_run(path).cells:
                columns = [[pair.prompt_index, *values] for pair, values in LOG_GAMMA.columns(record)]
                yield {"cell": record.cell.label, "columns": columns}


def spread(launches: Sequence[Array], of: Number) -> tuple[float, float, float]:
    """Return standard deviations of a log number: over launches, of its error over prompts, and of launches alone.

        launches alone = sqrt(variance over launches - variance of the noise of single texts)

    Args:    launches: for each launch the sums of each prompt (P, C), P and their order equal in all
    """
    values = np.stack([left_out(contrast(of, (1.0,)), [PromptSums("", totals)]) for totals in launches])
    without_one = values[:, 1:]
    num_launches, num_prompts = without_one.shape
    noise = without_one - without_one.mean(0) - without_one.mean(1, keepdims=True) + without_one.mean()
    of_noise = (num_prompts - 1) / num_prompts * float((noise**2).sum()) / (num_launches - 1)
    between = float(values[:, 0].var(ddof=1))
    over_prompts = float(np.mean([jackknife(each)[0] for each in without_one]))
    return math.sqrt(between), over_prompts, math.sqrt(max(0.0, between - of_noise))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return the spread of each number of each cell, in percent."""
    rows = []
    for cell in dict.fromkeys(line["cell"] for line in lines):
        launches = [np.array(sorted(line["columns"]))[:, 1:] for line in lines if line["cell"] == cell]
        for name, (columns, of) in NUMBERS.items():
            found = spread([totals[:, columns] for totals in launches], of)
            rows.append((cell, name, len(launches), len(launches[0]), *(f"{100 * value:.1f} %" for value in found)))
    headers = ("cell", "number", "launches", "prompts", "over launches", "error over prompts", "launches alone")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--launches", type=int, default=8)
    parser.add_argument("--read", type=Path, help="a file of an earlier run")
    parser.add_argument("suite", nargs="*", default=SUITE, help="suite and options, after --")
    args = parser.parse_args()
    if args.read is not None:
        _, *lines = map(json.loads, args.read.read_text().splitlines())
        print(table(lines))
        return
    command = f"python -m tests.studies.launches {shlex.join(sys.argv[1:])}"
    print(json.dumps({"command": command, "environment": capture("cpu")}), flush=True)
    found = []
    for number in range(args.launches):
        for line in measured((*args.suite, "--seed", "0")):
            found.append({"launch": number, **line})
            print(json.dumps(found[-1]), flush=True)
    print(table(found), file=sys.stderr)


if __name__ == "__main__":
    main()
