"""What every suite stands on: the model pair, the prompts as ids, the backend, and the record being written.

Everything that can be wrong with the input is found before the first model is loaded, and said in one line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from backends import formatting, pairs, scoring
from backends.reference import ReferenceBackend
from bench import plan, prompts, store
from bench.plugin import RECORD_FILES, SETTINGS, settings_of
from bench.progress import Reporter
from bench.protocols import Backend, BackendUnavailable
from bench.records import Cell, Evidence, ModelPair, TimedPair
from bench.registry import backend_factory
from bench.settings import PRESETS, Settings
from bench.suite_run import NotMeasured, SuiteRun, Workload


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the command line asked for, checked."""

    workloads: Mapping[Settings, Workload]  # suites with the same settings share one
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
    of_items = [settings_of(config, item.module) for item in items if isinstance(item, pytest.Function)]
    try:
        for name in settings.backends:
            backend_factory(name)
        workloads = {each: prepare_workload(each) for each in dict.fromkeys(of_items)}
        if not settings.plan:
            store.check_writable(settings.results)
    except (ValueError, BackendUnavailable, OSError) as error:
        raise pytest.UsageError(str(error)) from None
    capture = config.pluginmanager.getplugin("capturemanager")
    uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
    total = sum(len(workloads[each].prompt_ids) * each.repeats for each in of_items)
    config.stash[PREPARED] = Prepared(workloads, Reporter(total, uncaptured=uncaptured))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """--plan: say what would be run, and stop."""
    settings = session.config.stash[SETTINGS]
    if not settings.plan or PREPARED not in session.config.stash:
        return None
    cells: dict[Settings, list[str]] = {}
    for item in session.items:
        cells.setdefault(settings_of(session.config, getattr(item, "module", None)), []).append(item.nodeid)
    workloads = session.config.stash[PREPARED].workloads
    print()
    print(plan.describe([(names, asked, workloads[asked]) for asked, names in cells.items()]))
    return True


def prepare_workload(settings: Settings) -> Workload:
    """Resolve and check the pair, load the prompts and turn them into ids."""
    pair, hashes = _checked_pair(settings.pair, settings.target, settings.draft, settings.dtype, settings.pairs_file)
    demanded = "num_prompts" in settings.given
    prompt_set = prompts.load(settings.prompts, limit=settings.num_prompts if demanded else None)
    if not demanded:
        wanted = settings.num_prompts or PRESETS[settings.preset].num_prompts
        prompt_set = replace(prompt_set, prompts=prompt_set.prompts[:wanted])
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
        model_hashes=hashes,
        prompt_set=prompt_set.name,
        prompts_hash=prompt_set.sha256,
        prompt_format=prompt_format.as_record(),
        prompt_ids=tuple(prompt.ids for prompt in encoded),
        end_token_ids=formatting.end_token_ids(pair),
    )


@functools.cache
def _checked_pair(
    name: str | None, target: str | None, draft: str | None, dtype: str | None, pairs_file: Path | None
) -> tuple[ModelPair, dict[str, str]]:
    """The resolved pair and the hashes of its models, once for all suites."""
    pair = pairs.resolve(name, target=target, draft=draft, dtype=dtype, pairs_file=pairs_file)
    pairs.check_compatible(pair)
    return pair, pairs.model_hashes(pair)


@pytest.fixture(scope="module")
def workload(settings: Settings, request: pytest.FixtureRequest) -> Workload:
    """What every cell of the suite decodes."""
    return request.config.stash[PREPARED].workloads[settings]


@pytest.fixture(scope="module")
def backend(backend_name: str, settings: Settings, workload: Workload) -> Iterator[Backend]:
    """The engine under measurement, loaded once a suite. An engine that is not here is skipped, with the reason."""
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
def suite_run(
    backend: Backend, settings: Settings, workload: Workload, request: pytest.FixtureRequest
) -> Iterator[SuiteRun]:
    """The record of this suite on this backend; written when the suite ends, resumable when it does not."""
    prepared = request.config.stash[PREPARED]
    suite = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    run = SuiteRun(
        suite,
        backend,
        workload=workload,
        settings=settings,
        reporter=prepared.reporter,
        score=certifying_score(backend, workload, settings),
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
