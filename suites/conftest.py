"""What every suite stands on: the model pair, the prompts as ids, the backend, and the record being written.

Everything that can be wrong with the input is found before the first model is loaded, and said in one line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest

from backends import formatting, pairs, scoring
from backends.reference import ReferenceBackend
from bench import plan, prompts, store
from bench.plugin import RECORD_FILES, SETTINGS
from bench.progress import Reporter
from bench.protocols import Backend, BackendUnavailable
from bench.records import Cell, Evidence, TimedPair
from bench.registry import backend_factory
from bench.settings import PRESETS, Settings
from bench.suite_run import NotMeasured, SuiteRun, Workload


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the command line asked for, checked."""

    workload: Workload
    reporter: Reporter


PREPARED = pytest.StashKey[Prepared]()


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the input once the cells are known, so that bad input ends the run before anything is measured."""
    settings = config.stash[SETTINGS]
    if len(settings.backends) == 1:
        alone = [item for item in items if item.get_closest_marker("compares_backends")]
        config.hook.pytest_deselected(items=alone)
        items[:] = [item for item in items if item not in alone]
    if config.option.collectonly or not items:
        return
    try:
        for name in settings.backends:
            backend_factory(name)
        workload = prepare_workload(settings)
        if not settings.plan:
            store.check_writable(settings.results)
    except (ValueError, BackendUnavailable, OSError) as error:
        raise pytest.UsageError(str(error)) from None
    capture = config.pluginmanager.getplugin("capturemanager")
    uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
    total = len(items) * len(workload.prompt_ids) * settings.repeats
    config.stash[PREPARED] = Prepared(workload, Reporter(total, uncaptured=uncaptured))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """--plan: say what would be run, and stop."""
    settings = session.config.stash[SETTINGS]
    if not settings.plan or PREPARED not in session.config.stash:
        return None
    print()
    print(plan.describe([item.nodeid for item in session.items], settings, session.config.stash[PREPARED].workload))
    return True


def prepare_workload(settings: Settings) -> Workload:
    """Resolve and check the pair, load the prompts and turn them into ids."""
    pair = pairs.resolve(
        settings.pair,
        target=settings.target,
        draft=settings.draft,
        dtype=settings.dtype,
        pairs_file=settings.pairs_file,
    )
    pairs.check_compatible(pair)
    prompt_set = prompts.load(settings.prompts, limit=settings.num_prompts)
    if settings.num_prompts is None:
        prompt_set = replace(prompt_set, prompts=prompt_set.prompts[: PRESETS[settings.preset].num_prompts])
    tokenizer = pairs.tokenizer(pair)
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
        context_length=pairs.context_length(pair),
        max_new_tokens=settings.max_new_tokens,
        num_draft_tokens=max(settings.num_draft_tokens),
    )
    return Workload(
        model_pair=pair,
        recorded_pair=pairs.recorded(pair),
        model_hashes=pairs.model_hashes(pair),
        prompt_set=prompt_set.name,
        prompts_hash=prompt_set.sha256,
        prompt_format=prompt_format.as_record(),
        prompt_ids=tuple(prompt.ids for prompt in encoded),
        end_token_ids=formatting.end_token_ids(pair),
    )


@pytest.fixture(scope="module")
def backend(backend_name: str, settings: Settings, request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The engine under measurement, loaded once a suite. An engine that is not here is skipped, with the reason."""
    workload = request.config.stash[PREPARED].workload
    try:
        engine = backend_factory(backend_name)(
            workload.model_pair, device=settings.device, options=dict(settings.backend_options)
        )
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    except (ValueError, OSError) as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    yield engine
    engine.close()


def certifying_score(
    backend: Backend, workload: Workload, settings: Settings
) -> Callable[[Cell, Sequence[TimedPair]], Evidence]:
    """Scores a cell's texts under the target: the reference's own copy of it, or one loaded with the first cell."""

    @functools.cache
    def scorer() -> tuple[scoring.TargetScorer, float]:
        shared = isinstance(backend, ReferenceBackend)
        model = backend.target.model if shared else scoring.load_target(workload.model_pair, settings.device)
        near_tie = scoring.near_tie_tolerance(model, workload.prompt_ids, max(settings.num_draft_tokens))
        return scoring.TargetScorer(model), near_tie

    return lambda cell, timed: scoring.evidence_for_cell(timed, workload.prompt_ids, cell, *scorer())


@pytest.fixture(scope="module")
def suite_run(backend: Backend, settings: Settings, request: pytest.FixtureRequest) -> Iterator[SuiteRun]:
    """The record of this suite on this backend; written when the suite ends, resumable when it does not."""
    prepared = request.config.stash[PREPARED]
    suite = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    run = SuiteRun(
        suite,
        backend,
        workload=prepared.workload,
        settings=settings,
        reporter=prepared.reporter,
        score=certifying_score(backend, prepared.workload, settings),
    )
    yield run
    prepared.reporter.close()
    session = request.session
    if session.exitstatus == pytest.ExitCode.INTERRUPTED or session.shouldstop or session.shouldfail:
        prepared.reporter.note(
            "interrupted: what was measured is kept; the same command with --resume goes on from there"
        )
    elif (path := run.finish()) is not None:
        request.config.stash[RECORD_FILES].append(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A cell that the engine cannot decode, or that the resumed run had finished, is skipped with the reason."""
    try:
        return (yield)
    except NotMeasured as reason:
        pytest.skip(str(reason))
