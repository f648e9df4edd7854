"""What every suite stands on: the model pair, the prompts as ids, the backend, and the record being written.

Everything that can be wrong with the input is found before the first model is loaded, and said in one line.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from backends.certification import scoring
from backends.models import checkpoints, pairs
from backends.models.cache import cache_folder
from bench.errors import BackendUnavailable
from bench.measurement import plan
from bench.measurement.baseline import Baselines
from bench.measurement.recording import NotMeasured, Recording, Workload
from bench.measurement.session_log import SessionLog
from bench.measurement.suite_run import SuiteRun
from bench.options.settings import PRESETS, Settings
from bench.plugin import RECORD_FILES, SETTINGS, settings_of
from bench.progress import Reporter
from bench.prompts import formatting, sets
from bench.protocols import Backend
from bench.records import files
from bench.records.decoding import ModelPair
from bench.records.environment import installed_version
from bench.records.runs import Cell, Evidence, TimedPair
from bench.registry import backend_factory

Variant = tuple[str | None, str | None, str]  # inflation of the target, draft, prompt source


@dataclass(slots=True)
class LoadedEngine:
    """The engine that was loaded last: a suite that follows on the same pair need not load it again."""

    key: tuple[object, ...] = ()
    engine: Backend | None = None

    def get(self, key: tuple[object, ...], load: Callable[[], Backend]) -> Backend:
        """The engine of this key; the one before is closed first, so that two are never in memory."""
        if self.engine is None or key != self.key:
            self.close()
            self.engine, self.key = load(), key
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the command line asked for, checked, and what suites hand on to each other."""

    workloads: Mapping[Settings, Mapping[Variant, Workload]]  # suites with the same settings share them
    reporter: Reporter
    loaded: LoadedEngine
    baselines: Baselines
    log: SessionLog


PREPARED = pytest.StashKey[Prepared]()


