"""The cells of a suite are measured in turn: interleaved, in a seeded order that a resumed run continues."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.measurement import recorded_timer, timing, turns
from bench.measurement.recording import NotMeasured, Recording, Workload
from bench.measurement.suite_run import Declared, SuiteRun
from bench.measurement.turns import Turn
from bench.options.settings import Settings, Stopping
from bench.progress import Meter
from bench.protocols import Capabilities
from bench.records import environment, machine
from bench.records.decoding import DecodeRequest, Generation
from bench.records.runs import Cell, TimedPair
from tests.support.fakes import AsynchronousFake, FakeClock
from tests.support.record_builder import PAIR

NUM_PROMPTS = 6
CELLS = tuple({"temperature": temperature, "rule": "rejection", "num_draft_tokens": 1} for temperature in (0.0, 0.5, 1.0))
WORKLOAD = Workload(
    model_pair=PAIR,
    recorded_pair=PAIR,
    model_hashes={"target": "aa", "draft": "bb"},
    prompt_set="instructions",
    prompts_hash="cc",
    prompt_format={"chat_template": "none", "chat_template_hash": ""},
    prompt_ids=tuple((index,) for index in range(NUM_PROMPTS)),
    end_token_ids=(2,),
)
Fault = Callable[[int, DecodeRequest], None]  # gets the number of the call


class Engine(AsynchronousFake):
    """Calls a function before it decodes, which may raise."""

    def __init__(self, fault: Fault = lambda number, request: None, capabilities: Capabilities | None = None) -> None:
        super().__init__(FakeClock())
        self.fault = fault
        self.capabilities = capabilities or AsynchronousFake.capabilities

    def generate(self, request: DecodeRequest) -> Generation:
        self.fault(len(self.calls), request)
        return super().generate(request)


class Benchmark:
    """Times rounds as pytest-benchmark does."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}
        self.seconds: list[float] = []

    def pedantic(self, call: Callable[[], None], *, rounds: int, iterations: int) -> None:
        for _ in range(rounds):
            start = recorded_timer.timer()
            call()
            self.seconds.append(recorded_timer.timer() - start)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(environment, "capture", lambda device: {"cpu_model": "Example", "device_type": device})
    monkeypatch.setattr(machine, "resident_memory_bytes", lambda: 1)  # what takes time here
    monkeypatch.setattr(machine, "cpu_use", lambda: None)
    temperatures = tuple(cell["temperature"] for cell in CELLS)
    return Settings(preset="smoke", temperatures=temperatures, repeats=2, max_new_tokens=4, results=tmp_path)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Turn]:
    """What the run reports to a coordinator after each round."""
    found: list[Turn] = []
    monkeypatch.setattr(turns, "pass_on", found.append)
    return found


def suite_run(settings: Settings, engine: Engine, cells: Sequence[dict[str, Any]] = CELLS) -> SuiteRun:
    def others(run: SuiteRun) -> Iterator[Cell]:
        for cell in cells:
            with pytest.raises(Declared) as declared:
                run.measure(None, **cell)
            yield declared.value.cell

    meter = Meter("", len(cells) * NUM_PROMPTS * settings.repeats, unit="pairs")
    recording = Recording("temperature_grid", "fake", settings=settings, workloads=(WORKLOAD,), meter=meter)
    return SuiteRun(recording, engine, workload=WORKLOAD, score=None, baselines={}, others=others)


def measure_all(run: SuiteRun, cells: Sequence[dict[str, Any]] = CELLS) -> list[Exception | None]:
    """Measure every cell in its own test, and return what each raised."""
    outcomes: list[Exception | None] = []
    for cell in cells:
        try:
            run.measure(Benchmark(), **cell)
            outcomes.append(None)
        except Exception as error:  # of whatever kind the engine raises
            outcomes.append(error)
    return outcomes


def calls(run: SuiteRun) -> list[DecodeRequest]:
    assert isinstance(run.backend, Engine)
    return run.backend.calls


def visits(run: SuiteRun) -> list[tuple[float, int, int]]:
    """Return temperature, repeat and prompt of every pair, in the order of measurement."""
    found: list[tuple[int, float, TimedPair]] = []
    measured = run.journal.measured
    for cell, pairs in (*measured.pairs.items(), *((cell, record.pairs) for cell, record in measured.finished.items())):
        found += [(pair.visit if pair.visit is not None else -1, cell.temperature, pair) for pair in pairs]
    found.sort(key=lambda each: each[0])
    assert [place for place, _, _ in found] == list(range(len(found)))
    return [(temperature, pair.repeat, pair.prompt_index) for _, temperature, pair in found]


