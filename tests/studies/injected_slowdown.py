"""How often `specheat across` detects a decoder that is slower by a known share, and how often it reports one that is not.

`python -m tests.studies.injected_slowdown --share 0.05 --tries 10` clones the repository as it was committed, adds a branch
with the slow-down and compares HEAD with it, each try with another seed; `--share 0` compares HEAD with itself. Suite options
follow after --. Each try prints a line of JSON with its verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.analysis import comparison
from bench.records import files
from bench.records.checkout import git
from bench.records.environment import capture
from tests.support import ROOT

CELL = (
    "suites/test_temperature_grid.py",
    *("--temperatures", "1", "--num-prompts", "12", "--max-new-tokens", "32"),
)
SLOWDOWN = """

def _slowed(step):
    def slowed(*arguments, **options):
        start = time.thread_time()  # does not advance while the process is stopped
        result = step(*arguments, **options)
        end = time.thread_time() * (1 + {share}) - start * {share}
        while time.thread_time() < end:
            pass
        return result

    return slowed


ReferenceBackend.prefill = _slowed(ReferenceBackend.prefill)
ReferenceBackend.step = _slowed(ReferenceBackend.step)
ReferenceBackend.round = _slowed(ReferenceBackend.round)
"""


def clone(folder: Path, share: float) -> str:
    """Clone the committed repository, and return the revision to compare with its HEAD."""
    git(ROOT, "clone", "--quiet", str(ROOT), str(folder))
    if share == 0:
        return "HEAD"
    with (folder / "backends" / "engines" / "reference.py").open("a") as file:
        file.write(SLOWDOWN.format(share=share))
    author = ("-c", "user.name=specheat", "-c", "user.email=specheat@localhost")
    git(folder, "checkout", "--quiet", "-b", "slower")
    git(folder, *author, "commit", "--quiet", "--all", "--message", f"slower by {share:.0%}")
    git(folder, "checkout", "--quiet", "-")
    return "slower"


def _side(folder: Path) -> comparison.Side:
    launches = sorted(path for path in folder.iterdir() if path.is_dir())
    first, *further = [{str(file): files.load_run(file) for file in path.rglob("*.json")} for path in launches]
    return comparison.Side(folder.name, first, tuple(further))


def one_try(folder: Path, revision: str, seed: int, launches: int, suite: list[str]) -> dict[str, object]:
    """Return the exit status, and number -> verdict of every cell."""
    out = folder / ".across" / f"try-{seed}"
    code = "import sys; from bench.commands.main import main; sys.exit(main())"
    own = ["HEAD", revision, "--launches", str(launches), "--seed", str(seed), "--out", str(out)]
    command = [sys.executable, "-c", code, "across", *own, "--", *suite, "--seed", str(seed)]
    done = subprocess.run(command, cwd=folder, env=os.environ, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"try {seed} ended with exit status {done.returncode}")
    (moment,) = (path for path in out.iterdir() if path.is_dir())
    sides = [_side(path) for path in sorted(moment.iterdir()) if path.is_dir()]
    found = comparison.compare(*sides, interleaved=True)
    cells = [
        {
            "status": cell.status,
            "reason": cell.reason,
            **{one.number.name: one.verdict for one in cell.outcomes},
            **{f"{one.number.name} log": round(one.effect.estimate, 4) for one in cell.outcomes if one.effect},
            **{f"{one.number.name} minimum": round(one.minimum, 4) for one in cell.outcomes if one.minimum is not None},
        }
        for cell in found.cells
    ]
    return {"seed": seed, "exit_status": done.returncode, "cells": cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.05, help="share of a step's seconds that is added (default: 0.05)")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first try; each further try adds 1 (default: 0)")
    parser.add_argument("--launches", type=int, default=5, help="launches of each side (default: 5)")
    parser.add_argument("suite", nargs="*", default=CELL, help="suite and options, after --")
    args = parser.parse_args()
    command = f"python -m tests.studies.injected_slowdown {shlex.join(sys.argv[1:])}"
    print(json.dumps({"command": command, "environment": capture("cpu")}), flush=True)
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve() / "clone"
        revision = clone(folder, args.share)
        for seed in range(args.first_seed, args.first_seed + args.tries):
            found = one_try(folder, revision, seed, args.launches, list(args.suite))
            print(json.dumps(found), flush=True)
            verdicts.update({str(cell.get("SD ms/token", cell["status"])) for cell in found["cells"]})  # type: ignore[attr-defined]
    print(f"slower by {args.share:.0%}, SD ms/token in {args.tries} tries: {dict(verdicts)}", file=sys.stderr)


if __name__ == "__main__":
    main()
