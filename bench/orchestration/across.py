"""The same suites on several revisions of the backends, or on several versions of a package, in turns.

The caller's bench and suites measure. Each side is a separate process that takes only the package `backends` from its
revision, checked out into a temporary folder. The caller's checkout is read and never written.

<out>/<moment>/.unfinished                           what is being measured, until all is done
<out>/<moment>/<number>-<side>/launch-<n>/           the records of a side, as with `--results`
<out>/<moment>/<number>-<side>/launch-<n>.finished   exists when this launch need not run again, until all is done
<out>/<moment>/<number>-<side>/launch-<n>.log        what its process wrote
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.analysis.comparison import Side
from bench.errors import last_line
from bench.orchestration.parties import Party, ended_afterwards, take_turns
from bench.orchestration.sides import WORKTREE, Source, checkouts, package_folder
from bench.progress import Meter
from bench.records import checkout, environment
from bench.records.files import load_run, moment_text
from bench.records.runs import RunRecord
from bench.records.storage import write_atomically

SOME_TESTS_FAILED = 1  # pytest's exit status: what could be measured was measured
DEFAULT_OUT = ".across"  # below the repository, and ignored by git
UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured on every side."""

    sources: tuple[Source, ...]
    words: tuple[str, ...]  # suites and their options
    seed: int  # of the order of the sides
    launches: int  # processes of each side, one after the other; those after the first measure only pairs
    slice_s: float  # of timed calls; 0: whole calls

    def __post_init__(self) -> None:
        if not self.slice_s >= 0:
            raise ValueError(f"expected --slice >= 0, got {self.slice_s * 1000:g}")
        if self.launches < 2:
            raise ValueError(
                f"expected --launches >= 2, got {self.launches}: one launch does not show how much launches differ"
            )
        for word in self.words:
            if word.partition("=")[0] in ("--results", "--plan"):
                raise ValueError(f"expected suites and their options after --, got {word}, which `specheat across` sets")


@dataclass(frozen=True, slots=True)
class Run:
    """A plan, and the folder of its records. The top of this module describes the files of a launch of a side."""

    plan: Plan
    folder: Path

    def results(self, index: int, launch: int) -> Path:
        return self.folder / f"{index + 1}-{_file_name(self.plan.sources[index].label)}" / f"launch-{launch + 1}"

    def log(self, index: int, launch: int) -> Path:
        return self.results(index, launch).with_suffix(".log")

    def finished(self, index: int, launch: int) -> Path:
        return self.results(index, launch).with_suffix(".finished")

    def records(self, index: int, launch: int) -> dict[str, RunRecord]:
        return {str(file): load_run(file) for file in sorted(self.results(index, launch).rglob("*.json"))}

    def sides(self) -> list[Side]:
        """Return what was measured. Raise IncomparableResults if bench or suites changed during the run."""
        sides = []
        for index, source in enumerate(self.plan.sources):
            runs, *further = [self.records(index, launch) for launch in range(self.plan.launches)]
            sides.append(Side(source.label, runs, tuple(further)))
        first, *others = [run.environment for side in sides for runs in (side.runs, *side.relaunched) for run in runs.values()]
        for other in others:
            environment.check_comparable(first, other, keys=environment.HARNESS_KEYS)
        return sides


def default_out(revisions: Sequence[str], packages: Sequence[str]) -> Path:
    """Return a folder that depends only on the sides, so that --resume finds it."""
    names = [WORKTREE[1] if revision in WORKTREE else revision for revision in revisions or WORKTREE[:1]]
    return checkout.REPOSITORY / DEFAULT_OUT / "..".join(map(_file_name, [*names, *packages]))


def start(plan: Plan, out: Path) -> Run:
    """Start a comparison in a new folder below `out`."""
    out = out.resolve()
    folder = out / moment_text(datetime.now(UTC))
    write_atomically(folder / UNFINISHED, _state(plan))  # also creates the folder
    if (ignored := checkout.REPOSITORY / DEFAULT_OUT) in folder.parents:
        write_atomically(ignored / ".gitignore", "*\n")
    return Run(plan, folder)


