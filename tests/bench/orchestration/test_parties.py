"""Turns: which process goes when, that the others stand still, and that none is left. The processes are real, and small."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.measurement import turns
from bench.measurement.turns import Pauses, Turn
from bench.orchestration.parties import Party, ended_afterwards, order_of_round, take_turns
from tests.support import ROOT
from tests.support.tiny_models import HEED_CTRL_C

MEASURE = """
import sys
from bench.measurement.turns import Turn, pass_on, wait_for_others
wait_for_others()
name, first, last, diary = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for index in range(first, last):
    with open(diary, "a") as file:
        print(name, index, file=file)
    pass_on(Turn("cell", index + 1, 0, last))
"""
WITH_A_WORKER = """
import subprocess, sys
from bench.measurement.turns import Turn, pass_on
worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
for index in range(4):
    pass_on(Turn("cell", index + 1, 0, 4))
worker.kill()
"""
CALLS = """
import json, sys, time
from bench.measurement.turns import Turn, pass_on, side_by_side
rounds = []
for index in range(int(sys.argv[2])):
    moments = []
    with side_by_side() as pauses:
        start = time.perf_counter()
        while sum(moments[i + 1] - moments[i] < 0.001 for i in range(len(moments) - 1)) < 2000:
            moments.append(time.perf_counter())
            time.sleep(0.0001)
        end = time.perf_counter()
    rounds.append((start, end, pauses.intervals, moments))
    pass_on(Turn("cell", index + 1, 0, 2))
with open(sys.argv[1], "w") as file:
    json.dump(rounds, file)
"""
FAILS_IN_A_CALL = """
from bench.measurement.turns import side_by_side
try:
    with side_by_side():
        raise RuntimeError("an engine's error")
except RuntimeError:
    pass
"""
KEEPS_ON_CTRL_C = """
import pathlib, sys
from bench.measurement.turns import Turn, pass_on
try:
    for index in range(100):
        pass_on(Turn("cell", index + 1, 0, 100))
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1]).write_text("kept")
"""
DEAF = """
import signal, time
from bench.measurement.turns import Turn, pass_on
signal.signal(signal.SIGINT, signal.SIG_IGN)
pass_on(Turn("cell", 1, 0, 1))
time.sleep(600)
"""
COORDINATES = """
import os, sys
from pathlib import Path
from bench.orchestration.parties import Party, take_turns
code = "from bench.measurement.turns import *\\nfor i in range(10**6): pass_on(Turn('', i, 0, 1))"
command = [sys.executable, "-c", code]
parties = [Party(n, command, cwd=Path.cwd(), env=os.environ, log=Path(sys.argv[1], n)) for n in "ab"]
for number, _ in enumerate(take_turns(parties, seed=0)):
    if number == 10:
        print(*(party.process.pid for party in parties), flush=True)
