"""The pytest plugin: options, parametrisation over cells, the machine in pytest-benchmark's files, the closing table.

A test that asks for `suite_run` or `workload` is a suite. It may also ask for `temperature`, `draft_temperature`, `rule`,
`num_draft_tokens` and `concurrency`, whose values the options decide; where these are silent, its module's `DEFAULTS`, a
preset's values by field of `Settings`. Several drafts or prompt sets run one after the other, and share a record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from bench.options.arguments import add_options, from_options
from bench.options.settings import Settings
from bench.records.runs import RunRecord

SETTINGS = pytest.StashKey[Settings]()
RECORD_FILES = pytest.StashKey[list[Path]]()

# Fixture name -> the settings field that lists its values, and the scope over which one value is kept.
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
VARIANTS = (
    "inflation",
    "draft",
    "prompt_source",
)  # fixtures below every suite; in test ids only where there are several


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser.getgroup("specheat", "speculative decoding: gamma, alpha and temperature"))


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark asks for the machine while it is configured
def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[SETTINGS] = from_options(config.option)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[RECORD_FILES] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"suite_run", "workload"} & set(metafunc.fixturenames):
        return  # somebody else's test, whose fixtures may have the same names
    settings = settings_of(metafunc.config, metafunc.module)
    for fixture, (field, scope) in PARAMETERS.items():
        values = getattr(settings, field)
        if fixture in metafunc.fixturenames and not (fixture in VARIANTS and len(values) == 1):
            ids = [_test_id(fixture, value) for value in values]
            metafunc.parametrize(fixture, values, ids=ids, scope=scope, indirect=fixture in VARIANTS)


def _test_id(fixture: str, value: object) -> str:
    prefix = {"temperature": "T", "draft_temperature": "qT", "num_draft_tokens": "k", "concurrency": "c"}.get(
        fixture, ""
    )
    if fixture == "inflation":
        return "as it is" if value is None else f"inflated {value}"
    if fixture in VARIANTS:
        return Path(str(value)).name
    if value is None:
        return f"{prefix}=T"
    return f"{prefix}{value:g}" if isinstance(value, float | int) else f"{prefix}{value}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """pytest-benchmark's own machine id knows neither threads nor a GPU."""
    from bench.records import environment

    env = environment.capture(config.stash[SETTINGS].device)
    machine_info["specheat"] = {key: env[key] for key in environment.MACHINE_KEYS if key in env}


def settings_of(config: pytest.Config, suite: object) -> Settings:
    """The run's options, and where they are silent what the suite's module says in `DEFAULTS`."""
    return config.stash[SETTINGS].with_defaults(getattr(suite, "DEFAULTS", {}))


@pytest.fixture(scope="module")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The suite's validated options."""
    return settings_of(request.config, request.module)


@pytest.fixture(scope="module")
def inflation(request: pytest.FixtureRequest, settings: Settings) -> str | None:
    """The shape to which the target of the cells that run now is inflated; None: it is as it is."""
    found: str | None = getattr(request, "param", settings.inflations[0])
    return found


@pytest.fixture(scope="module")
def draft(request: pytest.FixtureRequest, settings: Settings) -> str | None:
    """The draft of the cells that run now; None: the pair's own."""
    found: str | None = getattr(request, "param", settings.drafts[0])
    return found


@pytest.fixture(scope="module")
def prompt_source(request: pytest.FixtureRequest, settings: Settings) -> str:
    """Where the prompts of the cells that run now come from."""
    found: str = getattr(request, "param", settings.prompts[0])
    return found


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of what this run measured, and where it lies."""
    files = config.stash.get(RECORD_FILES, [])
    if not files:
        return
    from bench.records.files import load_run
    from bench.reporting import suite_page

    suites: dict[str, dict[str, RunRecord]] = {}
    for file in files:
        run = load_run(file)
        suites.setdefault(run.suite, {})[str(file)] = run
    for suite, runs in suites.items():
        if len({cell.cell.backend for run in runs.values() for cell in run.cells}) > 1:
            terminalreporter.section(f"specheat: {suite} side by side")
            terminalreporter.write_line(suite_page.terminal_comparison(runs))
        for path, run in runs.items():
            terminalreporter.section(f"specheat: {path}")
            terminalreporter.write_line(suite_page.terminal_table(run))
