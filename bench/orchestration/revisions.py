"""The same suites on several revisions of the backends, or on several versions of a package they stand on, in turns.

The caller's bench and suites measure; each side is a process of its own that takes only the package `backends` from its
revision, which lies in a git worktree in a temporary folder. The caller's checkout is read and never written.

<out>/<moment>/.unfinished                                          what was asked for, until all is done
<out>/<moment>/<number>-<side>/launch-<n>/<machine>/<suite>/<...>   the records of a side, as `--results` would leave them
<out>/<moment>/<number>-<side>/launch-<n>.finished                  until then: this launch has nothing left to do
<out>/<moment>/<number>-<side>/launch-<n>.log                       what its process wrote
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.analysis.comparison import Side
from bench.measurement.turns import Round
from bench.orchestration.parties import Party, ended_afterwards, take_turns
from bench.progress import Meter
from bench.records import environment
from bench.records.checkout import REPOSITORY, git
from bench.records.files import load_run, write_atomically
from bench.records.runs import RunRecord

WORKTREE = (".", "WORKTREE")  # the caller's files as they are, committed or not
HARNESS_KEYS = ("harness_commit", "harness_dirty")
OWN_OPTIONS = ("--results", "--plan")  # of the suites, which mean nothing here
SOME_TESTS_FAILED = 1  # pytest's exit status: what could be measured was
_DEFAULT_OUT = ".across"  # below the repository, and ignored by its git
FEWEST_LAUNCHES = 2
_UNFINISHED = ".unfinished"
_CHILD = "bench.orchestration.child"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the engines of one side come from."""

    label: str
    commit: str | None  # of the package `backends`; None: the caller's files
    package: str | None = None  # "name==version"; None: what is installed


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be measured on every side, and where the records go."""

    sources: tuple[Source, ...]
    asked: tuple[str, ...]  # suites and their options
    seed: int  # of the order of the sides
    launches: int  # of each side, in processes of their own; those behind the first measure pairs only
    slice_s: float  # of timed calls; 0: whole ones
    folder: Path

    def results(self, index: int, launch: int) -> Path:
        """Folder of the records of one launch of one side."""
        return self.folder / f"{index + 1}-{_file_name(self.sources[index].label)}" / f"launch-{launch + 1}"

    def log(self, index: int, launch: int) -> Path:
        return self.results(index, launch).with_suffix(".log")

    def finished(self, index: int, launch: int) -> Path:
        """Is there where a launch need not run again."""
        return self.results(index, launch).with_suffix(".finished")


def sources(revisions: Sequence[str], packages: Sequence[str]) -> tuple[Source, ...]:
    """The sides: several revisions, or several versions of one package on one revision.

    Args:    revisions: anything git knows as a commit, or `.` or WORKTREE for the caller's files; none: these
             packages: "name==version" each
    Raises:  ValueError: fewer than two sides, sides of both kinds, or one that does not exist
    """
    for package in packages:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*==[A-Za-z0-9_.!+-]+", package):
            raise ValueError(f"expected --with PACKAGE==VERSION, got {package!r}")
    if len({package.partition("==")[0] for package in packages}) > 1:
        raise ValueError(f"expected --with versions of one package, got {', '.join(packages)}")
    if len(revisions) > 1 and len(packages) > 1:
        raise ValueError("expected several revisions or several --with versions, got both; fix one of them")
    if max(len(revisions), len(packages)) < 2:
        raise ValueError("expected at least two revisions, or two versions of a package with --with")
    _check_repository()
    found = [_revision(revision) for revision in revisions or WORKTREE[:1]]
    if len(packages) > 1:
        return _numbered([Source(package, found[0].commit, package) for package in packages])
    return _numbered([Source(each.label, each.commit, *packages) for each in found])


def _check_repository() -> None:
    try:
        root = Path(git(REPOSITORY, "rev-parse", "--show-toplevel")).resolve()
    except (OSError, subprocess.SubprocessError):
        root = None
    if root != REPOSITORY:
        raise ValueError(f"expected specheat to run from a checkout of its repository, found none at {REPOSITORY}")


def _revision(name: str) -> Source:
    if name in WORKTREE:
        return Source("working tree", None)
    try:
        commit = git(REPOSITORY, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        git(REPOSITORY, "cat-file", "-e", f"{commit}:backends/__init__.py")
    except subprocess.CalledProcessError as error:
        what = "a commit of this repository" if "rev-parse" in error.cmd else "a revision with a package backends"
        raise ValueError(f"expected {what}, got {name!r}; `git log --all --oneline` lists them") from error
    short = commit[:10]
    return Source(short if commit.startswith(name) else f"{name} ({short})", commit)


def _numbered(found: Sequence[Source]) -> tuple[Source, ...]:
    """Sides that go by one name, as where a commit is held against itself, get numbers."""
    labels = [source.label for source in found]
    return tuple(
        source
        if labels.count(source.label) == 1
        else Source(f"{source.label} #{labels[: index + 1].count(source.label)}", source.commit, source.package)
        for index, source in enumerate(found)
    )


def default_out(revisions: Sequence[str], packages: Sequence[str]) -> Path:
    """Depends on the sides alone, so that --resume finds it."""
    names = [WORKTREE[1] if revision in WORKTREE else revision for revision in revisions or WORKTREE[:1]]
    return REPOSITORY / _DEFAULT_OUT / "..".join(map(_file_name, [*names, *packages]))


def prepare(
    sides: tuple[Source, ...],
    asked: Sequence[str],
    *,
    seed: int,
    launches: int,
    slice_s: float,
    out: Path,
    resume: bool,
    note: Callable[[str], None],
) -> Run:
    """A new comparison in a folder of its own; with resume, the newest unfinished one of the same sides, suites and seed.

    Raises:  ValueError: options of the suites that the comparison sets itself, too few launches, or slices below 0
    """
    if not slice_s >= 0:
        raise ValueError(f"expected --slice >= 0, got {slice_s * 1000:g}")
    if launches < FEWEST_LAUNCHES:
        raise ValueError(
            f"expected --launches >= {FEWEST_LAUNCHES}, got {launches}: one does not show how far launches are apart"
        )
    out = out.resolve()
    for word in asked:
        if word.partition("=")[0] in OWN_OPTIONS:
            raise ValueError(f"expected suites and their options behind --, got {word}, which `specheat across` sets")
    wanted = {
        "sides": [asdict(side) for side in sides],
        "asked": list(asked),
        "seed": seed,
        "launches": launches,
        "slice_s": slice_s,
    }
    if resume:
        for state in sorted(out.glob(f"*/{_UNFINISHED}"), reverse=True):
            with suppress(ValueError):
                if json.loads(state.read_text()) == wanted:
                    return Run(sides, tuple(asked), seed, launches, slice_s, state.parent)
        note(f"nothing to resume in {out}: starting anew")
    folder = out / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder.mkdir(parents=True)
    if (ignored := REPOSITORY / _DEFAULT_OUT) in folder.parents:
        write_atomically(ignored / ".gitignore", "*\n")
    write_atomically(folder / _UNFINISHED, json.dumps(wanted, indent=1))
    return Run(sides, tuple(asked), seed, launches, slice_s, folder)


def measure(run: Run, *, resume: bool, reporter: Meter) -> None:
    """Run the suites on every side, a round in turn, as often as there are launches.

    Raises:  ValueError: a side that failed, or measured nothing; the others are ended, and what was measured is kept
    """
    with checkouts(run.sources) as folders:
        packages = [package_folder(source.package, reporter.note) for source in run.sources]
        sides = tuple(zip(folders, packages, strict=True))
        for launch in range(run.launches):
            _launch(run, launch, sides, resume=resume, reporter=reporter)
    (run.folder / _UNFINISHED).unlink()
    for index, launch in _all_launches(run):
        run.finished(index, launch).unlink()


def _all_launches(run: Run) -> Iterator[tuple[int, int]]:
    return itertools.product(range(len(run.sources)), range(run.launches))


def _launch(run: Run, launch: int, sides: Sequence[tuple[Path, Path | None]], *, resume: bool, reporter: Meter) -> None:
    """Every side once, in turns, from its start to its end."""
    parties = {
        _party(run, index, launch, *side, resume=resume): run.finished(index, launch)
        for index, side in enumerate(sides)
        if not run.finished(index, launch).exists()
    }
    with ended_afterwards(parties):
        progress = _Progress(parties, reporter, launch=launch, launches=run.launches)
        # With the seed the side that starts changes from launch to launch.
        for party, finished in take_turns(tuple(parties), seed=run.seed + launch, slice_s=run.slice_s):
            if finished is not None:
                progress.step(party, finished)
                continue
            if party.status not in (0, SOME_TESTS_FAILED):
                raise ValueError(f"{party.name} failed with exit status {party.status}: {_last_words(party.log)}")
            if party.status == SOME_TESTS_FAILED:
                reporter.note(f"{party.name}: some tests failed, see {party.log}")
            parties[party].touch()
    for index, source in enumerate(run.sources):
        if not records(run, index, launch):
            raise ValueError(f"{source.label} measured nothing: {_last_words(run.log(index, launch))}")


def records(run: Run, index: int, launch: int) -> dict[str, RunRecord]:
    """File -> record of one launch of one side."""
    files = sorted(run.results(index, launch).rglob("*.json"))
    return {str(file): load_run(file) for file in files}


def measured_sides(run: Run) -> list[Side]:
    """What was measured, to be compared."""
    launches = [[records(run, index, launch) for launch in range(run.launches)] for index in range(len(run.sources))]
    return [
        Side(source.label, first, tuple(further))
        for source, (first, *further) in zip(run.sources, launches, strict=True)
    ]


def check_one_harness(run: Run) -> None:
    """Raises: IncomparableResults: bench or suites were edited or committed while they measured."""
    found = [record.environment for place in _all_launches(run) for record in records(run, *place).values()]
    for each in found[1:]:
        environment.check_comparable(found[0], each, keys=HARNESS_KEYS)


@contextmanager
def checkouts(sides: Sequence[Source]) -> Iterator[tuple[Path, ...]]:
    """The folder in which each side's package `backends` lies: of revisions, worktrees that hold nothing else."""
    with tempfile.TemporaryDirectory(prefix="specheat-across-") as scratch, ExitStack() as stack:
        folders = []
        for number, side in enumerate(sides, start=1):
            if side.commit is None:
                folders.append(REPOSITORY)
                continue
            folder = Path(scratch).resolve() / f"side-{number}"
            stack.callback(_remove_worktree, folder)
            _add_worktree(folder, side)
            folders.append(folder)
        yield tuple(folders)