def find_resumable(plan: Plan, out: Path) -> Run | None:
    """Return the newest unfinished comparison of the same plan."""
    states = sorted(out.resolve().glob(f"*/{UNFINISHED}"), reverse=True)
    return next((Run(plan, path.parent) for path in states if path.read_text() == _state(plan)), None)


def _state(plan: Plan) -> str:
    return json.dumps(asdict(plan), indent=1)


def measure(run: Run, *, resume: bool, meter: Meter) -> None:
    """Run the suites on every side, one round in turn, as often as there are launches.

    If a side fails or measures nothing, end the others, keep what was measured and raise ValueError.
    """
    with checkouts(run.plan.sources) as folders:
        packages = [package_folder(side.package, meter.note) if side.package else None for side in run.plan.sources]
        sides = tuple(zip(folders, packages, strict=True))
        for launch in range(run.plan.launches):
            _launch(run, launch, sides, resume=resume, meter=meter)
    (run.folder / UNFINISHED).unlink()  # first: without it nothing is resumed
    for file in run.folder.glob("*/*.finished"):
        file.unlink()


def _launch(run: Run, launch: int, sides: Sequence[tuple[Path, Path | None]], *, resume: bool, meter: Meter) -> None:
    """Run every side once, in turns, from its start to its end."""
    parties = {
        _party(run, index, launch, *side, resume=resume): run.finished(index, launch)
        for index, side in enumerate(sides)
        if not run.finished(index, launch).exists()
    }
    rounds, pairs = Counter[str](), Counter[str]()
    with ended_afterwards(parties):
        # The seed differs between launches, so that the side that starts changes from launch to launch.
        for party, turn in take_turns(tuple(parties), seed=run.plan.seed + launch, slice_s=run.plan.slice_s):
            if turn is None:
                if party.status not in (0, SOME_TESTS_FAILED):
                    raise ValueError(f"{party.name} failed with exit status {party.status}: {_last_words(party.log)}")
                if party.status == SOME_TESTS_FAILED:
                    meter.note(f"{party.name}: some tests failed, see {party.log}")
                parties[party].touch()
                continue
            new = turn.pairs - pairs[party.name]
            pairs[party.name] += new
            rounds[party.name] += 1
            so_far = "  ".join(f"{each.name}: {rounds[each.name]}" for each in parties)
            meter.total = turn.total * len(parties) * run.plan.launches
            meter.step(new, f"launch {launch + 1} of {run.plan.launches}  rounds of {so_far}", label=turn.label)
    for index, source in enumerate(run.plan.sources):
        if not run.records(index, launch):
            raise ValueError(f"{source.label} measured nothing: {_last_words(run.log(index, launch))}")


def _party(run: Run, index: int, launch: int, folder: Path, package: Path | None, *, resume: bool) -> Party:
    """Return the process of one side: pytest on the caller's suites, with the packages of this side first in the path."""
    source, log = run.plan.sources[index], run.log(index, launch)
    side = json.dumps({"folder": str(folder), "package": source.package, "command": sys.argv})
    options = (
        "--benchmark-only",
        "--no-page",
        *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:anyio"),  # the last two take long to import
        # Otherwise the caller's folder would precede the revision's.
        *("-o", "pythonpath=", "-o", "testpaths=suites"),
        # The child imports bench before pytest could rewrite its assertions.
        *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
        *("--results", str(run.results(index, launch))),
        *(["--resume"] if resume else []),
        *(["--pairs-only"] if launch else []),
    )
    paths = filter(None, (package, folder, os.environ.get("PYTHONPATH")))  # of these the first wins
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    env[environment.SLICE_VARIABLE] = f"{run.plan.slice_s * 1000:g}"
    if source.package:
        env[environment.LIBRARIES_VARIABLE] = source.package.partition("==")[0]
    command = [sys.executable, "-m", "bench.orchestration.child", side, *options, *run.plan.words]
    log.parent.mkdir(exist_ok=True)
    return Party(source.label, command, checkout.REPOSITORY, env, log)


def _last_words(log: Path) -> str:
    return f"{last_line(log.read_text(errors='replace'))} (all it wrote: {log})"


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=~-]+", "-", label).strip("-.") or "-"
