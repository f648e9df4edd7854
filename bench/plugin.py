"""The pytest plugin: options, parametrisation over cells, the fixtures of suites, `--plan`, `--resume`, and the closing table.

A suite is a test that requests `measure`, `suite_run` or `workload`. It may also request the fixtures of PARAMETERS. Their
values come from the options, or else from `DEFAULTS` of its module: a preset's values by field of `Settings`. Several drafts or
prompt sets run one after the other and share a record. A conftest.py beside the suites provides `Engines`.

The first test of a suite on an engine measures the cells of all tests, in turn. To learn these cells, it calls the other tests,
which end where they call `measure`. So what a test does before must have no side effects.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from bench.errors import BAD_INPUT, BackendUnavailable
from bench.measurement import recorded_timer
from bench.measurement.recording import NotCertified, NotMeasured, Recording, Workload
from bench.measurement.session import Session, SessionLog, Variant
from bench.options.arguments import add_options, from_options
from bench.options.settings import Settings, Stopping
from bench.progress import Meter
from bench.protocols import Backend
from bench.records import environment, files, machine_lock, storage
from bench.records.runs import Cell, CellRecord, RunRecord
from bench.registry import backend_factory

# pytest loads this module in every project, so what needs numpy or scipy is imported where a suite uses it.
if TYPE_CHECKING:
    from bench.measurement.suite_run import Score, SuiteRun


@dataclass(frozen=True, slots=True)
class Engines:
    """What a conftest.py beside the suites puts into `config.stash[ENGINES]`: this package does not load models."""

    # The workload of each variant; or why models that the suite, not the user, chose are missing.
    workloads: Callable[[Settings], Mapping[Variant, Workload] | str]
    # Options that are right for the pair of the settings, by field.
    defaults: Callable[[Settings], Mapping[str, Any]]
    # What scores the generations of a cell for its certificate.
    scorer: Callable[[Backend, Workload, Settings], Score]


ENGINES = pytest.StashKey[Engines]()
SETTINGS = pytest.StashKey[Settings]()
SESSION = pytest.StashKey[Session]()
RECORD_FILES = pytest.StashKey[list[Path]]()

# Fixture -> the field of Settings that lists its values, and the scope over which one value is kept.
PARAMETERS: dict[str, tuple[str, Literal["module", "function"]]] = {
    "backend_name": ("backends", "module"),  # one model pair in memory at a time
    "inflation": ("inflations", "module"),
    "draft": ("drafts", "module"),
    "prompt_source": ("prompts", "module"),
    "temperature": ("temperatures", "function"),
    "draft_temperature": ("draft_temperatures", "function"),
    "rule": ("rules", "function"),
    "num_draft_tokens": ("num_draft_tokens", "function"),
    "concurrency": ("concurrency", "function"),
}
# Every suite depends on these, in the order of Variant's fields. Test ids contain them only where there are several values.
VARIANTS = ("inflation", "draft", "prompt_source")
PILOT_CELL_S = 30.0
NEXT = (
    "  every suite:                        make suites",
    "  which draft length is best here:    $BINpytest --benchmark-only suites/test_draft_length.py",
    "  what disturbs this machine:         $BINspecheat doctor",
)
ID_PREFIXES = {"temperature": "T", "draft_temperature": "qT", "num_draft_tokens": "k", "concurrency": "c"}


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser.getgroup("specheat", "speculative decoding: gamma, alpha and temperature"))


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark reads the machine while it is configured
def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[SETTINGS] = from_options(config.option)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[RECORD_FILES] = []


def settings_of(config: pytest.Config, suite: object) -> Settings:
    """Return the run's options, with the defaults of the suite's module and then of the pair where no option was given."""
    own = config.stash[SETTINGS].with_defaults(getattr(suite, "DEFAULTS", {}))
    engines = config.stash.get(ENGINES, None)
    return own if engines is None else own.with_pair_defaults(engines.defaults(own))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not _is_suite(metafunc):
        return  # a test of another project, whose fixtures may have the same names
    settings = settings_of(metafunc.config, metafunc.module)
    for fixture, (field, scope) in PARAMETERS.items():
        if fixture in metafunc.fixturenames:
            values = getattr(settings, field)
            hidden = fixture in VARIANTS and len(values) == 1
            ids = [pytest.HIDDEN_PARAM] if hidden else [_test_id(fixture, value) for value in values]
            metafunc.parametrize(fixture, values, ids=ids, scope=scope)


def _is_suite(test: Any) -> bool:
    return not {"suite_run", "workload"}.isdisjoint(getattr(test, "fixturenames", ()))


def _suites(items: Iterable[pytest.Item]) -> list[pytest.Function]:
    return [item for item in items if isinstance(item, pytest.Function) and _is_suite(item)]


def _test_id(fixture: str, value: object) -> str:
    if fixture == "inflation":
        return "as it is" if value is None else f"inflated {value}"
    if fixture in VARIANTS:
        return Path(str(value)).name
    text = "=T" if value is None else f"{value:g}" if isinstance(value, float | int) else str(value)
    return f"{ID_PREFIXES.get(fixture, '')}{text}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add what pytest-benchmark's machine id lacks, such as threads and the GPU."""
    env = environment.capture(config.stash[SETTINGS].device)
    machine_info["specheat"] = {key: env[key] for key in environment.MACHINE_KEYS if key in env}