"""


@pytest.fixture
def party(tmp_path: Path) -> Callable[..., Party]:
    def make(name: str, code: str, *arguments: object) -> Party:
        command = [*HEED_CTRL_C, sys.executable, "-c", code, *map(str, arguments)]
        return Party(name, command, cwd=ROOT, env=os.environ, log=tmp_path / f"{name}.log")

    return make


def diary_of(parties: list[Party], diary: Path, *, seed: int = 0) -> list[str]:
    with ended_afterwards(parties):
        for one, finished in take_turns(parties, seed=seed):
            assert finished is not None or one.status == 0, one.log.read_text()
    return diary.read_text().splitlines()


def test_two_sides_alternate_who_goes_first() -> None:
    orders = [order_of_round(index, 2, seed=3) for index in range(6)]
    assert orders[::2] == [orders[0]] * 3
    assert orders[1::2] == [orders[0][::-1]] * 3
    starts = {order_of_round(0, 2, seed=seed) for seed in range(20)}
    assert starts == {(0, 1), (1, 0)}


@pytest.mark.parametrize("num_parties", [2, 3, 4])
def test_every_side_has_every_place_equally_often(num_parties: int) -> None:
    orders = [order_of_round(index, num_parties, seed=1) for index in range(2 * num_parties)]
    assert all(sorted(order) == list(range(num_parties)) for order in orders)
    for place in range(num_parties):
        assert set(Counter(order[place] for order in orders).values()) == {2}
    # None always follows the same one.
    neighbours = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert neighbours[0, 1] == neighbours[1, 0] or num_parties == 4


def test_a_round_of_each_stands_beside_that_of_the_other(party: Callable[..., Party], tmp_path: Path) -> None:
    parties = [party(name, MEASURE, name, 0, 6, tmp_path / "diary") for name in "ab"]
    lines = diary_of(parties, tmp_path / "diary")
    assert [line.split()[1] for line in lines] == [str(index) for index in range(6) for _ in "ab"]
    names = "".join(line[0] for line in lines)
    assert names in ("abba" * 3, "baab" * 3)


def test_who_is_behind_after_an_interruption_catches_up_first(party: Callable[..., Party], tmp_path: Path) -> None:
    parties = [party(name, MEASURE, name, start, 6, tmp_path / "diary") for name, start in (("a", 3), ("b", 1))]
    lines = diary_of(parties, tmp_path / "diary")
    assert sorted(lines[:4]) == ["a 3", "b 1", "b 2", "b 3"]
    assert [line.split()[1] for line in lines[4:]] == ["4", "4", "5", "5"]


def test_who_has_fewer_rounds_leaves_the_turns_to_the_others(party: Callable[..., Party], tmp_path: Path) -> None:
    parties = [party(name, MEASURE, name, 0, last, tmp_path / "diary") for name, last in (("a", 1), ("b", 4), ("c", 3))]
    lines = diary_of(parties, tmp_path / "diary")
    assert Counter(line[0] for line in lines) == {"a": 1, "b": 4, "c": 3}
    assert lines[-1] == "b 3"


def test_who_waits_stands_still_with_all_below_it(party: Callable[..., Party]) -> None:
    parties = [party(name, WITH_A_WORKER) for name in "ab"]
    seen = 0
    with ended_afterwards(parties):
        for working, _ in take_turns(parties, seed=0):
            (waiting,) = (one for one in parties if one is not working)
            if waiting.process is not None and waiting.status is None and working.status is None:
                this = psutil.Process(waiting.process.pid)
                (worker,) = this.children()
                # What is told to stop does so a moment later.
                wait_for(lambda one=this: one.status() == psutil.STATUS_STOPPED)  # type: ignore[misc]
                wait_for(lambda one=worker: one.status() == psutil.STATUS_STOPPED)  # type: ignore[misc]
                seen += 1
    assert seen >= 3
    assert [one.status for one in parties] == [0, 0]


Calls = list[tuple[float, float, list[tuple[float, float]], list[float]]]


def calls_of(parties: list[Party], files: list[Path], *, slice_s: float) -> list[Calls]:
    with ended_afterwards(parties):
        for one, finished in take_turns(parties, seed=0, slice_s=slice_s):
            assert finished is not None or one.status == 0, one.log.read_text()
    return [json.loads(file.read_text()) for file in files]


def test_calls_are_made_in_slices_and_each_knows_when_it_stood_still(party: Callable[..., Party], tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.json" for name in "ab"]
    sides = calls_of([party(file.stem, CALLS, file, 2) for file in files], files, slice_s=0.02)
    for one, other in zip(*sides, strict=True):
        assert min(len(one[2]), len(other[2])) >= 4
        for (start, end, pauses, moments), (*_, others_moments) in ((one, other), (other, one)):
            stopped = Pauses(tuple((first, last) for first, last in pauses))
            assert not any(first < moment < last for first, last in pauses for moment in moments)
            # Whatever the other did in the meantime it did in these pauses.
            meanwhile = [moment for moment in others_moments if start < moment < end]
            assert meanwhile
            assert all(any(first <= moment <= last for first, last in pauses) for moment in meanwhile)
            assert 0 < stopped.between(start, end) < end - start
            assert stopped.between(start, start) == 0


def test_slices_of_no_length_are_whole_calls(party: Callable[..., Party], tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.json" for name in "ab"]
    sides = calls_of([party(file.stem, CALLS, file, 2) for file in files], files, slice_s=0)
    for one, other in zip(*sides, strict=True):
        first, second = sorted((one, other))
        assert first[1] <= second[0]
        for start, end, pauses, _ in (first, second):
            assert Pauses(tuple((start, end) for start, end in pauses)).between(start, end) == 0


def test_a_call_that_fails_or_has_no_counterpart_holds_nobody_up(party: Callable[..., Party], tmp_path: Path) -> None:
    files = [tmp_path / "b.json"]
    (calls,) = calls_of([party("a", FAILS_IN_A_CALL), party("b", CALLS, *files, 2)], files, slice_s=0.02)
    assert len(calls) == 2


def test_a_call_alone_is_never_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(turns.VARIABLE, raising=False)
    with turns.side_by_side() as pauses:
        pass
    assert pauses.between(0.0, 1e9) == 0.0


def test_a_crash_releases_the_turn_and_has_a_status(party: Callable[..., Party], tmp_path: Path) -> None:
    parties = [party("a", MEASURE, "a", 0, 3, tmp_path / "diary"), party("b", "import os; os.kill(os.getpid(), 9)")]
    ended = {}
    with ended_afterwards(parties):
        for one, finished in take_turns(parties, seed=0):
            if finished is None:
                ended[one.name] = one.status
    assert ended == {"a": 0, "b": -signal.SIGKILL}


def test_who_is_killed_while_it_waits_has_ended(party: Callable[..., Party], tmp_path: Path) -> None:
    parties = [party(name, MEASURE, name, 0, 50, tmp_path / "diary") for name in "ab"]
    with ended_afterwards(parties):
        for number, (working, _) in enumerate(take_turns(parties, seed=0)):
            if number == 4:
                (waiting,) = (one for one in parties if one is not working)
                waiting.kill()
    assert sorted(str(one.status) for one in parties) == ["-9", "0"]


def test_an_interruption_reaches_who_waits_and_who_works(party: Callable[..., Party], tmp_path: Path) -> None:
    parties = [party(name, KEEPS_ON_CTRL_C, tmp_path / f"{name}.kept") for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        interrupted_after(5, parties)
    assert [(tmp_path / f"{name}.kept").read_text() for name in "ab"] == ["kept", "kept"]
    assert all(one.status is not None for one in parties)


def interrupted_after(num_rounds: int, parties: list[Party]) -> None:
    with ended_afterwards(parties):
        for number, _ in enumerate(take_turns(parties, seed=0)):
            if number == num_rounds:
                raise KeyboardInterrupt


def test_who_does_not_heed_an_interruption_is_killed(party: Callable[..., Party]) -> None:
    deaf = party("deaf", DEAF)
    with ended_afterwards([deaf], grace_s=0.3):
        deaf.take_turn()
    assert deaf.status == -signal.SIGKILL


def test_nobody_stays_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    coordinator = subprocess.Popen(
        [sys.executable, "-c", COORDINATES, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert coordinator.stdout is not None
    processes = [psutil.Process(int(word)) for word in coordinator.stdout.readline().split()]
    assert all(process.is_running() for process in processes)
    assert len(processes) == 2
    coordinator.kill()
    coordinator.communicate()
    wait_for(lambda: not any(is_there(process) for process in processes))


def is_there(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_runs_alone_keeps_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(turns.VARIABLE, raising=False)
    turns.pass_on(Turn("cell", 1, 0, 1))
