"""The page says what the records say, asks for nothing beyond itself, and works in a real browser."""

from __future__ import annotations

import argparse
import html
import json
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import markupsafe
import msgspec
import pytest

from bench.analysis.rows import newest_rows, row_groups
from bench.commands import main
from bench.options import settings
from bench.options.arguments import add_options, from_options
from bench.prompts import sets
from bench.records.runs import RunRecord
from bench.reporting import derived, repeat, suite_page, tables
from bench.reporting.derived import load_experiments
from bench.reporting.html import page as html_page
from bench.reporting.html.page import LOOKS, TEMPLATE
from bench.reporting.table import Entry, Page, table_of
from tests.support.record_builder import failed_record, make_cell, make_record, make_run

ROOT = Path(__file__).parents[4]
TEMPERATURES = (0.0, 0.5, 1.0)
GAMMAS = {0.0: 1.1, 0.5: 1.4, 1.0: 0.9}
HOSTILE = '<img src="https://example.org/x.png" onerror="alert(1)">'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def grid_run(**changes: object) -> RunRecord:
    """Gamma is highest in the middle; the hottest cell failed with an error that is hostile to HTML."""
    cells = [make_record(make_cell(temperature=t), gamma=GAMMAS[t], noise=0.001) for t in TEMPERATURES]
    cells += [failed_record(make_cell(temperature=2.0), error=f"RuntimeError: {HOSTILE}")]
    cells += [make_record(make_cell(rule="typical", temperature=1.0), gamma=1.3, noise=0.001)]
    return replace(make_run(cells), **changes)


def write(results: Path, run: RunRecord, *, suite: str = "temperature_grid", machine: str = "example-2c") -> None:
    folder = results / machine / suite / "records"
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath(f"{run.created[:10]}-abcdef0123-reference.json").write_bytes(msgspec.json.encode(run))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(folder, grid_run())
    lengths = [
        make_record(make_cell(suite="draft_length", num_draft_tokens=k, temperature=t)) for k in (1, 2) for t in (0.0, 1.0)
    ]
    write(folder, make_run(lengths, suite="draft_length"), suite="draft_length")
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return html_page.page(results)


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


# What it says
def test_the_same_records_give_the_same_bytes(results: Path, page: str) -> None:
    assert html_page.page(results) == page


def test_nothing_leads_elsewhere(page: str) -> None:
    leading = ("src", "href", "action", "data", "poster", "srcset")
    links = [attrs[name] for _, attrs in Elements(page).found for name in leading if name in attrs]
    assert links
    assert [link for link in links if not link.startswith(("#", "data:image/svg+xml,"))] == []
    assert "url(http" not in page
    assert "@import" not in page


def test_ids_are_unique_and_every_anchor_has_one(page: str) -> None:
    elements = Elements(page).found
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {attrs["href"][1:] for _, attrs in elements if attrs.get("href", "").startswith("#")} <= set(ids)


def test_texts_of_records_are_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert str(markupsafe.escape(HOSTILE)) in page


def test_an_invalid_cell_is_a_dash_with_its_reason_in_a_note_and_a_lossy_gamma_is_marked(page: str) -> None:
    (number,) = set(re.findall(r'–<sup><a href="#example-2c-temperature-grid-1-note-(\d+)">', page))
    note = re.search(rf'<li id="example-2c-temperature-grid-1-note-{number}">(.*?)</li>', page)
    assert note is not None
    assert "RuntimeError" in note[1]
    assert re.search(r"1\.\d+ \[[\d., ]+\] LOSSY<", page)


def test_verdicts_differ_in_shape_as_well_as_in_colour(page: str) -> None:
    assert '<span class="verdict good" data-shape="▲">FASTER</span>' in page
    assert '<span class="verdict void" data-shape="✕">INVALID</span>' in page
    looks = list(LOOKS.values())
    assert all(one != other for one, other in (("FASTER", "SLOWER"), ("SUPPORTED", "REFUTED")))
    assert {shape for kind, shape in looks if kind == "good"}.isdisjoint(shape for kind, shape in looks if kind == "bad")