def pytest_configure(config: pytest.Config) -> None:
    # Ctrl-C may leave a file open wherever it strikes, which is no reason to end with a traceback.
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")
    # The line holds from here to the end of the session; what is found behind that meets the filters of before.
    warnings.filterwarnings("ignore", category=pytest.PytestUnraisableExceptionWarning)


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the input once the cells are known, so that bad input ends the run before anything is measured."""
    settings = config.stash[SETTINGS]
    if len(settings.backends) == 1:
        alone = [item for item in items if item.get_closest_marker("compares_backends")]
        config.hook.pytest_deselected(items=alone)
        items[:] = [item for item in items if item not in alone]
    if config.option.collectonly or not items:
        return
    suites = {item: settings_of(config, item.module) for item in items if isinstance(item, pytest.Function)}
    try:
        for name in settings.backends:
            backend_factory(name)
        workloads = {each: prepare_workloads(each) for each in _with_their_models(suites)}
        if not settings.plan:
            files.check_writable(settings.results)
    except (ValueError, BackendUnavailable, OSError) as error:
        raise pytest.UsageError(str(error)) from None
    capture = config.pluginmanager.getplugin("capturemanager")
    uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
    start = SessionLog.resume if settings.resume else partial(SessionLog, finished=())
    log = start(settings.results, config.invocation_params.args)
    total = 0
    for item, each in suites.items():
        if item.nodeid in log.finished:
            item.add_marker(pytest.mark.skip(reason="measured before the interruption"))
        elif each in workloads and "suite_run" in item.fixturenames:
            total += len(workloads[each][_variant(item, each)].prompt_ids) * each.repeats
    config.stash[PREPARED] = Prepared(workloads, Reporter(total, uncaptured=uncaptured), LoadedEngine(), {}, log)


def _with_their_models(suites: Mapping[pytest.Function, Settings]) -> Iterator[Settings]:
    """Settings whose models can be had; a suite whose own drafts or inflations cannot is skipped."""
    for settings in dict.fromkeys(suites.values()):
        if reason := _lacking(settings):
            for item in (item for item, of_item in suites.items() if of_item == settings):
                item.add_marker(pytest.mark.skip(reason=reason))
        else:
            yield settings


def _lacking(settings: Settings) -> str | None:
    """Why models that a suite would rather have cannot be had."""
    try:
        for draft in settings.drafts:
            pair = pairs.resolve(settings.pair, target=settings.target, draft=draft, pairs_file=settings.pairs_file)
    except BackendUnavailable as reason:
        if settings.drafts == (None,) or "drafts" in settings.given:
            raise
        return str(reason)
    try:
        for inflation in filter(None, settings.inflations):
            pairs.check_inflatable(pair, inflation)
    except (BackendUnavailable, ValueError) as reason:
        if "inflations" in settings.given:
            raise
        return str(reason)
    return None


def _variant(item: pytest.Function, settings: Settings) -> Variant:
    """Which target, draft and prompts a test measures."""
    chosen = item.callspec.params if hasattr(item, "callspec") else {}
    return (
        chosen.get("inflation", settings.inflations[0]),
        chosen.get("draft", settings.drafts[0]),
        chosen.get("prompt_source", settings.prompts[0]),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """--plan: say what would be run, and stop."""
    settings = session.config.stash[SETTINGS]
    if not settings.plan or PREPARED not in session.config.stash:
        return None
    workloads = session.config.stash[PREPARED].workloads
    cells: dict[tuple[Settings, Variant], list[str]] = {}
    for item in session.items:
        asked = settings_of(session.config, getattr(item, "module", None))
        if isinstance(item, pytest.Function) and asked in workloads:
            cells.setdefault((asked, _variant(item, asked)), []).append(item.nodeid)
    print()
    print(plan.describe([(names, asked, workloads[asked][variant]) for (asked, variant), names in cells.items()]))
    return True


@pytest.hookimpl(trylast=True)  # behind the fixtures of a suite that was interrupted
def pytest_sessionfinish(session: pytest.Session) -> None:
    if PREPARED in session.config.stash:
        prepared = session.config.stash[PREPARED]
        prepared.loaded.close()
        if not _interrupted(session) and not session.config.stash[SETTINGS].plan:
            prepared.log.end()


def _interrupted(session: pytest.Session) -> bool:
    return bool(session.exitstatus == pytest.ExitCode.INTERRUPTED or session.shouldstop or session.shouldfail)


def prepare_workloads(settings: Settings) -> dict[Variant, Workload]:
    """One for each target, draft and prompt set. Raises ValueError where two of them go by one name."""
    variants = itertools.product(settings.inflations, settings.drafts, settings.prompts)
    found = {variant: prepare_workload(settings, variant) for variant in variants}
    names = {
        (each.model_pair.name, each.recorded_pair.draft, each.prompt_set, each.prompts_hash) for each in found.values()
    }
    if len(names) < len(found):
        known = ", ".join(sorted({f"{draft} on {prompt_set}" for _, draft, prompt_set, _ in names}))
        raise ValueError(f"expected drafts and prompt sets of different names, got only {known}; rename a folder")
    return found


def prepare_workload(settings: Settings, variant: Variant) -> Workload:
    """Resolve and check the pair, load the prompts and turn them into ids."""
    inflation, draft, source = variant
    pair, hashes = _checked_pair(settings.pair, settings.target, draft, settings.dtype, settings.pairs_file, inflation)
    demanded = "num_prompts" in settings.given
    prompt_set = sets.load(source, limit=settings.num_prompts if demanded else None)
    if not demanded:
        wanted = settings.num_prompts or PRESETS[settings.preset].num_prompts
        prompt_set = replace(prompt_set, prompts=prompt_set.prompts[:wanted])
    tokenizer = checkpoints.tokenizer(pair)
    prompt_format = formatting.prompt_format(
        tokenizer,
        chat_template=settings.chat_template,
        system_prompt=settings.system_prompt,
        max_prompt_tokens=settings.max_prompt_tokens,
    )
    encoded = formatting.encode(
        prompt_set,
        tokenizer,
        prompt_format,
        context_length=checkpoints.context_length(pair),
        max_new_tokens=settings.max_new_tokens,
        num_draft_tokens=max(settings.num_draft_tokens),
    )
    return Workload(
        model_pair=pair,
        recorded_pair=pairs.recorded(pair),
        model_hashes=hashes,
        prompt_set=prompt_set.name,
        prompts_hash=prompt_set.sha256,
        prompt_format=prompt_format.as_record(),
        prompt_ids=tuple(prompt.ids for prompt in encoded),
        end_token_ids=formatting.end_token_ids(pair),
        draft_card=pairs.draft_card(pair),
    )


@cache
def _checked_pair(
    name: str | None,
    target: str | None,
    draft: str | None,
    dtype: str | None,
    pairs_file: Path | None,
    inflation: str | None,
) -> tuple[ModelPair, dict[str, str]]:
    """The resolved pair and the hashes of its models, once for all suites."""
    pair = pairs.resolve(name, target=target, draft=draft, dtype=dtype, pairs_file=pairs_file)
    if inflation is not None:
        pair = pairs.inflated(pair, inflation)
    checkpoints.check_compatible(pair)
    return pair, checkpoints.model_hashes(pair)


@pytest.fixture(scope="module")
def workload(
    settings: Settings, inflation: str | None, draft: str | None, prompt_source: str, request: pytest.FixtureRequest
) -> Workload:
    """What the cells that run now decode."""
    return request.config.stash[PREPARED].workloads[settings][inflation, draft, prompt_source]


@pytest.fixture(scope="module")
def backend(backend_name: str, settings: Settings, workload: Workload, request: pytest.FixtureRequest) -> Backend:
    """The engine under measurement. An engine that is not here is skipped, with the reason."""
    pair, options = workload.model_pair, settings.options_of(backend_name)

    def load() -> Backend:
        try:
            return backend_factory(backend_name)(pair, device=settings.device, options=dict(options))
        except BackendUnavailable as reason:
            pytest.skip(str(reason))
        except (ValueError, OSError) as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

    key = (backend_name, pair, settings.device, options)
    return request.config.stash[PREPARED].loaded.get(key, load)


def certifying_score(
    backend: Backend, workload: Workload, settings: Settings
) -> Callable[[Cell, Sequence[TimedPair]], Evidence]:
    """Scores a cell's texts under the target: the reference's own copy of it, or one loaded with the first cell."""

    def score(cell: Cell, timed: Sequence[TimedPair]) -> Evidence:
        model = scoring.lent_target(backend) or _scoring_target(workload.model_pair, settings.device)
        near_tie = NEAR_TIES.get(conditions)
        if near_tie is None:
            near_tie = scoring.near_tie_tolerance(model, workload.prompt_ids, conditions[-1])
            NEAR_TIES[conditions] = near_tie
        return scoring.evidence_for_cell(timed, workload.prompt_ids, cell, scoring.TargetScorer(model), near_tie)

    pair, shown = workload.model_pair, workload.prompt_ids[: scoring.NEAR_TIE_PROMPTS]
    conditions = (pair.target, pair.dtype, settings.device, shown, max(settings.num_draft_tokens))
    return score


NEAR_TIES: dict[tuple[str, str, str, tuple[tuple[int, ...], ...], int], float] = {}  # measured once a session


@lru_cache(maxsize=1)
def _scoring_target(pair: ModelPair, device: str) -> PreTrainedModel:
    return scoring.load_target(pair, device)


@pytest.fixture(scope="module")
def recording(
    backend_name: str, inflation: str | None, settings: Settings, request: pytest.FixtureRequest
) -> Iterator[Recording]:
    """The record of this suite on this backend and target; written when the suite ends, resumable when it does not."""
    prepared = request.config.stash[PREPARED]
    suite = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    made = Recording(
        suite,
        backend_name,
        settings=settings,
        workloads=tuple(
            workload for variant, workload in prepared.workloads[settings].items() if variant[0] == inflation
        ),
        reporter=prepared.reporter,
    )
    yield made
    prepared.reporter.close()
    if _interrupted(request.session):
        prepared.reporter.note(
            "interrupted: what was measured is kept; the same command with --resume goes on from there"
        )
    elif (path := made.finish()) is not None:
        request.config.stash[RECORD_FILES].append(path)
        prepared.log.add(_tests_of(request.session, request.module, backend_name, inflation))


def _tests_of(session: pytest.Session, suite: object, backend_name: str, inflation: str | None) -> list[str]:
    return [
        item.nodeid
        for item in session.items
        if isinstance(item, pytest.Function)
        and item.module is suite
        and hasattr(item, "callspec")
        and item.callspec.params.get("backend_name") == backend_name
        and item.callspec.params.get("inflation", inflation) == inflation
    ]


@pytest.fixture(scope="module")
def suite_run(
    recording: Recording, backend: Backend, workload: Workload, request: pytest.FixtureRequest
) -> Iterator[SuiteRun]:
    """The measuring side of this suite on one draft and one set of prompts."""
    yield SuiteRun(
        recording,
        backend,
        workload=workload,
        score=None if recording.settings.pairs_only else certifying_score(backend, workload, recording.settings),
        baselines=request.config.stash[PREPARED].baselines,
    )
    recording.leave(backend)


@pytest.fixture
def train_and_measure(
    settings: Settings, workload: Workload, request: pytest.FixtureRequest, benchmark: Any
) -> Callable[[Sequence[str]], None]:
    """Trains small drafts of several arms on the pair and writes a record of their alpha, as `specheat kd-matrix` does."""
    if missing := [name for name in ("peft", "accelerate") if installed_version(name) is None]:
        pytest.skip(f"training adapters needs {' and '.join(missing)}; pip install -e '.[distill]'")
    from distill.runs import small_matrix

    def go(arms: Sequence[str]) -> None:
        reporter = request.config.stash[PREPARED].reporter
        tables, path = small_matrix.measure(
            request.module.__name__.rpartition(".")[2].removeprefix("test_"),
            arms,
            request.module.KD[settings.preset],
            settings=settings,
            workload=workload,
            scratch=cache_folder() / "kd",
            benchmark=benchmark,
            note=reporter.note,
        )
        reporter.note(f"\n\n{path}\n\n{tables}\n")

    return go


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A cell that the engine cannot decode, or that the resumed run had finished, is skipped with the reason."""
    try:
        yield
    except NotMeasured as reason:
        pytest.skip(str(reason))
    if isinstance(item, pytest.Function) and "suite_run" not in item.fixturenames:
        item.config.stash[PREPARED].log.add([item.nodeid])  # of those that share a record, `recording` says it