def _add_worktree(folder: Path, side: Source) -> None:
    no_hooks = ("-c", f"core.hooksPath={os.devnull}")  # the user's are for the user's checkouts
    commit = str(side.commit)
    try:
        git(REPOSITORY, *no_hooks, "worktree", "add", "--detach", "--no-checkout", str(folder), commit)
        git(folder, *no_hooks, "checkout", commit, "--", "backends")
    except subprocess.SubprocessError as error:
        said = getattr(error, "stderr", None) or str(error)
        raise ValueError(f"git cannot check out {side.label}: {_last_line(said)}") from error


def _remove_worktree(folder: Path) -> None:
    with suppress(subprocess.CalledProcessError):  # it was never added
        git(REPOSITORY, "worktree", "remove", "--force", str(folder))


def package_folder(package: str | None, note: Callable[[str], None]) -> Path | None:
    """A folder with only this version of a package, installed once and kept; what it needs comes from this environment.

    Raises:  ValueError: pip cannot install it
    """
    if package is None:
        return None
    cache = Path(os.environ.get("SPECHEAT_CACHE") or Path.home() / ".cache" / "specheat")
    folder = cache / "packages" / str(sys.implementation.cache_tag) / package
    if folder.is_dir():
        return folder
    note(f"installing {package} into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".installing-") as scratch:
        target = Path(scratch, "target")
        options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(target))
        command = [sys.executable, "-m", "pip", "install", *options, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"cannot install {package}: {_last_line(done.stderr)}")
        target.rename(folder)
    return folder