def test_every_number_of_the_tables_is_on_the_page(results: Path, page: str) -> None:
    for runs in load_experiments(results).values():
        for table in suite_page.suite_tables(runs, newest_rows(runs)):
            for entries in table.body:
                assert all(html.escape(entry.text) in page for entry in entries)
            assert all(str(markupsafe.escape(text)) in page for text in table.facts.values())


def test_ledger_environment_records_and_commands_are_there(page: str) -> None:
    assert "NOT MEASURED" in page
    assert "<dt>cpu_model</dt><dd>Example CPU</dd>" in page
    assert "example-2c/temperature_grid/records/2026-11-20-abcdef0123-reference.json" in page
    assert "<code>pytest --benchmark-only suites/</code>" in page
    assert "suites/test_draft_length.py --backend reference --pair tiny --temperatures 1 --num-draft-tokens 2" in page


def test_environments_that_differ_show_every_value_the_newest_first(tmp_path: Path) -> None:
    write(tmp_path, grid_run())
    later = grid_run(created="2026-11-25T10:00:00+00:00")
    write(tmp_path, replace(later, environment=later.environment | {"torch": "2.14.0"}))
    assert "<dt>torch</dt><dd>2.14.0 · 2.13.0</dd>" in html_page.page(tmp_path)


def test_the_meanings_are_the_readmes() -> None:
    assert (TEMPLATE / "meanings.md").read_text() in (ROOT / "README.md").read_text()


def test_pages_of_other_records_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "example-2c" / "own" / "records"
    folder.mkdir(parents=True)
    header = {"command": "specheat own", "created": "2026-11-22T10:00:00", "environment": {"harness_commit": "c0ffee"}}
    folder.joinpath("1-a.jsonl").write_text(json.dumps(header) + "\n")
    table = replace(table_of("of it", ("T", "alpha"), [("0", Entry("0.5", bold=True))], {"alpha": "<own>"}), figures=("a",))
    monkeypatch.setitem(derived.PAGES, "own", lambda paths, _marks: Page((table,), {"a": b"<svg/>"}))
    text = html_page.page(tmp_path, suite="own")
    assert "<dt>alpha</dt><dd>&lt;own&gt;</dd>" in text
    assert "<strong>0.5</strong></td>" in text
    assert '<img src="data:image/svg+xml,%3Csvg/%3E" alt="Figure of example-2c own a">' in text
    assert "<code>specheat own</code>" in text
    assert "c0ffee" in text


def test_figures_of_suites_and_of_the_machine_are_there(page: str) -> None:
    labels = re.findall(r'<img [^>]*alt="([^"]+)"', page)
    assert labels[0] == "Figure of example-2c predicted"
    shown = ("tiny-instructions", "tiny-instructions-phases")
    assert {f"Figure of example-2c draft_length {what}" for what in shown} < set(labels)