def test_cells_take_turns_on_each_prompt_in_a_random_order(settings: Settings) -> None:
    run = suite_run(settings, Engine())
    assert measure_all(run) == [None] * 3
    places = visits(run)
    rounds = [places[first : first + 3] for first in range(0, len(places), 3)]
    assert len(rounds) == 2 * NUM_PROMPTS
    assert all(len({(repeat, prompt) for _, repeat, prompt in each}) == 1 for each in rounds)
    assert all(sorted(temperature for temperature, _, _ in each) == [0.0, 0.5, 1.0] for each in rounds)
    assert len({tuple(temperature for temperature, _, _ in each) for each in rounds}) > 3  # of the six orders
    assert [prompt for _, _, prompt in places[::3]][:NUM_PROMPTS] != list(range(NUM_PROMPTS))
    assert len(run.journal.measured.baseline) == NUM_PROMPTS
    # The baseline is spread over the run: a prompt of it comes just before the cells on that prompt.
    plain = [place for place, call in enumerate(calls(run)) if call.seed and not call.num_draft_tokens]
    speculative = [place for place, call in enumerate(calls(run)) if call.seed and call.num_draft_tokens]
    assert plain[0] < speculative[0]
    assert sum(place > speculative[0] for place in plain) > len(plain) / 2


def test_the_seed_decides_the_order(settings: Settings) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        own = replace(settings, seed=seed, results=settings.results / str(number))
        run = suite_run(own, Engine())
        assert measure_all(run) == [None] * 3
        found.append(visits(run))
    assert found[0] == found[1] != found[2]


def test_every_cell_is_warmed_up_before_the_first_pair(settings: Settings) -> None:
    run = suite_run(settings, Engine())
    measure_all(run)
    # The seed of a warm-up is 0; that of a measured call is derived.
    speculative = [(call.seed == 0, call.temperature) for call in calls(run) if call.num_draft_tokens]
    first_pair = next(place for place, (warming, _) in enumerate(speculative) if not warming)
    warmed = Counter(temperature for _, temperature in speculative[:first_pair])
    assert set(warmed) == {0.0, 0.5, 1.0}
    assert min(warmed.values()) >= 2 * timing.WARMUP_WINDOW
    assert not any(warming for warming, _ in speculative[first_pair:])


def test_an_error_of_the_engine_is_recorded_for_its_cell_and_raised_in_its_test(settings: Settings) -> None:
    def fault(number: int, request: DecodeRequest) -> None:
        if request.temperature == 0.5 and request.num_draft_tokens and request.seed != 0:
            raise KeyError("lost")

    run = suite_run(settings, Engine(fault))
    first, second, third = measure_all(run)
    assert isinstance(second, KeyError)
    assert (first, third) == (None, None)
    records = {record.cell.temperature: record for record in run.journal.measured.finished.values()}
    assert records[0.5].error == "KeyError: 'lost'"
    assert [len(records[temperature].pairs) for temperature in (0.0, 0.5, 1.0)] == [12, 0, 12]
    assert run.meter.done == run.meter.total


def test_a_failure_in_the_baseline_ends_one_cell_and_the_next_one_measures_it(settings: Settings) -> None:
    failures = iter([RuntimeError("not ready")])

    def fault(number: int, request: DecodeRequest) -> None:
        for failure in failures:
            raise failure

    run = suite_run(settings, Engine(fault))
    first, *others = measure_all(run)
    assert isinstance(first, RuntimeError)
    assert others == [None, None]
    assert len(run.journal.measured.baseline) == NUM_PROMPTS


def interrupted(settings: Settings, *, at_call: int) -> None:
    def fault(number: int, request: DecodeRequest) -> None:
        if number == at_call:
            raise KeyboardInterrupt

    run = suite_run(settings, Engine(fault))
    with pytest.raises(KeyboardInterrupt):
        run.measure(Benchmark(), **CELLS[0])
    run.journal.close()


