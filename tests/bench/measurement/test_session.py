"""The same command, and no other, finds what an interrupted run had finished."""

from __future__ import annotations

from pathlib import Path

from bench.measurement.session import LOG_FILE, SessionLog

COMMAND = ("--benchmark-only", "suites/")


def test_the_same_command_goes_on_and_another_starts_from_the_beginning(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "results", COMMAND)
    log.add(["suites/test_a.py::test_a"])
    log.add(["suites/test_b.py::test_b[x]"])
    again = SessionLog(tmp_path / "results", (*COMMAND, "--resume"), resume=True)
    assert again.finished == {"suites/test_a.py::test_a", "suites/test_b.py::test_b[x]"}
    another = SessionLog(tmp_path / "results", (*COMMAND, "--preset", "smoke"), resume=True)
    assert another.finished == set()
    another.end()
    assert SessionLog(tmp_path / "results", COMMAND, resume=True).finished == again.finished
    again.end()
    assert not list((tmp_path / "results").glob(f"{LOG_FILE}*"))
    assert SessionLog(tmp_path / "results", COMMAND, resume=True).finished == set()
    again.end()


def test_a_damaged_log_is_no_log(tmp_path: Path) -> None:
    for content in ("", "[]", "{", '{"command": 3}'):
        SessionLog(tmp_path, COMMAND).path.write_text(content)
        assert SessionLog(tmp_path, COMMAND, resume=True).finished == set()