# The command line
def test_the_command_writes_one_file_and_says_which(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], page: str
) -> None:
    out = tmp_path / "page.html"
    assert main.main(["report", str(results), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text() == page
    assert list(tmp_path.iterdir()) == [out]


def test_one_suite_can_be_asked_for(results: Path) -> None:
    only = html_page.page(results, suite="draft_length")
    assert 'id="example-2c-draft-length"' in only
    assert 'id="example-2c-temperature-grid"' not in only
    assert "NOT MEASURED" not in only


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "other"], "expected records of */other"),
        (["--machine", "other"], "expected records of other/*"),
        (["--out", "nowhere/page.html"], "expected a file in a folder that exists"),
    ],
)
def test_bad_input_is_one_line(results: Path, arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["report", str(results), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("specheat: error: expected a folder of results")


# Each cell again
@cache
def committed_rows() -> list[tuple[tables.Row, tuple[tables.Row, ...]]]:
    """Every cell of this repository's own results, with those of its table."""
    suites = load_experiments(ROOT / "results").values()
    groups = [rows for runs in suites for rows in row_groups(newest_rows(runs))]
    return [(row, rows) for rows in groups for row in rows]


def parsed(command: str) -> settings.Settings:
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "pytest", "--benchmark-only"]
    parser = argparse.ArgumentParser()
    add_options(parser)
    return from_options(parser.parse_args(words[5:]))


def test_the_command_of_every_committed_cell_asks_for_that_cell() -> None:
    seen = 0
    for row, rows in committed_rows():
        cell, command = row.record.cell, repeat.cell_command(row, rows)
        asked = parsed(command)
        assert shlex.split(command)[4] == f"suites/test_{cell.suite}.py"
        assert (ROOT / "suites" / f"test_{cell.suite}.py").is_file()
        assert cell.backend in asked.backends
        assert asked.rules == (cell.rule,)
        assert cell.temperature in asked.temperatures
        assert asked.draft_temperatures == (None,) or asked.draft_temperatures == (cell.draft_temperature,)
        assert asked.draft_temperatures != (None,) or cell.draft_temperature == cell.temperature
        assert asked.num_draft_tokens == (cell.num_draft_tokens,)
        (asked_set,) = asked.prompts
        # One of ours that was named without a split is asked for as it was.
        assert (sets.load(asked_set).name if asked_set in sets.BUILT_IN else asked_set) == cell.prompt_set
        assert asked.drafts == (None,) or cell.draft in asked.drafts
        assert cell.concurrency == 1 or cell.concurrency in asked.concurrency
        amounts = ("num_prompts", "repeats", "max_new_tokens", "end_token", "top_k", "top_p", "seed", "device")
        assert [getattr(asked, name) for name in amounts] == [getattr(cell, name) for name in amounts]
        seen += 1
    assert seen > 50


def test_suites_that_compare_get_all_they_had() -> None:
    commands = {row.record.cell.suite: parsed(repeat.cell_command(row, rows)) for row, rows in committed_rows()}
    assert len(commands["backends"].backends) > 1
    assert len(commands["kd_grid"].drafts) > 1
    assert len(commands["dynamic_temperature"].temperatures) > 1
    assert len(commands["temperature_grid"].temperatures) == 1


def command_of(command: str, **changes: object) -> settings.Settings:
    run = make_run([make_record(make_cell(**changes))], command=tuple(command.split()))
    (row,) = newest_rows({"m/temperature_grid/1-a-x.json": run})
    return parsed(repeat.cell_command(row, [row]))


def test_files_and_folders_come_from_the_records_command() -> None:
    asked = command_of(
        "python -m pytest --benchmark-only suites/ --target models/big --draft drafts/a/draft --draft drafts/b/draft "
        "--prompts data/questions.jsonl --backend our.engine:load --backend-option threads=2 --dtype float32 -q",
        draft="b",
        prompt_set="questions.jsonl:held_out",
        backend="ours",
        dtype="float32",
    )
    assert asked.target == "models/big"
    assert asked.drafts == ("drafts/b/draft",)
    assert asked.prompts == ("data/questions.jsonl",)
    assert asked.backends == ("our.engine:load",)
    assert asked.backend_options == (("threads", "2"),)
    assert asked.dtype == "float32"


# In a browser
Browse = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Chromium without a window on a page; what it prints on standard error holds what the page's console got."""

    def run(text: str, *options: str, extra: str = "") -> subprocess.CompletedProcess[str]:
        file = tmp_path / "report.html"
        file.write_text(text.replace("</body>", f"<script>{extra}</script></body>"))
        profile = tmp_path / "profile"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        command = [str(CHROMIUM), *flags, *quiet, f"--user-data-dir={profile}", "--enable-logging=stderr", *options]
        return subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)

    return run


FINDINGS = """
const table = document.querySelector("#example-2c-temperature-grid ~ .scroll table");
const names = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
const place = names.indexOf("gamma");
const header = table.tHead.rows[0].cells[place];
const found = { sorts: [header.getAttribute("aria-sort")], columns: [], focusable: header.querySelector("button").tabIndex };
const look = () => {
  found.sorts.push(header.getAttribute("aria-sort"));
  found.columns.push(Array.from(table.tBodies[0].rows, (row) => row.cells[place].textContent));
};
found.columns.push(Array.from(table.tBodies[0].rows, (row) => row.cells[place].textContent));
for (let click = 0; click < 3; click++) { header.querySelector("button").click(); look(); }
found.asked = performance.getEntriesByType("resource").map((entry) => entry.name);
found.overflow = document.documentElement.scrollWidth - innerWidth;
found.width = innerWidth;
found.broken = Array.from(document.images).filter((image) => !image.naturalWidth).map((image) => image.alt);
document.body.dataset.found = JSON.stringify(found);
"""