@pytest.mark.parametrize("after_pairs", [0, 1, 7, 20])
def test_a_resumed_run_continues_the_same_order_and_reports_the_same_places(
    settings: Settings, reported: list[Turn], after_pairs: int
) -> None:
    whole = suite_run(settings, Engine(), CELLS)
    assert measure_all(whole) == [None] * 3
    expected, turns_of_whole = visits(whole), [(turn.label, turn.place) for turn in reported]
    whole.journal.discard()
    reported.clear()
    warmup_and_baseline = len(calls(whole)) - 2 * len(expected)
    interrupted(settings, at_call=warmup_and_baseline + 2 * after_pairs + 1)
    run = suite_run(replace(settings, resume=True), Engine())
    assert measure_all(run) == [None] * 3
    assert visits(run) == expected
    assert [(turn.label, turn.place) for turn in reported] == turns_of_whole
    assert run.meter.done == run.meter.total


def test_a_cell_that_one_side_cannot_decode_does_not_shift_the_places_of_the_others(
    settings: Settings, reported: list[Turn]
) -> None:
    measure_all(suite_run(settings, Engine()))
    both = {(turn.label, turn.place) for turn in reported}
    reported.clear()
    weaker = Engine(capabilities=Capabilities(rules=frozenset({"rejection"}), max_temperature=0.5))
    run = suite_run(replace(settings, results=settings.results / "weaker"), weaker)
    *_, hottest = measure_all(run)
    assert isinstance(hottest, NotMeasured)
    pairs = [turn for turn in reported if not turn.label.endswith("baseline")]
    assert len(pairs) == 2 * 2 * NUM_PROMPTS
    assert {(turn.label, turn.place) for turn in pairs} < both
    assert run.meter.done == run.meter.total


def test_a_cell_that_has_enough_leaves_the_rotation(settings: Settings) -> None:
    run = suite_run(replace(settings, stopping=Stopping(budget_s=0.0)), Engine())
    assert measure_all(run) == [None] * 3
    assert [len(record.pairs) for record in run.journal.measured.finished.values()] == [1, 1, 1]
    assert {record.stopped for record in run.journal.measured.finished.values()} == {"time"}
    assert run.meter.done == run.meter.total


@pytest.mark.parametrize("num_resident", [None, 2, 1])
def test_an_engine_that_holds_few_draft_lengths_is_not_made_to_reload_them_on_every_prompt(
    settings: Settings, num_resident: int | None
) -> None:
    cells = [{**cell, "num_draft_tokens": k} for cell in CELLS for k in (1, 2, 3)]
    able = Capabilities(rules=frozenset({"rejection"}), num_resident=num_resident)
    run = suite_run(settings, Engine(capabilities=able), cells)
    assert measure_all(run, cells) == [None] * 9
    lengths = [call.num_draft_tokens for call in calls(run) if call.num_draft_tokens]
    loads, held = 0, list[int]()
    for k in lengths:
        if k not in held:
            loads += 1
            held = [*held, k][-(num_resident or 3) :]
    assert loads == 3


def test_pytest_benchmark_gets_the_recorded_seconds_and_afterwards_the_real_clock(settings: Settings) -> None:
    run, benchmark = suite_run(settings, Engine()), Benchmark()
    record = run.measure(benchmark, **CELLS[1])
    assert benchmark.seconds == [pair.sd.seconds for pair in record.pairs]
    assert benchmark.extra_info["temperature"] == 0.5
    assert recorded_timer.timer() > 0
    with pytest.raises(NotMeasured, match="measured by another test"):
        run.measure(benchmark, **CELLS[1])


def test_garbage_is_frozen_while_cells_are_measured(settings: Settings) -> None:
    frozen: list[tuple[bool, int]] = []
    run = suite_run(settings, Engine(lambda number, request: frozen.append((gc.isenabled(), gc.get_freeze_count()))))
    measure_all(run)
    assert frozen
    assert not any(collecting for collecting, _ in frozen)
    assert all(count > 0 for _, count in frozen)
    assert gc.get_freeze_count() == 0


def test_a_cell_that_nobody_declared_is_measured_alone(settings: Settings) -> None:
    run = suite_run(settings, Engine())
    measure_all(run)
    assert run.measure(Benchmark(), temperature=2.0, rule="rejection", num_draft_tokens=1).cell.temperature == 2.0
    assert [temperature for temperature, _, _ in visits(run)][-12:] == [2.0] * 12


def test_declaring_a_cell_measures_nothing(settings: Settings) -> None:
    run = suite_run(settings, Engine())
    with pytest.raises(Declared):
        run.measure(None, **CELLS[0])
    assert not calls(run)
