"""`specheat tables`: everything that is derived from the raw records, written beside them.

results/tables/<machine>-<suite>.md, .tex    results/figures/<machine>-<suite>-<what>.svg    results/README.md
results/tables/<machine>-claims.md           results/figures/<machine>-predicted.svg

Asked for columns, a pivot or a format it writes nothing and prints tables instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.analysis.rows import newest_rows
from bench.records.files import Runs
from bench.reporting.table import DERIVED, Page

if TYPE_CHECKING:
    from bench.records.runs import RunRecord

CLAIMS = "claims"
PREDICTED = "predicted"
Key = tuple[str, str]  # machine, suite
Experiments = Mapping[Key, Runs]
Others = Mapping[Key, tuple[Callable[[Sequence[Path]], Page], list[Path]]]  # what makes the page; records of JSON lines


def derived_files(
    results: Path, *, machine: str | None = None, suite: str | None = None
) -> Iterator[tuple[Path, bytes]]:
    """Path and content of every derived file. The index is always of all records.

    Raises:  ValueError: no such folder, no records that are asked for, or a broken one
    """
    from bench.reporting import ledger, suite_page
    from bench.reporting.figures import mechanism

    experiments, others = load_experiments(results), find_others(results)
    asked = asked_keys({*experiments, *others}, results, machine=machine, suite=suite)
    rows = {key: newest_rows(experiments[key]) for key in asked if key in experiments}
    for key in asked:
        page = suite_page.page(experiments[key], rows[key]) if key in rows else lines_page(key, *others[key], results)
        name, title = "-".join(key), f"{key[1]} on {key[0]}"
        text = suite_page.markdown_page(title, page.tables, figures=f"../figures/{name}-{{}}.svg")
        yield results / "tables" / f"{name}.md", text.encode()
        yield results / "tables" / f"{name}.tex", suite_page.latex_page(page.tables).encode()
        for which, image in page.figures.items():
            yield results / "figures" / f"{name}-{which}.svg", image
    for name in sorted({key[0] for key in asked}):
        if suite is not None:
            continue
        predicted = mechanism.render_predicted([row for key in rows if key[0] == name for row in rows[key]])
        if predicted is not None:
            yield results / "figures" / f"{name}-{PREDICTED}.svg", predicted
        if text := ledger.derived(results, name):
            yield results / "tables" / f"{name}-{CLAIMS}.md", _ledger_page(name, text).encode()
    yield results / "README.md", _index(results, experiments, others).encode()


def asked_keys(known: Iterable[Key], results: Path, *, machine: str | None, suite: str | None) -> list[Key]:
    """Those of a machine and a suite, where these are named.

    Raises:  ValueError: there are none
    """
    known = sorted(known)
    asked = [key for key in known if machine in (None, key[0]) and suite in (None, key[1])]
    if not asked:
        wanted = "/".join(name or "*" for name in (machine, suite))
        listed = ", ".join("/".join(key) for key in known) or "none"
        raise ValueError(f"expected records of {wanted} in {results}, found {listed}")
    return asked


def load_experiments(results: Path) -> Experiments:
    """Every record by machine and suite, which are the names of its folders."""
    from bench.records.files import load_run, record_files

    if not results.is_dir():
        raise ValueError(f"expected a folder of results, got {results}")
    experiments: dict[tuple[str, str], dict[str, RunRecord]] = {}
    for path in record_files(results, "*/*/*.json"):
        file = path.relative_to(results)
        experiments.setdefault((file.parts[0], file.parts[1]), {})[file.as_posix()] = load_run(path)
    return experiments


def find_others(results: Path) -> Others:
    """Records in a form of their own, JSON lines, that an installed package knows to read; oldest first."""
    from bench.records.files import record_files

    found: dict[tuple[str, str], list[Path]] = {}
    for path in record_files(results, "*/*/*.jsonl"):
        found.setdefault((path.parts[-3], path.parts[-2]), []).append(path)
    return {key: (make, paths) for key, paths in found.items() if (make := page_maker(key[1])) is not None}


def page_maker(suite: str) -> Callable[[Sequence[Path]], Page] | None:
    """Return the function that makes a page from the JSON-lines records of a suite, oldest first; None for other suites."""
    from bench.reporting.suites import distill_speed, kd_matrix, token_length

    makers = {
        "composed": kd_matrix.derived,
        "distill_speed": distill_speed.derived,
        "kd_matrix": kd_matrix.derived,
        "paradigm": kd_matrix.derived,
        "token_length": token_length.derived,
    }
    return makers.get(suite)


def lines_page(key: Key, make: Callable[[Sequence[Path]], Page], records: Sequence[Path], results: Path) -> Page:
    """Return the page of JSON-lines records. The caption of its first table holds what their headers state of the runs."""
    from bench.records.command_line import shell_text
    from bench.records.files import line_header
    from bench.reporting.captions import VERSIONS, commit_words, listing, machine_text, shared_facts

    of_files = {}
    for path in reversed(records):
        header = line_header(path, "environment", "created")
        env = header["environment"]
        of_files[path.relative_to(results).as_posix()] = {
            "machine": machine_text(env),
            "versions": listing({name: env[name] for name in VERSIONS if name in env}),
            "commit": commit_words(env),
            "date": header["created"][:10],
            "command": shell_text(header["command"]),
        }
    facts, files = shared_facts(of_files)
    page = make(records)
    first, *others = (replace(table, title=f"{key[1]} on {key[0]}: {table.title}") for table in page.tables)
    return replace(page, tables=(replace(first, facts=first.facts | facts, records=files), *others))


def _ledger_page(machine: str, text: str) -> str:
    return f"# Claims on {machine}\n\n_{DERIVED}_\n\n{text}\n"


def _index(results: Path, experiments: Experiments, others: Others) -> str:
    """results/README.md: what was measured where, with links to tables and raw records."""
    lines = ["# Results", "", f"_{DERIVED}_"]
    machine = None
    for key in sorted({*experiments, *others}):
        if key[0] != machine:
            machine = key[0]
            lines += ["", f"## {machine}", "", f"Which claims hold here: [the ledger](tables/{machine}-{CLAIMS}.md)."]
        links = ", ".join(f"[{file_format}](tables/{'-'.join(key)}.{file_format})" for file_format in ("md", "tex"))
        lines += ["", f"### {key[1]}", "", f"Tables: {links}. Raw records, newest first:", ""]
        if key in others:
            files = [path.relative_to(results).as_posix() for path in reversed(others[key][1])]
            lines += [f"- [{file.rpartition('/')[2]}]({file})" for file in files]
        else:
            newest_first = sorted(experiments[key].items(), key=lambda item: (item[1].created, item[0]), reverse=True)
            lines += [_record_line(file, run) for file, run in newest_first]
    return "\n".join(lines) + "\n"


def _record_line(file: str, run: RunRecord) -> str:
    measured = f"{len(run.cells)} cells" if run.cells else f"{len(run.baseline)} baseline triples"
    commit = run.environment.get("harness_commit", "unknown")
    return (
        f"- [{file.rpartition('/')[2]}]({file}): {run.created[:10]}, pair {run.model_pair.name}, preset {run.preset}, "
        f"{measured}, commit {commit}"
    )