def found_by(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    attribute = re.search(r'data-found="([^"]+)"', done.stdout)
    assert attribute is not None, done.stdout[:500]
    found: dict[str, list[str]] = json.loads(html.unescape(attribute[1]))
    return found


def estimates(column: Sequence[str]) -> list[float]:
    return [float(text.split()[0]) for text in column if not text.startswith("–")]


@needs_chromium
def test_a_click_on_a_header_sorts_by_the_estimate_up_down_and_back(page: str, browse: Browse) -> None:
    found = found_by(browse(page, "--dump-dom", extra=FINDINGS))
    before, up, down, after = found["columns"]
    assert found["sorts"] == ["none", "ascending", "descending", "none"]
    assert estimates(before) != sorted(estimates(before))
    assert estimates(up) == sorted(estimates(up))
    assert estimates(down) == sorted(estimates(down), reverse=True)
    assert up[-1].startswith("–")
    assert down[-1].startswith("–")  # what is missing is last in either direction
    assert after == before
    assert found["focusable"] == 0


@needs_chromium
def test_the_page_asks_for_nothing_and_its_console_stays_empty(page: str, browse: Browse) -> None:
    done = browse(page, "--dump-dom", extra=FINDINGS)
    found = found_by(done)
    assert found["asked"] == []
    assert found["broken"] == []
    assert "CONSOLE" not in done.stderr


@needs_chromium
@pytest.mark.parametrize("policy", [True, False])
def test_a_request_would_be_stopped_and_seen(page: str, browse: Browse, policy: bool) -> None:
    leaking = page.replace("</main>", '<img src="http://127.0.0.1:65534/x.png"></main>')  # nobody listens there
    if not policy:
        leaking = leaking.replace("Content-Security-Policy", "X-Nothing")
    done = browse(leaking, "--dump-dom", extra=f'addEventListener("load", () => {{ {FINDINGS} nowhere(); }});')
    assert "nowhere is not defined" in done.stderr
    assert ("Content Security Policy" in done.stderr) == policy
    assert found_by(done)["asked"] == ["http://127.0.0.1:65534/x.png"]  # whether or not the policy let it go


@needs_chromium
@pytest.mark.parametrize("width", [1400, 500])
def test_only_tables_scroll_sideways(page: str, browse: Browse, width: int) -> None:
    found = found_by(browse(page, "--dump-dom", f"--window-size={width},900", extra=FINDINGS))
    assert found["width"] == width
    assert found["overflow"] == 0


@needs_chromium
def test_screenshots_are_taken_and_dark_is_dark(page: str, browse: Browse, tmp_path: Path) -> None:
    sizes = {}
    for name, extra in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        image = tmp_path / f"{name}.png"
        browse(page, f"--screenshot={image}", "--window-size=900,700", *extra)
        content = image.read_bytes()
        sizes[name] = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG")
    assert sizes["light"] == sizes["dark"] == (900, 700)
    assert tmp_path.joinpath("light.png").read_bytes() != tmp_path.joinpath("dark.png").read_bytes()


@needs_chromium
def test_it_prints_what_is_folded(page: str, browse: Browse, tmp_path: Path) -> None:
    folded, unfolded = tmp_path / "folded.pdf", tmp_path / "unfolded.pdf"
    browse(page, f"--print-to-pdf={folded}")
    browse(page.replace("<details>", "<details open>"), f"--print-to-pdf={unfolded}")
    assert folded.read_bytes().startswith(b"%PDF")
    assert abs(folded.stat().st_size / unfolded.stat().st_size - 1) < 0.02  # the same pages; dates may differ
