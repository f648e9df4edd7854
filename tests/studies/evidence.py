"""The long runs that produced results/, the most important first: `python -m tests.studies.evidence gpu --minutes 28`.

Each step is a command that a user could type. A step that exceeds its minutes is interrupted like by Ctrl-C: what it measured
stays, and the same command line continues it later. `--dry-run` runs the same steps on the CPU, as small as possible, into a
temporary folder. docs/reproducing.md explains each step.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

BASE_PROMPTS = "--prompts instructions:train@8 --prompts word_problems:train@3"
SUITE = "pytest --benchmark-only"


@dataclass(frozen=True, slots=True)
class Step:
    """A command with placeholders.

    {work} and {results}: folders; {files}: the given prompt files as options; {first}: the first of them, whose lines are
    marked train or held_out; {others}: the others as domains; {shape}: the shape of an inflated target.
    """

    minutes: float  # at most
    command: str
    smallest: str = ""  # options that make it a dry run; of a repeated option the last one counts
    needs_files: bool = False


GPU = (
    Step(
        9,
        f"specheat distill base --device cuda --start layers:0,1,28,29 --data-temperature 1 {BASE_PROMPTS} --self-written 20000"
        " --text-tokens 8000000 --tokens 30000000 --learning-rate 5e-3 --optimizer muon --vocabulary 8192"
        " --batch-tokens 16384 --batch-rows 1024 --out {work}/base",
        "--device cpu --self-written 0 --text-tokens 2000 --tokens 2000 --batch-tokens 1024 --vocabulary 4096 --batch-rows 32"
        " --max-new-tokens 16",
    ),
    Step(
        7,
        "specheat kd-matrix --device cuda --arms offline,online --kd-temperatures 0:1:0.1 --decode-temperatures 0:1:0.1"
        " --seeds 3 --tokens 104000 --batch-tokens 4096 --learning-rate 1e-3 --prompts instructions:train --self-written 6000"
        " --out {work}/matrix --results {results}",
        "--device cpu --kd-temperatures 0,1 --decode-temperatures 0,1 --seeds 1 --tokens 1000 --batch-tokens 1024"
        " --self-written 0 --max-new-tokens 16",
    ),
    Step(
        7,
        f"{SUITE} suites/test_temperature_grid.py --device cuda --inflate {{shape}} --temperatures 0:2:0.25 --num-prompts 12"
        " --max-new-tokens 64 --results {results} --resume",
        "--device cpu --temperatures 1 --num-prompts 1 --max-new-tokens 8",
    ),
    Step(
        5,
        f"{SUITE} suites/test_backends.py --device cuda --backend reference --backend vllm --backend assisted"
        " --temperatures 0,1 --num-prompts 12 --max-new-tokens 64 --results {results} --resume",
        "--device cpu --temperatures 1 --num-prompts 1 --max-new-tokens 8",
    ),
)
CPU = (
    Step(60, f"{SUITE} suites/ --results {{results}} --resume", "--preset smoke --num-prompts 1 --max-new-tokens 8"),
    Step(
        75,
        f"{SUITE} suites/test_backends.py --backend reference --backend assisted --backend vllm --temperatures 0,0.5,1"
        " --num-draft-tokens 1 --num-prompts 64 --max-new-tokens 64 --instrument-every 8 --results {results} --resume",
        "--temperatures 1 --num-prompts 1 --max-new-tokens 8",
    ),
    Step(
        40,
        f"{SUITE} suites/test_temperature_grid.py --preset paper --repeats 1 --num-prompts 12 --max-new-tokens 48"
        " --num-draft-tokens 1 {files} --results {results} --resume",
        "--temperatures 1 --num-prompts 1 --max-new-tokens 8",
        needs_files=True,
    ),
    Step(
        180,
        "specheat kd-matrix --kd-temperatures 0:1:0.1 --tokens 26000 --batch-tokens 1024 --learning-rate 1e-3"
        " --prompts {first}:train --domain {first}:held_out {others} --out {work}/matrix --results {results}",
        "--kd-temperatures 0,1 --decode-temperatures 0,1 --seeds 1 --tokens 1000 --max-new-tokens 16",
        needs_files=True,
    ),
    Step(
        20,
        f"{SUITE} suites/test_concurrency.py --backend vllm --concurrency 1,4,16 --results {{results}} --resume",
        "--concurrency 1,2 --temperatures 1 --num-prompts 1 --max-new-tokens 8",
    ),
)
SETS = {"cpu": CPU, "gpu": GPU}


def command(step: Step, *, work: Path, results: Path, files: Sequence[str], dry: bool) -> list[str]:
    """Return the command line: a program of this environment, with the options of a dry run at the end."""
    given = " ".join(f"--prompts {shlex.quote(file)}" for file in files)
    first = shlex.quote(files[0]) if files else ""
    others = " ".join(f"--domain {shlex.quote(file)}" for file in files[1:])
    shape = "0.5b" if dry else "13b"
    line = step.command.format(work=work, results=results, files=given, first=first, others=others, shape=shape)
    program, *rest = shlex.split(f"{line} {step.smallest}" if dry else line)
    return [str(Path(sys.executable).parent / program), *rest]


def run(arguments: Sequence[str], minutes: float) -> str:
    """Run a command line, and return how it ended."""
    process = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(timeout=60 * minutes)
        return "done" if code == 0 else f"exit {code}"
    except subprocess.TimeoutExpired:
        return "out of time"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.studies.evidence", description=__doc__.split("\n\n")[0])
    parser.add_argument("set", choices=sorted(SETS), help="steps for a machine with or without a GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="limit for all steps together")
    parser.add_argument("--prompts", action="append", default=[], metavar="FILE", help="Alpaca, GSM8K, ...; repeat for several")
    parser.add_argument("--steps", help="numbers from 1, such as 1,3 (default: all)")
    parser.add_argument("--work", type=Path, default=Path("drafts/evidence"), help="folder for drafts and texts")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, as small as possible, nothing is kept")
    args = parser.parse_args()
    steps = SETS[args.set]
    wanted = {int(number) for number in args.steps.split(",")} if args.steps else set(range(1, len(steps) + 1))
    end = time.monotonic() + 60 * args.minutes
    outcomes = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = (Path(temporary) / "work", Path(temporary) / "results") if args.dry_run else (args.work, Path("results"))
        for number, step in enumerate(steps, 1):
            if number not in wanted or (step.needs_files and not args.prompts):
                continue
            minutes = min(step.minutes, (end - time.monotonic()) / 60)
            arguments = command(step, work=folders[0], results=folders[1], files=args.prompts, dry=args.dry_run)
            print(f"evidence {number}: {shlex.join(arguments)}", flush=True)
            start = time.monotonic()
            outcomes[number] = run(arguments, minutes) if minutes > 0 else "out of time"
            print(f"evidence {number}: {outcomes[number]}, {time.monotonic() - start:.0f} s", flush=True)
            if outcomes[number] == "interrupted":
                break
    return 0 if set(outcomes.values()) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