def _party(run: Run, index: int, launch: int, checkout: Path, package: Path | None, *, resume: bool) -> Party:
    source = run.sources[index]
    side = json.dumps({"folder": str(checkout), "package": source.package, "command": sys.argv})
    options = (
        "--benchmark-only",
        *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:anyio"),  # the last two take long to import
        # The caller's folder would come before the revision's.
        *("-o", "pythonpath=", "-o", "testpaths=suites"),
        # Of bench, which is there before pytest could rewrite its assertions.
        *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
        *("--results", str(run.results(index, launch))),
        *(["--resume"] if resume else []),
        *(["--pairs-only"] if launch else []),
    )
    paths = [checkout] if package is None else [package, checkout]
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *filter(None, [env.get("PYTHONPATH")])])
    env[environment.SLICE_VARIABLE] = f"{run.slice_s * 1000:g}"
    if source.package:
        env[environment.LIBRARIES_VARIABLE] = source.package.partition("==")[0]
    command = [sys.executable, "-m", _CHILD, side, *options, *run.asked]
    log = run.log(index, launch)
    log.parent.mkdir(exist_ok=True)
    return Party(source.label, command, cwd=REPOSITORY, env=env, log=log)


class _Progress:
    """Rounds of every side on the reporter, which counts the pairs of all of them."""

    def __init__(self, parties: Iterable[Party], reporter: Meter, *, launch: int, launches: int) -> None:
        self.launch = launch
        self.launches = launches
        self.rounds = dict.fromkeys((party.name for party in parties), 0)
        self.pairs = dict.fromkeys(self.rounds, 0)
        self.reporter = reporter

    def step(self, party: Party, finished: Round) -> None:
        self.reporter.total = finished.total * len(self.rounds) * self.launches
        self.rounds[party.name] += 1
        if self.launch == 0 and not any(self.pairs.values()):
            self.reporter.started = time.monotonic()  # loading and baseline say nothing of how long a pair takes
        new, self.pairs[party.name] = finished.pairs - self.pairs[party.name], finished.pairs
        so_far = "  ".join(f"{name}: {rounds}" for name, rounds in self.rounds.items())
        launch = f"launch {self.launch + 1} of {self.launches}"
        self.reporter.step(new, f"{launch}  rounds of {so_far}", label=finished.label)


def _last_words(log: Path) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return f"{_last_line(text)} (all it wrote: {log})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=~-]+", "-", label).strip("-.") or "-"