@pytest.hookimpl(trylast=True)  # after -k and -m have deselected tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the input once the cells are known, so that bad input ends the run before anything is measured."""
    settings = config.stash[SETTINGS]
    if len(settings.backends) == 1:
        alone = [item for item in items if item.get_closest_marker("compares_backends")]
        config.hook.pytest_deselected(items=alone)
        items[:] = [item for item in items if item not in alone]
    suites = {item: settings_of(config, item.module) for item in _suites(items)}
    if config.option.collectonly or not suites:
        return
    try:
        for name in settings.backends:
            backend_factory(name)
        if settings.pilot or not settings.plan:
            held = ExitStack()
            config.add_cleanup(held.close)
            held.enter_context(machine_lock.measuring(shared=settings.shared_machine))
        answers = {own: config.stash[ENGINES].workloads(own) for own in dict.fromkeys(suites.values())}
        if not settings.plan:
            storage.check_writable(settings.results)
    except machine_lock.MachineInUse as error:
        pytest.exit(str(error), returncode=BAD_INPUT)
    except (ValueError, BackendUnavailable, OSError) as error:
        raise pytest.UsageError(str(error)) from None
    workloads = {own: answer for own, answer in answers.items() if not isinstance(answer, str)}
    log, total, other = SessionLog(settings.results, config.invocation_params.args, resume=settings.resume), 0, 0.0
    baselines: dict[tuple[object, ...], float] = {}  # of each suite and engine, in pairs
    for item, own in suites.items():
        if item.nodeid in log.finished:
            item.add_marker(pytest.mark.skip(reason="measured before the interruption"))
        elif own not in workloads:
            item.add_marker(pytest.mark.skip(reason=str(answers[own])))
        elif "suite_run" in item.fixturenames:
            from bench.measurement.work import SCORING_PER_PAIR, baseline_work

            _repeat_seconds(item)
            num_prompts = len(workloads[own][_variant(item)].prompt_ids)
            total += num_prompts * own.repeats
            if not own.pairs_only:
                other += SCORING_PER_PAIR * num_prompts * own.repeats
                suite = (item.module, item.callspec.params.get("backend_name"))
                baselines.setdefault(suite, baseline_work(own, num_prompts))
    capture = config.pluginmanager.getplugin("capturemanager")  # None with -p no:capture
    uncaptured = capture.global_and_fixture_disabled if capture else nullcontext
    config.stash[SESSION] = Session(
        workloads, Meter("", total, unit="pairs", other=other + sum(baselines.values()), uncaptured=uncaptured), log
    )


def _repeat_seconds(item: pytest.Function) -> None:
    """Let pytest-benchmark's fixture of this test repeat what was measured, whatever timer was requested."""
    marker = item.get_closest_marker("benchmark")
    options = {**(marker.kwargs if marker else {}), "timer": recorded_timer.timer}
    item.add_marker(pytest.mark.benchmark(**options), append=False)


