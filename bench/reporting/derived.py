"""Everything that `specheat tables` derives from the records below a folder of results, and where it lies.

<machine>/<suite>/README.md, table.tex, figure-<what>.svg    the tables and figures of a suite, beside its records
<machine>/claims/README.md                                   which claims hold on a machine
<machine>/figure-predicted.svg                               gamma measured against gamma predicted, of all suites
README.md                                                    the index: suites by machines, then studies
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.analysis.rows import Row, all_rows, newest_of
from bench.claims.ledger import ledgers
from bench.progress import with_bar
from bench.records.command_line import shell_text, stored_words
from bench.records.files import RECORDS, Runs, line_header, load_run, records_by_suite
from bench.records.marks import Marks, load_marks
from bench.records.merge import SOURCES
from bench.records.runs import RunRecord
from bench.reporting import ledger, suite_page
from bench.reporting.captions import VERSIONS, commit_words, listing, machine_text, shared_facts
from bench.reporting.figures import canvas, mechanism
from bench.reporting.formats import FIGURE, latex_page, markdown_page, pipe_table
from bench.reporting.suites import distill_speed, kd_matrix, token_length
from bench.reporting.table import DERIVED, Facts, Page, table_of

PAGE, TABLE = "README.md", "table.tex"
CLAIMS, PREDICTED = f"claims/{PAGE}", FIGURE.format("predicted")
STUDIES = "studies"  # <machine>/<study>: what is not a suite
Key = tuple[str, str]  # machine, suite
Experiments = Mapping[Key, Runs]
# Suites whose records are JSON lines -> what makes a page of them, the oldest first
PAGES: dict[str, Callable[[Sequence[Path], Marks], Page]] = {
    **dict.fromkeys(("composed", "kd_matrix", "paradigm"), kd_matrix.derived),
    "distill_speed": distill_speed.derived,
    "token_length": token_length.derived,
}
Others = Mapping[Key, Sequence[Path]]  # records of JSON lines


def regenerate(results: Path, *, machine: str | None = None, suite: str | None = None, check: bool = False) -> list[str]:
    """Write derived files that changed, remove those that are left over, and return a line for each; `check` only returns."""
    messages = []
    made = []
    for path, content in derived_files(results, machine=machine, suite=suite):
        made.append(path)
        if path.is_file() and path.read_bytes() == content:
            continue
        messages.append(f"{path} differs from what the records give" if check else str(path))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in left_over(results, made, machine=machine, suite=suite):
        messages.append(f"{path} is left over: no record gives it" if check else f"removed {path}")
        if not check:
            path.unlink()
    return messages


def derived_files(results: Path, *, machine: str | None = None, suite: str | None = None) -> Iterator[tuple[Path, bytes]]:
    """Yield path and content of every derived file. The index is always of all records.

    Raises:  ValueError: no such folder, no records of that machine or suite, or a broken one
             BackendUnavailable: matplotlib is missing
    """
    experiments, others, marks = load_experiments(results), find_others(results), load_marks(results)
    keys = chosen_keys({*experiments, *others}, results, machine=machine, suite=suite)
    every = {key: all_rows(experiments[key]) for key in keys if key in experiments}
    rows = {key: newest_of(of_key) for key, of_key in every.items()}
    for key in with_bar(keys, "tables and figures"):
        page = suite_page.page(experiments[key], rows[key], marks) if key in rows else lines_page(key, others[key], results)
        folder = results.joinpath(*key)
        text = markdown_page(f"{key[1]} on {key[0]}", page.tables, results="../..")
        yield folder / PAGE, f"{text}\nAll raw records, superseded ones included: [{RECORDS}]({RECORDS}).\n".encode()
        yield folder / TABLE, f"% {DERIVED}\n{latex_page(page.tables)}".encode()
        for what, image in page.figures.items():
            yield folder / FIGURE.format(what), image
    linked: list[Path] = []  # files of a whole machine; those of machines that were not chosen stay as they are
    for name in sorted({key[0] for key in (*experiments, *others)}):
        claims, predicted = results / name / CLAIMS, results / name / PREDICTED
        if suite is not None or machine not in (None, name):
            linked += filter(Path.is_file, (claims, predicted))
            continue
        of_machine = [key for key in keys if key[0] == name and key in rows]
        if drawn := predicted_figure([row for key in of_machine for row in rows[key]], marks):
            linked.append(predicted)
            yield predicted, drawn
        judged = ledgers(results, name, rows={key[1]: every[key] for key in of_machine})
        if text := ledger.page(judged, results="../..", marks=marks):
            linked.append(claims)
            yield claims, f"# Claims on {name}\n\n_{DERIVED}_\n\n{text}\n".encode()
    yield results / PAGE, _index(results, experiments, others, linked).encode()


def predicted_figure(rows: Sequence[Row], marks: Marks) -> bytes | None:
    """Return gamma measured against gamma predicted; None if no cell has both."""
    with canvas.marked(marks.of(dict.fromkeys(row.file for row in rows))):
        return mechanism.render_predicted(rows)


def left_over(results: Path, made: Collection[Path], *, machine: str | None, suite: str | None) -> list[Path]:
    """Return the files, derived once, that the records no longer give.

    Args:    made: what they give; machine, suite: where to look, if not everywhere
    """
    of_machine, of_suite = ("*" if name is None else glob.escape(name) for name in (machine, suite))
    patterns = [f"{of_machine}/{of_suite}/{name}" for name in (PAGE, TABLE, FIGURE.format("*"))]
    patterns += [f"{of_machine}/{FIGURE.format('*')}"] if suite is None else []
    found = sorted({path for pattern in patterns for path in results.glob(pattern)} - set(made))
    return [path for path in found if DERIVED in path.read_text()]  # a README that a person wrote stays


def chosen_keys(known: Iterable[Key], results: Path, *, machine: str | None, suite: str | None) -> list[Key]:
    """Return the keys of a machine and a suite, or all if neither is named.

    Raises:  ValueError: there are none
    """
    known = sorted(known)
    chosen = [key for key in known if machine in (None, key[0]) and suite in (None, key[1])]
    if not chosen:
        wanted = "/".join(name or "*" for name in (machine, suite))
        listed = ", ".join("/".join(key) for key in known) or "none"
        raise ValueError(f"expected records of {wanted} in {results}, found {listed}")
    return chosen


def load_experiments(results: Path) -> Experiments:
    """Return every record of cells, by machine and suite."""
    found: dict[Key, dict[str, RunRecord]] = {}
    places = [(key, path) for key, paths in records_by_suite(results).items() for path in paths]
    for key, path in with_bar(places, "reading records"):
        found.setdefault(key, {})[path.relative_to(results).as_posix()] = load_run(path)
    return found


def find_others(results: Path) -> Others:
    """Return the records of JSON lines, by machine and suite; suites that have no page are left out."""
    return {key: paths for key, paths in records_by_suite(results, ".jsonl").items() if key[1] in PAGES}


def lines_page(key: Key, records: Sequence[Path], results: Path) -> Page:
    """Return the page of JSON-lines records. The caption of its first table holds what their headers state of the runs."""
    marks, of_files = load_marks(results), {}
    for path in reversed(records):
        header = line_header(path, "environment", "created")
        env = header["environment"]
        of_files[path.relative_to(results).as_posix()] = {
            "machine": machine_text(env),
            "versions": listing({name: env[name] for name in VERSIONS if name in env}),
            "commit": commit_words(env),
            "date": header["created"][:10],
            "command": shell_text(header["command"]),
            **_sources(header),
        }
    facts, files = shared_facts(of_files)
    sentences = Marks({str(path): marks.of([path.relative_to(results).as_posix()]) for path in records})
    page = PAGES[key[1]](records, sentences)
    first, *others = (replace(table, title=f"{key[1]} on {key[0]}: {table.title}") for table in page.tables)
    return replace(page, tables=(replace(first, facts=first.facts | facts, records=files), *others))


def _sources(header: Mapping[str, Any]) -> Facts:
    """Return what a merged record was made of; empty for any other."""
    sources = header.get(SOURCES, [])
    words = (
        f"{each['file']} ({commit_words(each['environment'])}; {shell_text(stored_words(each['command']))})" for each in sources
    )
    return {"merged from": ", ".join(words)} if sources else {}


def _index(results: Path, experiments: Experiments, others: Others, of_machines: Collection[Path]) -> str:
    """Return the index: a grid of suites by machines, then the files of a whole machine, then studies."""
    created = {key: [run.created for run in runs.values()] for key, runs in experiments.items()}
    for key, paths in others.items():
        created.setdefault(key, []).extend(line_header(path, "created")["created"] for path in paths)
    cells = {
        # Dates in ISO 8601 have the order of their texts.
        key: f"[{max(dates)[:10]}, {len(dates)} record{'s' if len(dates) > 1 else ''}]({'/'.join(key)}/{PAGE})"
        for key, dates in created.items()
    }
    for path in of_machines:
        file = path.relative_to(results)
        what = "claims" if file.match(CLAIMS) else "predicted gamma"
        cells[file.parts[0], f"_{what}_"] = f"[{'which hold' if what == 'claims' else 'all suites'}]({file.as_posix()})"
    blocks = [
        "# Results",
        f"_{DERIVED}_",
        "Date of the newest record and number of records; the link leads to tables, figures and records.",
        _grid("suite", cells),
    ]
    folders = results.glob(f"{STUDIES}/*/*")
    studies = {(path.parent.name, path.name): f"[files]({path.relative_to(results).as_posix()})" for path in folders}
    if studies:
        blocks += ["## Studies", "What was measured outside the suites.", _grid("study", studies)]
    return "\n\n".join(blocks) + "\n"


def _grid(what: str, cells: Mapping[Key, str]) -> str:
    """Return a table of links: names down, machines across."""
    machines, names = (list(dict.fromkeys(sorted(key[place] for key in cells))) for place in (0, 1))
    lines = [[name, *(cells.get((machine, name), "") for machine in machines)] for name in names]
    return pipe_table(table_of("", (what, *machines), lines, {}))