def _variant(item: pytest.Function) -> Variant:
    chosen: Mapping[str, Any] = item.callspec.params
    return Variant(*(chosen[fixture] for fixture in VARIANTS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --plan, print what would be run instead of running it."""
    config = session.config
    if not config.stash[SETTINGS].plan or SESSION not in config.stash:
        return None
    from bench.measurement import plan

    shared = config.stash[SESSION]
    workloads = shared.workloads
    cells: dict[tuple[Settings, Variant], list[str]] = {}
    for item in _suites(session.items):
        if (own := settings_of(config, item.module)) in workloads:
            cells.setdefault((own, _variant(item)), []).append(item.nodeid)
    if config.stash[SETTINGS].pilot and cells:
        _pilot(shared, *next(iter(cells)))
    described = plan.describe([(names, own, workloads[own][variant]) for (own, variant), names in cells.items()])
    print(f"\n{described}")
    return True


def _pilot(shared: Session, settings: Settings, variant: Variant) -> None:
    """Measure a minute with the first engine, and keep the record for the plan."""
    from bench.measurement.suite_run import SuiteRun

    name, workload = settings.backends[0], shared.workloads[settings][variant]
    own = replace(settings, pairs_only=True, instrument_every=1, resume=False, stopping=Stopping(budget_s=PILOT_CELL_S))
    shared.meter.total = 2 * len(workload.prompt_ids) * own.repeats
    recording = Recording("pilot", name, settings=own, workloads=(workload,), meter=shared.meter)
    try:
        engine = backend_factory(name)(workload.model_pair, device=own.device, options=dict(own.options_of(name)))
    except (BackendUnavailable, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    with closing(engine):
        SuiteRun(recording, engine, workload=workload, score=None, baselines={}).measure_pilot()
        recording.leave(engine)
    recording.finish()


@pytest.hookimpl(trylast=True)  # after the fixtures of an interrupted suite
def pytest_sessionfinish(session: pytest.Session) -> None:
    if shared := session.config.stash.get(SESSION, None):
        shared.close()
        if not _interrupted(session) and not session.config.stash[SETTINGS].plan:
            shared.log.end()


def _interrupted(session: pytest.Session) -> bool:
    return bool(session.exitstatus == pytest.ExitCode.INTERRUPTED or session.shouldstop or session.shouldfail)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a cell that the engine cannot decode, or that the resumed run had finished; fail where it is not certified."""
    try:
        yield
    except NotMeasured as reason:
        pytest.skip(str(reason))
    except NotCertified as reason:
        pytest.fail(f"{reason}; specheat certify --record FILE does it later", pytrace=False)
    # Tests with `suite_run` share a record; `recording` notes them once that is written.
    if _is_suite(item) and "suite_run" not in getattr(item, "fixturenames", ()):
        item.config.stash[SESSION].log.add([item.nodeid])


@pytest.fixture(scope="module")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The suite's validated options."""
    return settings_of(request.config, request.module)


@pytest.fixture(scope="module")
def workload(
    settings: Settings, inflation: str | None, draft: str | None, prompt_source: str, request: pytest.FixtureRequest
) -> Workload:
    """The models and prompts that are measured now."""
    return request.config.stash[SESSION].workloads[settings][Variant(inflation, draft, prompt_source)]


@pytest.fixture(scope="module")
def backend(backend_name: str, settings: Settings, workload: Workload, request: pytest.FixtureRequest) -> Backend:
    """The engine under measurement. Where it is not available, its tests are skipped with the reason."""
    pair, options = workload.model_pair, settings.options_of(backend_name)

    def load() -> Backend:
        try:
            return backend_factory(backend_name)(pair, device=settings.device, options=dict(options))
        except BackendUnavailable as reason:
            pytest.skip(str(reason))
        except (ValueError, OSError) as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

    return request.config.stash[SESSION].engine((backend_name, pair, settings.device, options), load)


@pytest.fixture(scope="module")
def recording(
    backend_name: str, inflation: str | None, settings: Settings, request: pytest.FixtureRequest
) -> Iterator[Recording]:
    """The record of this suite on this backend and target; written when the suite ends, resumable when interrupted."""
    session = request.config.stash[SESSION]
    workloads = tuple(each for variant, each in session.workloads[settings].items() if variant.inflation == inflation)
    made = Recording(suite_name(request.module), backend_name, settings=settings, workloads=workloads, meter=session.meter)
    yield made
    session.meter.close()
    if _interrupted(request.session):
        session.meter.note("interrupted: what was measured is kept; the same command with --resume goes on from there")
    elif (path := made.finish()) is not None:
        request.config.stash[RECORD_FILES].append(path)
        session.log.add(
            item.nodeid
            for item in _suites(request.session.items)
            if (item.module, item.callspec.params.get("backend_name")) == (request.module, backend_name)
            and item.callspec.params["inflation"] == inflation
        )


def suite_name(module: Any) -> str:
    """Return the name of a suite's module without the test_ in front."""
    return str(module.__name__).rpartition(".")[2].removeprefix("test_")


@pytest.fixture(scope="module")
def suite_run(recording: Recording, backend: Backend, workload: Workload, request: pytest.FixtureRequest) -> Iterator[SuiteRun]:
    """The measuring side of this suite on one draft and one set of prompts."""
    from bench.measurement.suite_run import SuiteRun

    settings, session = recording.settings, request.config.stash[SESSION]
    score = None if settings.pairs_only else request.config.stash[ENGINES].scorer(backend, workload, settings)
    others = partial(_declared_cells, request)
    yield SuiteRun(recording, backend, workload=workload, score=score, baselines=session.baselines, others=others)
    recording.leave(backend)


def _declared_cells(request: pytest.FixtureRequest, run: SuiteRun) -> Iterator[Cell]:
    """Yield the cells that the tests of this suite will measure on the same engine, models and prompts."""
    from bench.measurement.suite_run import Declared

    kept = [fixture for fixture, (_, scope) in PARAMETERS.items() if scope == "module"]
    same = {fixture: request.getfixturevalue(fixture) for fixture in kept}
    for item in _suites(request.session.items):
        marks = {mark.name for mark in item.iter_markers()}
        if item.module is not request.module or "suite_run" not in item.fixturenames or marks & {"skip", "skipif"}:
            continue
        params: Mapping[str, Any] = item.callspec.params
        if {fixture: params[fixture] for fixture in kept} != same:
            continue
        own = {"suite_run": run, "benchmark": None, "measure": partial(_measure, run, None, params), **params}
        try:
            names = inspect.signature(item.obj).parameters
            item.obj(**{name: own[name] if name in own else request.getfixturevalue(name) for name in names})
        except Declared as declared:
            yield declared.cell
        except (pytest.skip.Exception, pytest.fail.Exception, Exception):
            pass  # it will happen again when it is the turn of that test


@pytest.fixture
def measure(
    suite_run: SuiteRun, benchmark: Any, temperature: float, rule: str, num_draft_tokens: int
) -> Callable[..., CellRecord]:
    """Measures this test's cell; what a suite varies besides temperature, rule and draft length is passed by name."""
    values = {"temperature": temperature, "rule": rule, "num_draft_tokens": num_draft_tokens}
    return partial(_measure, suite_run, benchmark, values)


def _measure(run: SuiteRun, benchmark: Any, values: Mapping[str, Any], **further: Any) -> CellRecord:
    names = ("temperature", "rule", "num_draft_tokens")
    return run.measure(benchmark, **{name: values[name] for name in names}, **further)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a short table and a sentence for each suite, and where the rest is."""
    paths = config.stash.get(RECORD_FILES, [])
    if not paths:
        return
    from bench.reporting.closing import texts_of

    suites: dict[str, dict[str, RunRecord]] = {}
    for path in paths:
        run = files.load_run(path)
        suites.setdefault(run.suite, {})[str(path)] = run
    write = terminalreporter.write_line
    for runs in suites.values():
        for title, text in texts_of(runs):
            terminalreporter.section(f"specheat: {title}")
            write(text)
    settings = config.stash[SETTINGS]
    terminalreporter.section("specheat: where the rest is")
    write(f"records: {', '.join(map(str, paths))}")
    if settings.page:
        write(f"page of all numbers: {_write_page(settings.results)}")
    write("\n".join(("next:", *(line.replace("$BIN", _programs()) for line in NEXT))))


def _programs() -> str:
    """Return the folder of this Python's programs, if it lies in the present one, as an environment that is not active does."""
    folder = Path(sys.prefix, "bin")
    return f"{folder.relative_to(Path.cwd())}/" if folder.is_relative_to(Path.cwd()) else ""


def _write_page(results: Path) -> Path | str:
    """Write the page of a folder of results; return its path, or why there is none."""
    from bench.reporting.html.page import page

    path = results / "report.html"
    try:
        path.write_text(page(results), encoding="utf-8")
    except Exception as error:  # the records are safe, whatever happens here
        return f"none, {error}"
    return path
